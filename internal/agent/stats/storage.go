package stats

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Storage is the disk space of one pod.
type Storage struct {
	At         time.Time
	Containers map[string]ContainerStorage // those that run, by name
	Volumes    map[string]Volume           // by name
	// UsedBytes and InodesUsed are what counts against the node's ephemeral storage: containers,
	// logs, and volumes that live with the pod and are not in memory.
	UsedBytes, InodesUsed uint64
	Partial               bool // the budget ended: the figures are lower bounds
}

// ContainerStorage is the disk space of one container.
type ContainerStorage struct {
	RootfsBytes, RootfsInodes uint64 // of what it has written to its root file system
	LogBytes, LogInodes       uint64 // of all its attempts
}

// Volume is the space of one volume.
type Volume struct {
	FS
	Ephemeral bool // counts against the node's ephemeral storage
}

// measured is a pod's storage as it was last found.
type measured struct {
	storage Storage
	took    time.Duration
}

// storageCache remembers what walks have found. One walk at a time runs.
type storageCache struct {
	walking chan struct{} // has an element while a walk runs

	mu   sync.Mutex // guards the fields below
	pods map[string]*measured
}

func (c *storageCache) keep(known map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for uid := range c.pods {
		if !known[uid] {
			delete(c.pods, uid)
		}
	}
}

func (c *storageCache) get(uid string, age time.Duration) (Storage, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.pods[uid]
	if m == nil || time.Since(m.storage.At) > max(age, 20*m.took) {
		return Storage{}, false
	}
	return m.storage, true
}

// Storage measures the folders of a pod. An answer that is younger than Options.StorageAge, or
// than twenty times what its walk took, is given again.
func (r *Reader) Storage(ctx context.Context, pod *corev1.Pod) (Storage, error) {
	return r.storageWithin(ctx, pod, r.opts.StorageAge)
}

func (r *Reader) storageWithin(ctx context.Context, pod *corev1.Pod, age time.Duration) (Storage, error) {
	if s, ok := r.storage.get(string(pod.UID), age); ok {
		return s, nil
	}
	select {
	case r.storage.walking <- struct{}{}:
	case <-ctx.Done():
		return Storage{}, ctx.Err()
	}
	defer func() { <-r.storage.walking }()
	if s, ok := r.storage.get(string(pod.UID), age); ok {
		return s, nil
	}
	began := time.Now()
	s, err := r.measure(ctx, pod)
	if err != nil {
		return s, fmt.Errorf("measuring the folders of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	r.storage.mu.Lock()
	defer r.storage.mu.Unlock()
	r.storage.pods[string(pod.UID)] = &measured{s, time.Since(began)}
	return s, nil
}

func (r *Reader) measure(ctx context.Context, pod *corev1.Pod) (Storage, error) {
	s := Storage{At: time.Now(), Containers: map[string]ContainerStorage{}, Volumes: map[string]Volume{}}
	w := walker{budget: walkBudget}
	var err error
	walk := func(dir string) (f folder) {
		if err == nil {
			err = w.walk(ctx, dir, &f)
		}
		s.Partial = s.Partial || f.partial
		return f
	}
	logs := filepath.Join(r.opts.LogDir, pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
	forRunning(pod, func(status *corev1.ContainerStatus, id string) {
		var c ContainerStorage
		if r.opts.Layer != nil {
			if dir, err := r.opts.Layer(ctx, id); err == nil {
				f := walk(dir)
				c.RootfsBytes, c.RootfsInodes = f.bytes, f.inodes
			}
		}
		f := walk(filepath.Join(logs, status.Name))
		c.LogBytes, c.LogInodes = f.bytes, f.inodes
		s.Containers[status.Name] = c
		s.UsedBytes += c.RootfsBytes + c.LogBytes
		s.InodesUsed += c.RootfsInodes + c.LogInodes
	})
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		dir, memory, ok := r.volumeDir(pod, v)
		if !ok {
			continue
		}
		if _, err := os.Lstat(dir); err != nil {
			continue // not made yet
		}
		fs, fsErr := ReadFS(dir)
		if fsErr != nil {
			continue
		}
		if !memory {
			f := walk(dir)
			fs.UsedBytes, fs.InodesUsed, fs.Partial = f.bytes, f.inodes, f.partial
			s.UsedBytes += f.bytes
			s.InodesUsed += f.inodes
		}
		s.Volumes[v.Name] = Volume{fs, !memory}
	}
	return s, err
}

// volumeDir is where a volume that lives with its pod lies, and whether it lies in memory.
func (r *Reader) volumeDir(pod *corev1.Pod, v *corev1.Volume) (dir string, memory, ok bool) {
	plugin := ""
	switch {
	case v.EmptyDir != nil:
		plugin, memory = "empty-dir", v.EmptyDir.Medium == corev1.StorageMediumMemory || strings.HasPrefix(string(v.EmptyDir.Medium), string(corev1.StorageMediumHugePages))
	case v.ConfigMap != nil:
		plugin = "configmap"
	case v.DownwardAPI != nil:
		plugin = "downward-api"
	case v.Secret != nil:
		plugin, memory = "secret", true
	case v.Projected != nil:
		plugin, memory = "projected", true
	default:
		return "", false, false
	}
	return filepath.Join(r.opts.PodsDir, string(pod.UID), "volumes", "kubernetes.io~"+plugin, v.Name), memory, true
}
