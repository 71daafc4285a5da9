package agent

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/lifecycle"
)

// How often the node is tidied up, as the kubelet does.
const (
	containerCollection = time.Minute
	imageCollection     = 5 * time.Minute
)

// runCollection removes what nobody needs: dead containers but the newest of each, images when
// the disk fills up, folders of pods that are gone.
func (a *Agent) runCollection(ctx context.Context) {
	lastImages, lastResizes := time.Now(), time.Now()
	for lifecycle.Pause(ctx, containerCollection) {
		if err := a.collectContainers(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("cannot collect dead containers", "error", err)
		}
		if time.Since(lastResizes) >= resizeRetry {
			lastResizes = time.Now()
			a.roomChanged()
		}
		if err := a.collectPods(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("cannot collect the folders of pods that are gone", "error", err)
		}
		if time.Since(lastImages) < imageCollection {
			continue
		}
		lastImages = time.Now()
		if err := a.collectImages(ctx, time.Now(), false); err != nil && ctx.Err() == nil {
			a.events.node(corev1.EventTypeWarning, "ImageGCFailed", err.Error())
			a.log.Warn("cannot collect images", "error", err)
		}
	}
}

// collectContainers removes the dead containers of a name but the newest one besides the
// present one: that is what lastState and logs --previous show.
func (a *Agent) collectContainers(ctx context.Context) error {
	list, err := a.runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("listing containers: %w", err)
	}
	for _, s := range list {
		for _, c := range surplus(s.Containers) {
			if err := a.runtime.RemoveContainer(ctx, c.ID); err != nil {
				return fmt.Errorf("removing container %s: %w", c.ID, err)
			}
			a.mu.Lock()
			w := a.workers[types.UID(s.Sandbox.ID)]
			a.mu.Unlock()
			if w != nil {
				w.stale.Store(true)
			}
		}
	}
	return nil
}

// surplus picks the dead containers that are neither the newest of their name nor the one
// before it.
func surplus(list []container.Status) []container.Status {
	newest := slices.Clone(list)
	slices.SortStableFunc(newest, func(x, y container.Status) int {
		return cmp.Or(cmp.Compare(y.Attempt, x.Attempt), y.CreatedAt.Compare(x.CreatedAt))
	})
	var dead []container.Status
	seen := map[string]int{}
	for _, c := range newest {
		if seen[c.Name]++; seen[c.Name] > 2 && c.State == container.StateExited {
			dead = append(dead, c)
		}
	}
	return dead
}

// collectPods removes what pods that are gone left on disk.
func (a *Agent) collectPods(ctx context.Context) error {
	uids, err := a.volumes.Pods()
	if err != nil {
		return err
	}
	for _, uid := range uids {
		a.mu.Lock()
		_, known := a.workers[uid]
		a.mu.Unlock()
		if known || !a.synced.Load() {
			continue
		}
		if _, exists, err := a.status(ctx, string(uid)); err != nil || exists {
			continue
		}
		if err := a.tearDownVolumes(ctx, uid); err != nil {
			return err
		}
	}
	return nil
}

// unusedImages remembers since when images are seen unused.
type unusedImages struct {
	mu    sync.Mutex // guards the field below, and one collection at a time
	since map[string]time.Time
}

// collectImages frees disk space from the high to the low threshold, by the images that were
// unused for longest. With all it removes every image that is unused for long enough.
func (a *Agent) collectImages(ctx context.Context, now time.Time, all bool) error {
	a.unused.mu.Lock()
	defer a.unused.mu.Unlock()
	unused := a.unused.since
	images, err := a.images.Images(ctx)
	if err != nil {
		return fmt.Errorf("listing images: %w", err)
	}
	used, err := a.usedImages(ctx)
	if err != nil {
		return err
	}
	present := map[string]bool{}
	var candidates []container.Image
	for _, image := range images {
		present[image.ID] = true
		if used[image.ID] || image.Pinned {
			delete(unused, image.ID)
			continue
		}
		if _, ok := unused[image.ID]; !ok {
			unused[image.ID] = now
		}
		candidates = append(candidates, image)
	}
	for id := range unused {
		if !present[id] {
			delete(unused, id)
		}
	}
	usedBytes, capacity, err := a.opts.DiskUsage(existing(a.opts.ImageDir))
	if err != nil {
		return fmt.Errorf("measuring the disk: %w", err)
	}
	if !all && (capacity <= 0 || usedBytes*100 < capacity*int64(a.opts.ImageHighPercent)) {
		return nil
	}
	toFree := usedBytes - capacity*int64(a.opts.ImageLowPercent)/100
	if all {
		toFree = math.MaxInt64
	}
	slices.SortFunc(candidates, func(x, y container.Image) int { return lastUse(x, unused).Compare(lastUse(y, unused)) })
	freed := int64(0)
	for _, image := range candidates {
		if freed >= toFree {
			break
		}
		if now.Sub(unused[image.ID]) < a.opts.ImageMinAge || now.Sub(image.LastUsed) < a.opts.ImageMinAge {
			continue
		}
		if err := a.images.RemoveImage(ctx, image.ID); err != nil {
			return fmt.Errorf("removing image %s: %w", image.ID, err)
		}
		delete(unused, image.ID)
		freed += image.SizeBytes
	}
	if freed < toFree && !all {
		a.events.node(corev1.EventTypeWarning, "FreeDiskSpaceFailed",
			fmt.Sprintf("Failed to garbage collect required amount of images. Attempted to free %d bytes, but only found %d bytes eligible to free.", toFree, freed))
	}
	return nil
}

func lastUse(image container.Image, unused map[string]time.Time) time.Time {
	if image.LastUsed.IsZero() {
		return unused[image.ID]
	}
	return image.LastUsed
}

// usedImages are those that a container has, running or not.
func (a *Agent) usedImages(ctx context.Context) (map[string]bool, error) {
	list, err := a.runtime.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	used := map[string]bool{}
	for _, s := range list {
		for _, c := range s.Containers {
			used[c.Image], used[c.ImageID] = true, true
		}
	}
	return used, nil
}
