package containerd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is the cluster's own registry as this node reaches it.
type Registry struct {
	Host string // what references to its images begin with
	// Transport answers requests to https://HOST/v2/ as this node.
	Transport http.RoundTripper
	// Link puts a blob of a repository at target without a copy, for a registry on this node's disk. nil: blobs are fetched.
	Link func(ctx context.Context, repository string, d digest.Digest, target string) error
}

// withOwnRegistry sends what is for the cluster's registry there, and everything else where next says.
func (r *Runtime) withOwnRegistry(next docker.RegistryHosts) docker.RegistryHosts {
	own := r.opts.Registry
	if own == nil {
		return next
	}
	return func(host string) ([]docker.RegistryHost, error) {
		if host != own.Host {
			return next(host)
		}
		return []docker.RegistryHost{{
			Client: &http.Client{Transport: own.Transport}, Host: host, Scheme: "https", Path: "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
		}}, nil
	}
}

// linkHandler links the blobs of images of the cluster's registry into the content store before next would fetch them: the
// store finds them there, and what one built, pushed and runs on one machine lies on its disk once. A blob that cannot be
// linked is fetched.
func (r *Runtime) linkHandler(named reference.Named, next images.HandlerFunc) images.HandlerFunc {
	own := r.opts.Registry
	if own == nil || own.Link == nil || reference.Domain(named) != own.Host {
		return next
	}
	return func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		// A collection removes files that the database does not know yet.
		r.collecting.RLock()
		defer r.collecting.RUnlock()
		if _, err := r.content.Info(ctx, desc.Digest); errdefs.IsNotFound(err) {
			if err := own.Link(ctx, reference.Path(named), desc.Digest, r.contentPath(desc.Digest)); err != nil {
				r.log.Debug("content of the cluster's registry cannot be linked, it is fetched", "digest", desc.Digest, "error", err)
			}
		}
		return next(ctx, desc)
	}
}

// contentPath is where the content store keeps a blob.
func (r *Runtime) contentPath(d digest.Digest) string {
	return filepath.Join(r.opts.Root, "content", "blobs", d.Algorithm().String(), d.Encoded())
}

// ImageFile is one blob of an image on this node's disk.
type ImageFile struct {
	Descriptor ocispec.Descriptor
	Path       string
}

// ImageFiles returns what an image is made of, by ID or name, parts before what refers to them: the last one is the image.
// Of an image for several platforms that is here in part, it is the part for this machine.
func (r *Runtime) ImageFiles(ctx context.Context, ref string) ([]ImageFile, error) {
	ctx, err := r.await(ctx)
	if err != nil {
		return nil, err
	}
	info, err := r.resolveImage(ctx, ref)
	if err != nil {
		return nil, err
	}
	files, err := r.walkFiles(ctx, info.target, nil)
	if errdefs.IsNotFound(err) || errors.Is(err, os.ErrNotExist) {
		one, matchErr := r.platformManifest(ctx, info.target)
		if matchErr != nil {
			return nil, fmt.Errorf("image %s: %w", ref, matchErr)
		}
		files, err = r.walkFiles(ctx, one, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("image %s is not on this node as a whole: %w", ref, err)
	}
	return files, nil
}

func (r *Runtime) walkFiles(ctx context.Context, desc ocispec.Descriptor, files []ImageFile) ([]ImageFile, error) {
	if _, err := r.content.Info(ctx, desc.Digest); err != nil {
		return nil, err
	}
	children, err := images.Children(ctx, r.content, desc)
	if err != nil {
		return nil, err
	}
	for _, child := range children {
		if files, err = r.walkFiles(ctx, child, files); err != nil {
			return nil, err
		}
	}
	return append(files, ImageFile{Descriptor: desc, Path: r.contentPath(desc.Digest)}), nil
}

// platformManifest finds the manifest for this machine below an index.
func (r *Runtime) platformManifest(ctx context.Context, target ocispec.Descriptor) (ocispec.Descriptor, error) {
	children, err := images.Children(ctx, r.content, target)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	for _, child := range children {
		if !images.IsManifestType(child.MediaType) || (child.Platform != nil && !platforms.Default().Match(*child.Platform)) {
			continue
		}
		if _, err := r.content.Info(ctx, child.Digest); err == nil {
			return child, nil
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("no part of it is for this machine: %w", ErrNotFound)
}
