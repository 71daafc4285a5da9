package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"gantry.dev/gantry/internal/agent/admission"
	"gantry.dev/gantry/internal/agent/podconfig"
	"gantry.dev/gantry/internal/agent/podstatus"
	"gantry.dev/gantry/internal/agent/resize"
	"gantry.dev/gantry/internal/container"
)

// resizeRetry is how often resizes that had no room are tried again without an event.
const resizeRetry = 3 * time.Minute

// wish is a resize that is not granted. It is guarded by Agent.mu.
type wish struct {
	pod     *corev1.Pod // as it asks to be
	since   time.Time
	granted bool
	refusal *admission.Refusal
}

// resizeState is what a worker keeps of its pod's resources. It belongs to the goroutine.
type resizeState struct {
	record   resize.Record
	known    bool                // record is filled in
	applied  container.Resources // limits of the pod's own cgroup, as last set
	pending  *corev1.PodCondition
	progress *corev1.PodCondition
}

// adoptResize takes over what an earlier agent has granted.
func (w *worker) adoptResize(s container.Sandbox) {
	w.resize.applied = s.Resources
	w.resize.record = resize.Record{Granted: resize.Asked(w.pod)} // what an older Gantry has made
	if text := s.Annotations[resize.Annotation]; text != "" {
		if record, err := resize.Parse(text); err == nil {
			w.resize.record = record
		}
	}
	w.resize.known = true
	for i := range w.pod.Status.Conditions {
		switch c := &w.pod.Status.Conditions[i]; c.Type {
		case corev1.PodResizePending:
			w.resize.pending = c.DeepCopy()
		case corev1.PodResizeInProgress:
			w.resize.progress = c.DeepCopy()
		}
	}
}

// takeCount makes the worker count with what its pod was granted; wait and failure are admit's.
func (w *worker) takeCount(pod *corev1.Pod) (failure *podstatus.Waiting, wait time.Duration) {
	if w.counted {
		return nil, 0
	}
	if !w.resize.known {
		w.resize.record = resize.Record{Granted: resize.Asked(pod)}
	}
	if !w.seenPod && pod.Status.Phase != corev1.PodRunning {
		if failure, wait = w.agent.admit(w, pod); failure != nil || wait > 0 {
			return failure, wait
		}
	} else {
		w.agent.count(w, w.resize.record.Granted)
	}
	w.counted, w.resize.known = true, true
	return nil, 0
}

// settleResize decides about resources that the pod asks for and was not granted, and returns
// the pod with what it was granted.
func (w *worker) settleResize(ctx context.Context, pod *corev1.Pod) (*corev1.Pod, error) {
	if !w.resize.known || w.failure != nil {
		return w.granted(pod), nil
	}
	granted := w.resize.record.Granted.Apply(pod)
	if granted == pod {
		if w.resize.pending != nil { // taken back
			w.resize.pending = nil
			w.agent.dropWish(w)
		}
		return pod, nil
	}
	ok, refusal := w.agent.askResize(w, pod)
	if !ok {
		w.refuse(pod, refusal)
		return granted, nil
	}
	w.resize.pending = nil
	w.resize.record = w.resize.record.Accept(resize.Asked(pod), w.runningNames())
	now := metav1.Now().Rfc3339Copy()
	w.resize.progress = &corev1.PodCondition{
		Type: corev1.PodResizeInProgress, Status: corev1.ConditionTrue, ObservedGeneration: pod.Generation, LastProbeTime: now, LastTransitionTime: now,
	}
	w.agent.events.pod(pod, corev1.EventTypeNormal, "ResizeStarted", resize.Message("Pod resize started", pod, pod.Generation, ""))
	return pod, w.keepRecord(ctx, pod)
}

// granted is the pod with what it was granted.
func (w *worker) granted(pod *corev1.Pod) *corev1.Pod {
	if !w.resize.known {
		return pod
	}
	return w.resize.record.Granted.Apply(pod)
}

// refuse reports that a resize waits for room.
func (w *worker) refuse(pod *corev1.Pod, refusal admission.Refusal) {
	before, now := w.resize.pending, metav1.Now().Rfc3339Copy()
	next := &corev1.PodCondition{
		Type: corev1.PodResizePending, Status: corev1.ConditionTrue, ObservedGeneration: pod.Generation,
		Reason: corev1.PodReasonDeferred, Message: refusal.Message, LastProbeTime: now, LastTransitionTime: now,
	}
	told := before != nil && before.Reason == next.Reason
	if told {
		next.LastTransitionTime = before.LastTransitionTime
		if before.Message == next.Message && before.ObservedGeneration == next.ObservedGeneration {
			return
		}
	}
	w.resize.pending = next
	if !told || before.ObservedGeneration != next.ObservedGeneration {
		w.agent.events.pod(pod, corev1.EventTypeWarning, "ResizeDeferred",
			resize.Message("Pod resize "+next.Reason, pod, pod.Generation, refusal.Message))
	}
}

// runningNames maps the IDs of running containers to their names.
func (w *worker) runningNames() map[string]string {
	names := map[string]string{}
	for _, c := range w.observed.Running() {
		names[c.ID] = c.Name
	}
	return names
}

// resizeConditions are the conditions to report.
func (w *worker) resizeConditions() []corev1.PodCondition {
	var list []corev1.PodCondition
	for _, c := range []*corev1.PodCondition{w.resize.pending, w.resize.progress} {
		if c != nil {
			list = append(list, *c)
		}
	}
	return list
}

// keepRecord writes the record down with the sandbox, so that it survives the agent.
func (w *worker) keepRecord(ctx context.Context, pod *corev1.Pod) error {
	if !w.sandbox {
		return nil // written when it is made
	}
	if err := w.agent.runtime.EnsureSandbox(ctx, w.sandboxSpec(pod)); err != nil {
		return fmt.Errorf("writing down what the pod was granted: %w", err)
	}
	return nil
}

// askResize wants a pod's resources changed. It grants that if the others leave room, and
// decides about all that wait, in their order.
func (a *Agent) askResize(w *worker, pod *corev1.Pod) (granted bool, refusal admission.Refusal) {
	a.mu.Lock()
	if w.wish == nil {
		w.wish = &wish{since: time.Now()}
		if p := w.resize.pending; p != nil {
			w.wish.since = p.LastTransitionTime.Time
		}
	}
	w.wish.pod = pod
	if w.wish.granted { // of an earlier version of the pod
		w.wish.granted = false
	}
	others, victims := a.decideResizesLocked()
	granted = w.wish.granted
	if granted {
		w.wish = nil
	} else if w.wish.refusal != nil {
		refusal = *w.wish.refusal
	}
	a.mu.Unlock()
	for _, v := range victims {
		a.preempt(v)
	}
	for _, other := range others {
		if other != w {
			other.notify()
		}
	}
	if granted {
		a.classesChanged()
	}
	return granted, refusal
}

func (a *Agent) dropWish(w *worker) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.wish = nil
}

// roomChanged tries resizes that wait, because something has become free.
func (a *Agent) roomChanged() {
	a.mu.Lock()
	granted, victims := a.decideResizesLocked()
	a.mu.Unlock()
	for _, v := range victims {
		a.preempt(v)
	}
	for _, w := range granted {
		w.notify()
	}
}

// decideResizesLocked grants what there is room for and returns whom. a.mu is held.
func (a *Agent) decideResizesLocked() (granted, victims []*worker) {
	var waiting []*worker
	for _, w := range a.workers {
		if w.wish != nil && !w.wish.granted && w.counts != nil {
			waiting = append(waiting, w)
		}
	}
	if len(waiting) == 0 {
		return nil, nil
	}
	slices.SortStableFunc(waiting, firstResize)
	for _, w := range waiting {
		refusal, chosen, wait := a.judgeLocked(w, w.wish.pod)
		victims = append(victims, chosen...)
		switch {
		case refusal != nil:
			w.wish.refusal = refusal
		case wait > 0:
			w.wish.refusal = &admission.Refusal{Reason: admission.PreemptReason, Message: "Pods are being ended to make room"}
		default:
			w.wish.granted = true
			a.countLocked(w, resize.Asked(w.wish.pod))
			granted = append(granted, w)
		}
	}
	return granted, victims
}

// firstResize orders resizes that wait: those that ask for no more, then by priority, then
// guaranteed pods, then those that wait for longest. a.mu is held.
func firstResize(a, b *worker) int {
	grows := func(w *worker) int {
		opts := resourcehelper.PodResourcesOptions{}
		if resize.Increases(resourcehelper.PodRequests(w.wish.pod, opts), resourcehelper.PodRequests(w.counts.Apply(w.wish.pod), opts)) {
			return 1
		}
		return 0
	}
	priority := func(w *worker) int32 {
		if p := w.wish.pod.Spec.Priority; p != nil {
			return *p
		}
		return 0
	}
	class := func(w *worker) int {
		if podconfig.Class(w.wish.pod) == corev1.PodQOSGuaranteed {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(grows(a), grows(b)), cmp.Compare(priority(b), priority(a)), cmp.Compare(class(a), class(b)),
		a.wish.since.Compare(b.wish.since))
}
