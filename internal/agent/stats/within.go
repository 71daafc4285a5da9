package stats

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// StorageWithin is Storage with another age: what was found longer ago is measured again.
func (r *Reader) StorageWithin(ctx context.Context, pod *corev1.Pod, age time.Duration) (Storage, error) {
	return r.storageWithin(ctx, pod, age)
}

// Cgroup reads what a cgroup uses with everything below it.
func (r *Reader) Cgroup(path string, u *Usage) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cgroups.Read(path, u)
}
