package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// registry is where the image of a request is pushed to instead of the cluster's own.
func (r *Request) registry() string {
	if r.Registry == "" && r.Spec.Build != nil {
		return r.Spec.Build.Registry
	}
	return r.Registry
}

// checkRegistry asks whether the cluster has a registry, and so builds: before anything is compiled or sent.
func (c *Cluster) checkRegistry(ctx context.Context) error {
	answer, err := c.ask(ctx, http.MethodGet, "/v2/", "", 0, nil)
	if err != nil {
		return Reached("ask for the cluster's registry", err)
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
	if err != nil {
		return Reached("ask for the cluster's registry", err)
	}
	// A Kubernetes API that knows no such path says not found, or, to whoever may not ask for it, forbidden in its own form.
	var status struct {
		Kind string `json:"kind"`
	}
	foreign := answer.StatusCode == http.StatusForbidden && json.Unmarshal(text, &status) == nil && status.Kind == "Status"
	if answer.StatusCode != http.StatusNotFound && !foreign {
		return nil
	}
	return failure(CodeUsage, "NoRegistry", "this cluster has no registry of its own, and does not build").
		try("deploy an image that is built elsewhere: gantry deploy IMAGE",
			"or, for a program in Go, say which registry this machine pushes to: --registry ghcr.io/YOU, or build: {registry: ...} in gantry.yaml")
}

// buildOutside makes the image on this machine and pushes it to a registry that is not the cluster's.
func (e *Engine) buildOutside(ctx context.Context, req *Request, registry string) (string, error) {
	repository := strings.TrimSuffix(registry, "/") + "/" + req.App
	if _, err := name.NewRepository(repository); err != nil {
		return "", failure(CodeUsage, "Registry", "%q is no registry, such as ghcr.io/acme", registry)
	}
	if !req.compiles() {
		return "", failure(CodeUsage, "NoBuilder", "with a registry of your own this machine builds, which it can do for programs in Go with the go command alone").
			try("build the image with another tool, push it, and deploy it by its name: gantry deploy "+repository+":TAG", "or deploy to a cluster of Gantry, which builds")
	}
	arch, known := e.nodesArch(ctx)
	if !known {
		arch = runtime.GOARCH
		e.warn("the architecture of the cluster's nodes is not known, or they differ: compiling for %s", arch)
	}
	return e.compile(ctx, req, arch, func(archive *os.File) (string, int64, error) {
		image, err := tarball.ImageFromPath(archive.Name(), nil)
		if err != nil {
			return "", 0, fmt.Errorf("read the image: %w", err)
		}
		digest, err := image.Digest()
		if err != nil {
			return "", 0, fmt.Errorf("read the image: %w", err)
		}
		// The tag keeps it from registries' collectors, and is the same for the same image.
		pushed, err := PushOutside(ctx, repository+":gantry-"+digest.Hex[:12], archive.Name())
		if err != nil {
			return "", 0, err
		}
		size, err := archive.Seek(0, io.SeekEnd)
		return pushed, size, err
	})
}

// PushOutside pushes the one image of a docker archive to a registry that is not the cluster's, with docker's credentials of this
// user, and returns its reference with its digest. ref is a repository, or one with a tag.
func PushOutside(ctx context.Context, ref, archive string) (string, error) {
	target, err := name.ParseReference(ref)
	if err != nil {
		return "", failure(CodeUsage, "Registry", "%q is no name of an image, such as ghcr.io/acme/shop", ref)
	}
	image, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		return "", fmt.Errorf("read the image: %w", err)
	}
	digest, err := image.Digest()
	if err != nil {
		return "", fmt.Errorf("read the image: %w", err)
	}
	err = remote.Write(target, image, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if answer, ok := errors.AsType[*transport.Error](err); ok && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden) {
		out := &Error{Code: CodeUnreachable, Reason: "Denied", Message: "the registry " + target.Context().RegistryStr() + " refuses the push", Err: err}
		return "", out.try("log in to it: docker login " + target.Context().RegistryStr())
	}
	if err != nil {
		return "", Reached("push to "+target.Context().Name(), err)
	}
	return target.Context().Name() + "@" + digest.String(), nil
}
