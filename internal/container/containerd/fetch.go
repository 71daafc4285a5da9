package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gantry.dev/gantry/internal/container"
)

// leaseTime is how long the pieces of a pull that was cut off are kept, so that it can go
// on where it was.
const leaseTime = 24 * time.Hour

// withLease keeps what is fetched from being collected until done is called.
func (r *Runtime) withLease(ctx context.Context) (_ context.Context, done func(), err error) {
	lease, err := r.leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseTime))
	if err != nil {
		return nil, nil, fmt.Errorf("keep image content: %w", err)
	}
	return leases.WithLease(ctx, lease.ID), func() {
		// With ctx at its end the lease must still go.
		if err := r.leases.Delete(context.WithoutCancel(ctx), lease); err != nil {
			r.log.Warn("releasing image content", "error", err)
		}
	}, nil
}

// unpackTree makes sure that everything below target is in the content store by way of
// fetch, and that its layers are snapshots. fetch may be nil where all is here.
func (r *Runtime) unpackTree(ctx context.Context, target ocispec.Descriptor, fetch ...images.Handler) error {
	platform := platforms.Default()
	unpacker, err := unpack.NewUnpacker(ctx, r.content, unpack.WithUnpackPlatform(unpack.Platform{
		Platform:       platform,
		SnapshotterKey: r.opts.Snapshotter,
		Snapshotter:    r.snapshotter,
		Applier:        apply.NewFileSystemApplier(r.content),
	}))
	if err != nil {
		return fmt.Errorf("unpack image: %w", err)
	}
	children := images.ChildrenHandler(r.content)
	children = images.SetChildrenLabels(r.content, children)
	children = images.FilterPlatforms(children, platform)
	children = images.LimitManifests(children, platform, 1)
	handler := images.Handlers(append(fetch, children)...)
	dispatchErr := images.Dispatch(ctx, unpacker.Unpack(handler), nil, target)
	_, unpackErr := unpacker.Wait() // always: it has goroutines of its own
	if err := cmpErr(dispatchErr, unpackErr); err != nil {
		return err
	}
	if _, err := r.inspect(ctx, target); err != nil {
		return err
	}
	return nil
}

// cmpErr returns the first error that is not only the echo of another's cancellation.
func cmpErr(errs ...error) error {
	var echo error
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		echo = errors.Join(echo, err)
	}
	return echo
}

// putImage creates or replaces an image record.
func (r *Runtime) putImage(ctx context.Context, img images.Image) error {
	for range 3 { // a removal may come in between
		_, err := r.images.Create(ctx, img)
		if err == nil {
			return nil
		}
		if !errdefs.IsAlreadyExists(err) {
			return fmt.Errorf("save image %s: %w", img.Name, err)
		}
		_, err = r.images.Update(ctx, img)
		if err == nil {
			return nil
		}
		if !errdefs.IsNotFound(err) {
			return fmt.Errorf("save image %s: %w", img.Name, err)
		}
	}
	return fmt.Errorf("save image %s: it is removed again and again", img.Name)
}

// Import takes in a docker or OCI archive and returns the images in it, unpacked.
func (r *Runtime) Import(ctx context.Context, src io.Reader, opts container.ImportOptions) ([]container.Image, error) {
	ctx, err := r.await(ctx)
	if err != nil {
		return nil, err
	}
	ctx, done, err := r.withLease(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	index, err := archive.ImportIndex(ctx, r.content, src)
	if err != nil {
		return nil, fmt.Errorf("read image archive: %w", err)
	}
	data, err := content.ReadBlob(ctx, r.content, index)
	if err != nil {
		return nil, fmt.Errorf("read image archive: %w", err)
	}
	var list ocispec.Index
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("read image archive: %w", err)
	}
	if len(list.Manifests) == 0 {
		return nil, errors.New("read image archive: there is no image in it")
	}
	if opts.Name != "" && len(list.Manifests) > 1 {
		return nil, fmt.Errorf("read image archive: it has %d images, one name %q does not fit", len(list.Manifests), opts.Name)
	}
	var found []container.Image
	for _, manifest := range list.Manifests {
		if manifest.Platform != nil && !platforms.Default().Match(*manifest.Platform) {
			continue
		}
		img, err := r.importOne(ctx, manifest, opts)
		if err != nil {
			return nil, fmt.Errorf("import image: %w", err)
		}
		found = append(found, img)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("read image archive: there is no image for %s in it", platforms.DefaultString())
	}
	return found, nil
}

// importOne unpacks one image of an archive and gives it its names.
func (r *Runtime) importOne(ctx context.Context, target ocispec.Descriptor, opts container.ImportOptions) (container.Image, error) {
	if err := r.unpackTree(ctx, target); err != nil {
		return container.Image{}, err
	}
	info, err := r.inspect(ctx, target)
	if err != nil {
		return container.Image{}, err
	}
	names := map[string]bool{}
	for _, name := range []string{target.Annotations[images.AnnotationImageName], opts.Name} {
		if name == "" {
			continue
		}
		named, err := normalize(name)
		if err != nil {
			return container.Image{}, err
		}
		names[named.String()] = true
	}
	if tag := target.Annotations[ocispec.AnnotationRefName]; len(names) == 0 && strings.ContainsAny(tag, ":/") {
		// In an OCI layout this may also be a bare tag, which names nothing.
		if named, err := normalize(tag); err == nil {
			names[named.String()] = true
		}
	}
	if len(names) == 0 {
		names[info.id] = true
	}
	for name := range names {
		img := images.Image{Name: name, Target: target, Labels: imageLabels(opts.Pinned)}
		img.Labels[loadedLabel] = "true"
		if err := r.putImage(ctx, img); err != nil {
			return container.Image{}, err
		}
	}
	return r.Image(ctx, info.id)
}

func imageLabels(pinned bool) map[string]string {
	if !pinned {
		return map[string]string{}
	}
	return map[string]string{pinnedLabel: "true"}
}
