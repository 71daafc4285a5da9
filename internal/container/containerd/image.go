package containerd

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gantry.dev/gantry/internal/container"
)

// Labels of image records.
const (
	pinnedLabel   = "gantry.dev/pinned"
	lastUsedLabel = "gantry.dev/last-used"
)

// lastUsedStep is how old a recorded last use may be before it is written again.
const lastUsedStep = 10 * time.Minute

// ImageError says why an image cannot be used. Reason is what the pod's waiting state
// shows.
type ImageError struct {
	Ref    string // as it was asked for
	Reason string // "ErrImagePull", "InvalidImageName"
	Err    error
}

func (e *ImageError) Error() string { return fmt.Sprintf("image %s: %v", e.Ref, e.Err) }
func (e *ImageError) Unwrap() error { return e.Err }

// imageInfo is what is known of one image once it has been looked at. It never changes.
type imageInfo struct {
	id      string             // digest of the config
	name    string             // of one record, for containerd's own lists
	target  ocispec.Descriptor // the manifest or index
	size    int64
	chainID string
	config  ocispec.Image
	repos   map[string]string // familiar repository to its digest reference
}

// digestRef returns the repository digest for the repository of ref, else any.
func (i *imageInfo) digestRef(ref string) string {
	if named, err := reference.ParseDockerRef(ref); err == nil {
		if found, ok := i.repos[named.Name()]; ok {
			return found
		}
	}
	for _, found := range i.repos {
		return found
	}
	return ""
}

// imageCache remembers manifests that have been looked at and account files of images.
type imageCache struct {
	mu      sync.Mutex // guards the maps
	targets map[digest.Digest]*imageInfo
	files   map[string]accounts
	used    map[string]time.Time
}

func newImageCache() *imageCache {
	return &imageCache{targets: map[digest.Digest]*imageInfo{}, files: map[string]accounts{}, used: map[string]time.Time{}}
}

// maxCached bounds each map of an imageCache; a full one is emptied.
const maxCached = 512

func (c *imageCache) accounts(chainID string) (accounts, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	found, ok := c.files[chainID]
	return found, ok
}

func (c *imageCache) setAccounts(chainID string, found accounts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.files) >= maxCached {
		clear(c.files)
	}
	c.files[chainID] = found
}

// inspect looks at a manifest or index for this machine's platform.
func (r *Runtime) inspect(ctx context.Context, target ocispec.Descriptor) (*imageInfo, error) {
	r.imageCache.mu.Lock()
	cached := r.imageCache.targets[target.Digest]
	r.imageCache.mu.Unlock()
	if cached != nil {
		return cached, nil
	}
	platform := platforms.Default()
	manifest, err := images.Manifest(ctx, r.content, target, platform)
	if err != nil {
		return nil, err
	}
	data, err := content.ReadBlob(ctx, r.content, manifest.Config)
	if err != nil {
		return nil, err
	}
	info := &imageInfo{id: manifest.Config.Digest.String(), target: target}
	if err := json.Unmarshal(data, &info.config); err != nil {
		return nil, fmt.Errorf("read image config: %w", err)
	}
	info.chainID = identity.ChainID(info.config.RootFS.DiffIDs).String()
	info.size = manifest.Config.Size
	for _, layer := range manifest.Layers {
		info.size += layer.Size
	}
	r.imageCache.mu.Lock()
	if len(r.imageCache.targets) >= maxCached {
		clear(r.imageCache.targets)
	}
	r.imageCache.targets[target.Digest] = info
	r.imageCache.mu.Unlock()
	return info, nil
}

// normalize completes an image name: "busybox" is "docker.io/library/busybox:latest".
func normalize(ref string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, &ImageError{Ref: ref, Reason: "InvalidImageName", Err: err}
	}
	return named, nil
}

// resolveImage finds an image by ID or name, or says ErrNotFound.
func (r *Runtime) resolveImage(ctx context.Context, ref string) (*imageInfo, error) {
	all, err := r.groupImages(ctx)
	if err != nil {
		return nil, err
	}
	if found, ok := all[ref]; ok {
		return found.info(), nil
	}
	if named, err := normalize(ref); err == nil {
		for _, entry := range all {
			if slices.ContainsFunc(entry.records, func(img images.Image) bool { return recordIs(img, named) }) {
				return entry.info(), nil
			}
		}
	} else if !strings.HasPrefix(ref, "sha256:") {
		return nil, err
	}
	return nil, fmt.Errorf("image %s: %w", ref, ErrNotFound)
}

// recordIs reports whether a record is meant by a name, which may be by digest.
func recordIs(img images.Image, named reference.Named) bool {
	if img.Name == named.String() {
		return true
	}
	digested, ok := named.(reference.Digested)
	if !ok || img.Target.Digest != digested.Digest() {
		return false
	}
	other, err := reference.ParseDockerRef(img.Name)
	return err == nil && other.Name() == named.Name()
}

// imageGroup is one image with all its records.
type imageGroup struct {
	base    *imageInfo
	records []images.Image
}

// info returns what is known, with the repository digests that the records give.
func (g *imageGroup) info() *imageInfo {
	info := *g.base
	info.name = g.records[0].Name
	info.repos = map[string]string{}
	for _, rec := range g.records {
		if named, err := reference.ParseDockerRef(rec.Name); err == nil && !localName(rec.Name) {
			info.repos[named.Name()] = named.Name() + "@" + rec.Target.Digest.String()
		}
	}
	return &info
}

// localName reports whether a record is a bare ID that an archive without names was
// given.
func localName(name string) bool { return strings.HasPrefix(name, "sha256:") }

// groupImages returns all complete images by ID.
func (r *Runtime) groupImages(ctx context.Context) (map[string]*imageGroup, error) {
	records, err := r.images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	groups := map[string]*imageGroup{}
	for _, rec := range records {
		info, err := r.inspect(ctx, rec.Target)
		if err != nil {
			// Not for this platform, or a pull that was cut off: not usable, so not there.
			r.log.Debug("skipping an image that is not complete", "image", rec.Name, "error", err)
			continue
		}
		if groups[info.id] == nil {
			groups[info.id] = &imageGroup{base: info}
		}
		groups[info.id].records = append(groups[info.id].records, rec)
	}
	return groups, nil
}

// Images returns all images, by ID.
func (r *Runtime) Images(ctx context.Context) ([]container.Image, error) {
	ctx, err := r.await(ctx)
	if err != nil {
		return nil, err
	}
	groups, err := r.groupImages(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]container.Image, 0, len(groups))
	for _, group := range groups {
		list = append(list, r.publicImage(group))
	}
	slices.SortFunc(list, func(a, b container.Image) int { return cmp.Compare(a.ID, b.ID) })
	return list, nil
}

// Image returns one image by ID or name, or ErrNotFound.
func (r *Runtime) Image(ctx context.Context, ref string) (container.Image, error) {
	ctx, err := r.await(ctx)
	if err != nil {
		return container.Image{}, err
	}
	info, err := r.resolveImage(ctx, ref)
	if err != nil {
		return container.Image{}, err
	}
	groups, err := r.groupImages(ctx)
	if err != nil {
		return container.Image{}, err
	}
	group := groups[info.id]
	if group == nil {
		return container.Image{}, fmt.Errorf("image %s: %w", ref, ErrNotFound)
	}
	return r.publicImage(group), nil
}

// publicImage converts an image for the caller.
func (r *Runtime) publicImage(group *imageGroup) container.Image {
	img := container.Image{ID: group.base.id, SizeBytes: group.base.size, User: group.base.config.Config.User}
	for _, rec := range group.records {
		if rec.Labels[pinnedLabel] == "true" {
			img.Pinned = true
		}
		used, err := time.Parse(time.RFC3339, rec.Labels[lastUsedLabel])
		if err != nil {
			used = rec.CreatedAt
		}
		if used.After(img.LastUsed) {
			img.LastUsed = used
		}
		if localName(rec.Name) {
			continue
		}
		if !strings.Contains(rec.Name, "@") {
			img.Names = append(img.Names, rec.Name)
		}
		if named, err := reference.ParseDockerRef(rec.Name); err == nil {
			ref := named.Name() + "@" + rec.Target.Digest.String()
			if !slices.Contains(img.Digests, ref) {
				img.Digests = append(img.Digests, ref)
			}
		}
	}
	r.imageCache.mu.Lock()
	if used := r.imageCache.used[img.ID]; used.After(img.LastUsed) {
		img.LastUsed = used
	}
	r.imageCache.mu.Unlock()
	slices.Sort(img.Names)
	slices.Sort(img.Digests)
	return img
}

// imageUsed notes that a container was made from an image. It is written down only when
// the last note is old: image collection thinks in hours.
func (r *Runtime) imageUsed(ctx context.Context, img *imageInfo) {
	now := time.Now()
	r.imageCache.mu.Lock()
	last := r.imageCache.used[img.id]
	r.imageCache.used[img.id] = now
	r.imageCache.mu.Unlock()
	if now.Sub(last) < lastUsedStep {
		return
	}
	update := images.Image{Name: img.name, Labels: map[string]string{lastUsedLabel: now.UTC().Format(time.RFC3339)}}
	if _, err := r.images.Update(ctx, update, "labels."+lastUsedLabel); err != nil && !errdefs.IsNotFound(err) {
		r.log.Warn("noting the use of an image", "image", img.name, "error", err)
	}
}

// RemoveImage removes a name or, by ID, an image with all its names. Its content is
// deleted soon after when nothing uses it; containers keep running. Removing what is not
// there is no error.
func (r *Runtime) RemoveImage(ctx context.Context, ref string) error {
	ctx, err := r.await(ctx)
	if err != nil {
		return err
	}
	groups, err := r.groupImages(ctx)
	if err != nil {
		return err
	}
	var names []string
	if group, ok := groups[ref]; ok {
		for _, rec := range group.records {
			names = append(names, rec.Name)
		}
	} else {
		named, err := normalize(ref)
		if err != nil {
			return err
		}
		names = append(names, named.String())
		names = append(names, orphanedDigests(groups, named)...)
	}
	for _, name := range names {
		if err := r.images.Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove image %s: %w", name, err)
		}
	}
	return nil
}

// orphanedDigests returns the records by digest that a pull made beside a name and that no
// other name of the repository needs.
func orphanedDigests(groups map[string]*imageGroup, named reference.Named) []string {
	var orphans []string
	for _, group := range groups {
		i := slices.IndexFunc(group.records, func(rec images.Image) bool { return rec.Name == named.String() })
		if i < 0 {
			continue
		}
		byDigest := named.Name() + "@" + group.records[i].Target.Digest.String()
		needed := slices.ContainsFunc(group.records, func(rec images.Image) bool {
			return rec.Name != named.String() && strings.HasPrefix(rec.Name, named.Name()+":")
		})
		if !needed {
			orphans = append(orphans, byDigest)
		}
	}
	return orphans
}

// PinImage says whether an image, by ID or name, is kept from collection.
func (r *Runtime) PinImage(ctx context.Context, ref string, pinned bool) error {
	ctx, err := r.await(ctx)
	if err != nil {
		return err
	}
	info, err := r.resolveImage(ctx, ref)
	if err != nil {
		return err
	}
	groups, err := r.groupImages(ctx)
	if err != nil {
		return err
	}
	value := ""
	if pinned {
		value = "true"
	}
	for _, rec := range groups[info.id].records {
		update := images.Image{Name: rec.Name, Labels: map[string]string{pinnedLabel: value}}
		if _, err := r.images.Update(ctx, update, "labels."+pinnedLabel); err != nil {
			return fmt.Errorf("pin image %s: %w", rec.Name, err)
		}
	}
	return nil
}
