package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/informer"
	"gantry.dev/gantry/internal/lifecycle"
)

// watch subscribes to what the agent must know of the API, and returns when it has seen
// everything once. Sandboxes whose pod the API does not know are then removed.
func (a *Agent) watch(ctx context.Context, sandboxes []container.SandboxStatus) error {
	known := map[types.UID]container.SandboxStatus{}
	for _, s := range sandboxes {
		known[types.UID(s.Sandbox.ID)] = s
	}
	stop, err := informer.Subscribe(ctx, a.informers,
		informer.Subscription{Object: &corev1.Node{}, OnEvent: onChange(a.nodeChanged)},
		informer.Subscription{Object: &corev1.Pod{}, OnEvent: func(old, current client.Object) {
			if current == nil {
				a.podDeleted(old)
			} else {
				a.podChanged(current, known)
			}
		}},
		informer.Subscription{Object: &corev1.ConfigMap{}, OnEvent: onChange(func(o client.Object) { a.sourceChanged(o, false) })},
		informer.Subscription{Object: &corev1.Secret{}, OnEvent: onChange(func(o client.Object) { a.sourceChanged(o, true) })})
	if err != nil && ctx.Err() != nil {
		return nil // asked to stop before all was there
	}
	if err != nil {
		return err
	}
	a.spawn(func(ctx context.Context) {
		<-ctx.Done()
		stop()
	})
	a.synced.Store(true)
	if a.opts.Confirmed == nil {
		a.removeOrphans(ctx, sandboxes)
	} else {
		a.spawn(func(ctx context.Context) {
			if a.opts.Confirmed(ctx) == nil {
				a.removeOrphans(ctx, sandboxes)
			}
		})
	}
	a.log.Info("agent is running", "nodeName", a.opts.NodeName, "sandboxes", len(sandboxes))
	return nil
}

// onChange calls f for what is there, not for what is gone.
func onChange(f func(client.Object)) func(old, current client.Object) {
	return func(_, current client.Object) {
		if current != nil {
			f(current)
		}
	}
}

// podChanged hands a pod of this node to its worker. known is what the runtime had when the
// agent started.
func (a *Agent) podChanged(object client.Object, known map[types.UID]container.SandboxStatus) {
	pod, ok := object.(*corev1.Pod)
	if !ok || pod.Spec.NodeName != a.opts.NodeName {
		return
	}
	if isMirror(pod) {
		a.statics.mirrorChanged(pod)
		return
	}
	a.mu.Lock()
	w := a.workers[pod.UID]
	if w == nil {
		w = newWorker(a, pod)
		if s, ok := known[pod.UID]; ok {
			w.adopt(s)
		}
		a.workers[pod.UID] = w
	}
	a.mu.Unlock()
	w.update(pod)
}

func (a *Agent) podDeleted(object client.Object) {
	pod, ok := object.(*corev1.Pod)
	if !ok || pod.Spec.NodeName != a.opts.NodeName {
		return
	}
	if isMirror(pod) {
		a.statics.mirrorDeleted(pod)
		return
	}
	a.mu.Lock()
	w := a.workers[pod.UID]
	a.mu.Unlock()
	if w != nil {
		w.remove()
	}
}

// sourceChanged wakes the pods that use a ConfigMap or Secret.
func (a *Agent) sourceChanged(object client.Object, secret bool) {
	a.mu.Lock()
	var users []*worker
	for _, w := range a.workers {
		if w.uses(object.GetNamespace(), object.GetName(), secret) {
			users = append(users, w)
		}
	}
	a.mu.Unlock()
	for _, w := range users {
		w.dirty.Store(true)
		w.notify()
	}
}

// removeOrphans removes sandboxes whose pod is gone from the API: deleted while the agent was
// away. Their containers get a second to end, as the kubelet gives them.
func (a *Agent) removeOrphans(ctx context.Context, sandboxes []container.SandboxStatus) {
	var keep []string
	for _, s := range sandboxes {
		uid := types.UID(s.Sandbox.ID)
		a.mu.Lock()
		_, known := a.workers[uid]
		a.mu.Unlock()
		if known {
			keep = append(keep, s.Sandbox.ID)
			continue
		}
		if a.statics.isOrphan(uid) {
			continue // on its way out already
		}
		a.spawn(func(ctx context.Context) { a.removeOrphan(ctx, s) })
	}
	a.devices.Reconcile(func(uid types.UID) bool {
		return slices.ContainsFunc(sandboxes, func(s container.SandboxStatus) bool { return s.Sandbox.ID == string(uid) }) || a.knows(uid)
	})
	if err := a.network.Reconcile(ctx, keep); err != nil {
		a.log.Warn("cannot clean up the networks of pods that are gone", "error", err)
	}
}

func (a *Agent) removeOrphan(ctx context.Context, s container.SandboxStatus) {
	log := a.log.With("namespace", s.Sandbox.Namespace, "name", s.Sandbox.Name, "uid", s.Sandbox.ID)
	log.Info("removing a pod that was deleted while the agent was away")
	for delay := time.Second; ; delay = min(2*delay, time.Minute) {
		err := a.dropSandbox(ctx, s)
		if err == nil {
			a.devices.Release(types.UID(s.Sandbox.ID))
			err = a.tearDownVolumes(ctx, types.UID(s.Sandbox.ID))
		}
		if err == nil {
			err = a.removeFiles(s.Sandbox.Namespace, s.Sandbox.Name, types.UID(s.Sandbox.ID))
		}
		if err == nil {
			return
		}
		log.Warn("cannot remove a pod that is gone", "error", err)
		if !lifecycle.Pause(ctx, delay) {
			return
		}
	}
}

// dropSandbox stops what runs in a sandbox at once and removes it with its network.
func (a *Agent) dropSandbox(ctx context.Context, s container.SandboxStatus) error {
	for _, c := range s.Containers {
		if c.State == container.StateRunning {
			if err := a.runtime.StopContainer(ctx, c.ID, time.Second); err != nil {
				return fmt.Errorf("stopping container %s: %w", c.Name, err)
			}
		}
	}
	if err := a.runtime.RemoveSandbox(ctx, s.Sandbox.ID); err != nil {
		return fmt.Errorf("removing the sandbox: %w", err)
	}
	if s.Sandbox.NetNSPath == "" {
		return nil
	}
	if err := a.network.Teardown(ctx, s.Sandbox.ID); err != nil {
		return fmt.Errorf("removing the pod's network: %w", err)
	}
	return nil
}

// knows reports whether the agent looks after a pod.
func (a *Agent) knows(uid types.UID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.workers[uid] != nil
}

// forget drops a worker that has nothing left to do.
func (a *Agent) forget(w *worker) {
	a.mu.Lock()
	if a.workers[w.uid] == w {
		delete(a.workers, w.uid)
	}
	a.mu.Unlock()
	if w.static.Name != "" {
		a.statics.next(w.static)
	}
}

// stopWorkers keeps new workers from starting; those that run end with Run's context.
func (a *Agent) stopWorkers() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running = false
}

// Pods returns the pods that the agent looks after, with their newest status.
func (a *Agent) Pods() []*corev1.Pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]*corev1.Pod, 0, len(a.workers))
	for _, w := range a.workers {
		list = append(list, w.snapshot())
	}
	return list
}

// Pod returns one of the node's pods by name, with its newest status.
func (a *Agent) Pod(namespace, name string) (*corev1.Pod, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var found *corev1.Pod
	for _, w := range a.workers {
		pod := w.snapshot()
		if pod.Namespace == namespace && pod.Name == name && (found == nil || found.CreationTimestamp.Before(&pod.CreationTimestamp)) {
			found = pod
		}
	}
	return found, found != nil
}

// gone reports whether the API says that a pod of that UID is no more.
func (a *Agent) gone(ctx context.Context, pod *corev1.Pod) bool {
	if isStatic(pod) {
		return false // its file says when it goes
	}
	var current corev1.Pod
	err := a.client.Get(ctx, client.ObjectKeyFromObject(pod), &current)
	return apierrors.IsNotFound(err) || err == nil && current.UID != pod.UID
}
