package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/agent/podstatus"
	"gantry.dev/gantry/internal/container"
)

// minGrace is what a container gets at least between the stop signal and SIGKILL.
const minGrace = 2 * time.Second

// grace is how long a container of the pod may take to end.
func grace(pod *corev1.Pod, c *corev1.Container, reason podstatus.KillReason) time.Duration {
	seconds := func(n int64) time.Duration { return time.Duration(n) * time.Second }
	if pod.DeletionGracePeriodSeconds != nil {
		return seconds(*pod.DeletionGracePeriodSeconds)
	}
	if pod.Spec.TerminationGracePeriodSeconds == nil {
		return minGrace
	}
	if c != nil && reason == podstatus.KillStartupProbe && c.StartupProbe != nil && c.StartupProbe.TerminationGracePeriodSeconds != nil {
		return seconds(*c.StartupProbe.TerminationGracePeriodSeconds)
	}
	if c != nil && reason == podstatus.KillLivenessProbe && c.LivenessProbe != nil && c.LivenessProbe.TerminationGracePeriodSeconds != nil {
		return seconds(*c.LivenessProbe.TerminationGracePeriodSeconds)
	}
	return seconds(*pod.Spec.TerminationGracePeriodSeconds)
}

// killOne stops one container: its preStop hook first, counted into the grace period.
func (w *worker) killOne(ctx context.Context, pod *corev1.Pod, kill podstatus.Kill) error {
	c := podstatus.Container(pod, kill.Name)
	return w.stop(ctx, pod, c, kill, grace(pod, c, kill.Reason), nil)
}

func (w *worker) stop(ctx context.Context, pod *corev1.Pod, c *corev1.Container, kill podstatus.Kill, left time.Duration, turn func(left time.Duration) error) error {
	a := w.agent
	message := kill.Message
	if message == "" {
		message = "Stopping container " + kill.Name
	}
	if w.firstKill(kill.ID) {
		a.events.containerNamed(pod, kill.Name, corev1.EventTypeNormal, "Killing", message)
		if c != nil && c.Lifecycle != nil && c.Lifecycle.PreStop != nil && left > 0 {
			left -= w.preStop(ctx, pod, c, kill.ID, left)
		}
	}
	if turn != nil && left > 0 {
		start := time.Now()
		if err := turn(left); err != nil {
			return err
		}
		left -= time.Since(start)
	}
	if err := a.runtime.StopContainer(ctx, kill.ID, max(left, minGrace)); err != nil {
		return fmt.Errorf("stopping container %s: %w", kill.Name, err)
	}
	w.stale.Store(true)
	return nil
}

// firstKill reports whether the container is killed for the first time, so that a shortened
// grace period neither repeats the hook nor the event.
func (w *worker) firstKill(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.killed == nil {
		w.killed = map[string]bool{}
	}
	first := !w.killed[id]
	w.killed[id] = true
	return first
}

// preStop runs the hook for at most the grace period and returns how long it took, in whole
// seconds as the kubelet counts.
func (w *worker) preStop(ctx context.Context, pod *corev1.Pod, c *corev1.Container, id string, left time.Duration) time.Duration {
	start := time.Now()
	hookCtx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	if _, err := w.runHook(hookCtx, pod, c, id, c.Lifecycle.PreStop); err != nil && !errors.Is(hookCtx.Err(), context.DeadlineExceeded) && ctx.Err() == nil {
		w.agent.events.container(pod, c, corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
	}
	return time.Since(start).Truncate(time.Second)
}

// killAll stops every container of the pod at once; sidecars end after the app containers, in
// reverse order of their start.
func (w *worker) killAll(ctx context.Context, pod *corev1.Pod, removed bool) error {
	running := w.observed.Running()
	if len(running) == 0 {
		return nil
	}
	order := newStopOrder(pod, running)
	group, ctx := errgroup.WithContext(ctx)
	for _, status := range running {
		group.Go(func() error {
			defer order.ended(status.Name)
			c := podstatus.Container(pod, status.Name)
			left := grace(pod, c, podstatus.KillOther)
			if w.graceLimit != nil {
				left = min(left, *w.graceLimit)
			}
			if removed && pod.DeletionTimestamp == nil {
				left = min(left, 30*time.Second) // deleted without grace: nobody waits for it
			}
			if removed && pod.DeletionTimestamp != nil {
				left = minGrace // the API let go of the pod before it ended: forced
			}
			turn := func(left time.Duration) error { return order.wait(ctx, status.Name, left) }
			return w.stop(ctx, pod, c, podstatus.Kill{ID: status.ID, Name: status.Name}, left, turn)
		})
	}
	return group.Wait()
}

// stopOrder makes sidecars wait for what may still need them.
type stopOrder struct {
	after map[string][]string // container to those that must end before
	mu    sync.Mutex
	done  map[string]chan struct{} // closed when a container has ended
}

func newStopOrder(pod *corev1.Pod, running []container.Status) *stopOrder {
	o := &stopOrder{after: map[string][]string{}, done: map[string]chan struct{}{}}
	for _, c := range running {
		if _, ok := o.done[c.Name]; !ok {
			o.done[c.Name] = make(chan struct{})
		}
	}
	var before []string
	for i := range pod.Spec.Containers {
		before = append(before, pod.Spec.Containers[i].Name)
	}
	for i := len(pod.Spec.InitContainers) - 1; i >= 0; i-- {
		c := &pod.Spec.InitContainers[i]
		if podstatus.Restartable(c) {
			o.after[c.Name] = before
			before = append(before[:len(before):len(before)], c.Name)
		}
	}
	return o
}

func (o *stopOrder) ended(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case <-o.done[name]:
	default:
		close(o.done[name])
	}
}

// wait blocks until it is name's turn or left has passed.
func (o *stopOrder) wait(ctx context.Context, name string, left time.Duration) error {
	timer := time.NewTimer(left)
	defer timer.Stop()
	for _, other := range o.after[name] {
		done, ok := o.done[other]
		if !ok {
			continue
		}
		select {
		case <-done:
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
