package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// loadedLabel is on images that came from an archive: whoever may load one gives it to the whole node, while one that was
// pulled may have needed a project's credentials.
const loadedLabel = "gantry.dev/loaded"

// ServeLoaded answers requests of the distribution protocol for images that were loaded on this node, as the mirror of
// every registry: path is what follows "/v2/", the query "ns" names the registry. It reads only.
func (r *Runtime) ServeLoaded(w http.ResponseWriter, req *http.Request, path string) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		http.Error(w, "only reading is possible", http.StatusMethodNotAllowed)
		return
	}
	ctx, err := r.await(req.Context())
	if err == nil {
		err = r.serveLoaded(ctx, w, req, path)
	}
	switch {
	case errors.Is(err, ErrNotFound):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (r *Runtime) serveLoaded(ctx context.Context, w http.ResponseWriter, req *http.Request, path string) error {
	missing := fmt.Errorf("%s: %w", path, ErrNotFound)
	kind := "/manifests/"
	at := strings.LastIndex(path, kind)
	if at < 0 {
		kind = "/blobs/"
		at = strings.LastIndex(path, kind)
	}
	if at < 0 {
		return missing
	}
	repository, wanted := path[:at], path[at+len(kind):]
	loaded, err := r.loadedIn(ctx, req.URL.Query().Get("ns")+"/"+repository)
	if err != nil {
		return err
	}
	for _, img := range loaded {
		named, err := reference.ParseDockerRef(img.Name)
		if err != nil {
			continue
		}
		tagged, ok := named.(reference.Tagged)
		if ok && kind == "/manifests/" && tagged.Tag() == wanted {
			return r.sendContent(ctx, w, req, img.Target)
		}
		if digest.Digest(wanted).Validate() != nil {
			continue
		}
		found, err := r.partOf(ctx, img.Target, digest.Digest(wanted))
		if err != nil {
			return err
		}
		if found != nil {
			return r.sendContent(ctx, w, req, *found)
		}
	}
	return missing
}

// loadedIn lists the images of a repository that came from an archive.
func (r *Runtime) loadedIn(ctx context.Context, repository string) ([]images.Image, error) {
	all, err := r.images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var found []images.Image
	for _, img := range all {
		named, err := reference.ParseDockerRef(img.Name)
		if err == nil && img.Labels[loadedLabel] == "true" && named.Name() == repository {
			found = append(found, img)
		}
	}
	return found, nil
}

// partOf finds content of an image by its digest; nil if it has none such.
func (r *Runtime) partOf(ctx context.Context, image ocispec.Descriptor, wanted digest.Digest) (*ocispec.Descriptor, error) {
	var found *ocispec.Descriptor
	err := images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if d.Digest == wanted {
			found = &d
		}
		if found != nil {
			return nil, images.ErrStopHandler
		}
		children, err := images.Children(ctx, r.content, d)
		if errdefs.IsNotFound(err) {
			return nil, nil // another platform's
		}
		return children, err
	}), image)
	if err != nil && !errors.Is(err, images.ErrStopHandler) {
		return nil, fmt.Errorf("look into image %s: %w", image.Digest, err)
	}
	return found, nil
}

// sendContent answers with content.
func (r *Runtime) sendContent(ctx context.Context, w http.ResponseWriter, req *http.Request, d ocispec.Descriptor) error {
	reader, err := r.content.ReaderAt(ctx, d)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("content %s: %w", d.Digest, ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("open content %s: %w", d.Digest, err)
	}
	defer reader.Close()
	w.Header().Set("Content-Type", d.MediaType)
	w.Header().Set("Docker-Content-Digest", d.Digest.String())
	w.Header().Set("Content-Length", strconv.FormatInt(reader.Size(), 10))
	if req.Method == http.MethodHead {
		return nil
	}
	_, _ = io.Copy(w, content.NewReader(reader)) // the client went away
	return nil
}
