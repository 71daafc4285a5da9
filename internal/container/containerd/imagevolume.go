package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
)

// volumePrefix begins the keys of snapshots that are mounted as volumes of pods.
const volumePrefix = "gantry-volume-"

// gcRoot is containerd's label of what is kept though nothing refers to it.
const gcRoot = "containerd.io/gc.root"

func volumeKey(pod, volume string) string { return volumePrefix + pod + "/" + volume }

// MountImage mounts the files of an image, by ID, on target, read-only, as a volume of a pod. It
// makes target, and does nothing if something is mounted there. ReleaseImages gives the files up.
func (r *Runtime) MountImage(ctx context.Context, pod, volume, image, target string) error {
	ctx, err := r.await(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o750); err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	if mounted, err := mountinfo.Mounted(target); err != nil || mounted {
		return err
	}
	img, err := r.resolveImage(ctx, image)
	if err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	r.collecting.RLock()
	defer r.collecting.RUnlock()
	mounts, err := r.viewImage(ctx, volumeKey(pod, volume), img)
	if err != nil {
		return fmt.Errorf("mount image %s: %w", img.name, err)
	}
	if err := mount.All(mounts, target); err != nil {
		return fmt.Errorf("mount image %s: %w", img.name, err)
	}
	r.imageUsed(ctx, img)
	return nil
}

// viewImage returns the mounts of an image's files. A view of that key is used again: an earlier
// run made it, and the machine was started anew since.
func (r *Runtime) viewImage(ctx context.Context, key string, img *imageInfo) ([]mount.Mount, error) {
	labels := snapshots.WithLabels(map[string]string{gcRoot: time.Now().UTC().Format(time.RFC3339)})
	for range 2 {
		mounts, err := r.snapshotter.View(ctx, key, img.chainID, labels)
		switch {
		case errdefs.IsAlreadyExists(err):
			// It may be of an image that the name no longer means.
			if err := r.snapshotter.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
				return nil, err
			}
		case errdefs.IsNotFound(err):
			if err := r.unpackTree(ctx, img.target); err != nil {
				return nil, fmt.Errorf("unpack image: %w", err)
			}
		default:
			return mounts, err
		}
	}
	return r.snapshotter.View(ctx, key, img.chainID, labels)
}

// ReleaseImages gives up the images that are volumes of a pod. They must not be mounted any more.
func (r *Runtime) ReleaseImages(ctx context.Context, pod string) error {
	ctx, err := r.await(ctx)
	if err != nil {
		return err
	}
	var keys []string
	err = r.snapshotter.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if strings.HasPrefix(info.Name, volumePrefix+pod+"/") {
			keys = append(keys, info.Name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("release images of a pod: %w", err)
	}
	for _, key := range keys {
		if err := r.snapshotter.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("release images of a pod: %w", err)
		}
	}
	return nil
}
