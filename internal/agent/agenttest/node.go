package agenttest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/volume"
)

// Images is an image store in memory.
type Images struct {
	// Missing makes every image absent until it is pulled; otherwise all are there.
	Missing bool
	// OnPull answers a pull; nil lets all succeed.
	OnPull func(ref string, credentials []container.Credentials) error
	// OnRemove is told of an image that was removed; nil does nothing.
	OnRemove func(id string)
	// User is the USER of all images.
	User string

	mu     sync.Mutex // guards the fields below
	pulled map[string]container.Image
	pulls  []string
}

// ErrNotFound is what Image answers for an image that is absent.
var ErrNotFound = errors.New("image not found")

// Pull implements the store.
func (i *Images) Pull(_ context.Context, ref string, credentials []container.Credentials) (container.Image, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pulls = append(i.pulls, ref)
	if i.OnPull != nil {
		if err := i.OnPull(ref, credentials); err != nil {
			return container.Image{}, err
		}
	}
	return i.addLocked(ref), nil
}

func (i *Images) addLocked(ref string) container.Image {
	if i.pulled == nil {
		i.pulled = map[string]container.Image{}
	}
	image := container.Image{ID: "sha256:" + ref, Names: []string{ref}, SizeBytes: 1000, User: i.User, LastUsed: time.Time{}}
	i.pulled[ref] = image
	return image
}

// Image implements the store.
func (i *Images) Image(_ context.Context, ref string) (container.Image, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if image, ok := i.pulled[ref]; ok {
		return image, nil
	}
	if i.Missing {
		return container.Image{}, fmt.Errorf("%s: %w", ref, ErrNotFound)
	}
	return i.addLocked(ref), nil
}

// Images implements the store.
func (i *Images) Images(context.Context) ([]container.Image, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var list []container.Image
	for _, image := range i.pulled {
		list = append(list, image)
	}
	slices.SortFunc(list, func(a, b container.Image) int { return cmp.Compare(a.ID, b.ID) })
	return list, nil
}

// RemoveImage implements the store.
func (i *Images) RemoveImage(_ context.Context, id string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	for ref, image := range i.pulled {
		if image.ID == id {
			delete(i.pulled, ref)
			if i.OnRemove != nil {
				i.OnRemove(id)
			}
		}
	}
	return nil
}

// Pulls lists the references that were pulled.
func (i *Images) Pulls() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.pulls)
}

// Network gives out addresses of the node's range and connects nothing.
type Network struct {
	mu    sync.Mutex // guards the fields below
	addrs map[string]netip.Addr
	last  netip.Addr
}

// Setup implements the network.
func (n *Network) Setup(_ context.Context, uid string, _ *corev1.Pod, ranges []string) (string, []netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.addrs == nil {
		n.addrs = map[string]netip.Addr{}
	}
	if len(ranges) == 0 {
		return "", nil, errors.New("the node has no pod range")
	}
	if !n.last.IsValid() {
		prefix, err := netip.ParsePrefix(ranges[0])
		if err != nil {
			return "", nil, fmt.Errorf("reading the pod range: %w", err)
		}
		n.last = prefix.Addr().Next()
	}
	if _, ok := n.addrs[uid]; !ok {
		n.last = n.last.Next()
		n.addrs[uid] = n.last
	}
	return "/run/netns/" + uid, []netip.Addr{n.addrs[uid]}, nil
}

// Teardown implements the network.
func (n *Network) Teardown(_ context.Context, uid string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.addrs, uid)
	return nil
}

// Reconcile implements the network.
func (n *Network) Reconcile(_ context.Context, keep []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for uid := range n.addrs {
		if !slices.Contains(keep, uid) {
			delete(n.addrs, uid)
		}
	}
	return nil
}

// Count is how many pods are connected.
func (n *Network) Count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.addrs)
}

// Volumes pretends that every volume is there.
type Volumes struct{}

// SetUp implements the volumes.
func (Volumes) SetUp(_ context.Context, pod *corev1.Pod, _ volume.Facts) (map[string]volume.Mounted, error) {
	mounted := map[string]volume.Mounted{}
	for i := range pod.Spec.Volumes {
		mounted[pod.Spec.Volumes[i].Name] = volume.Mounted{HostPath: "/volumes/" + pod.Spec.Volumes[i].Name}
	}
	return mounted, nil
}

// SubPath implements the volumes.
func (Volumes) SubPath(_ types.UID, s volume.SubPath) (string, error) {
	return s.Root + "/" + s.Path, nil
}

// TearDown implements the volumes.
func (Volumes) TearDown(context.Context, types.UID) error { return nil }

// Pods implements the volumes.
func (Volumes) Pods() ([]types.UID, error) { return nil, nil }
