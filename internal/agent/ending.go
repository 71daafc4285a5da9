package agent

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/agent/podstatus"
)

// ending is why the agent itself ends a pod: its node lacks something, or stops.
type ending struct {
	reason, message string
	grace           *time.Duration // what its containers get at most; nil is what the pod asks for
	condition       string         // message of the DisruptionTarget condition; "" sets none
}

// end makes the worker end its pod as failed. The first call counts; a later one can only
// shorten the grace.
func (w *worker) end(e ending) {
	w.mu.Lock()
	if w.ending != nil {
		if e.grace == nil || w.ending.grace != nil && *w.ending.grace <= *e.grace {
			w.mu.Unlock()
			return
		}
		shorter := *w.ending
		shorter.grace = e.grace
		e = shorter
	}
	w.ending = &e
	if w.cancel != nil {
		w.cancel()
	}
	w.mu.Unlock()
	w.notify()
}

// takeEnding makes an ending that was asked for the pod's failure. It belongs to the goroutine.
func (w *worker) takeEnding(pod *corev1.Pod) {
	w.mu.Lock()
	e := w.ending
	w.mu.Unlock()
	if e == nil {
		return
	}
	w.graceLimit = e.grace
	if w.failure != nil {
		return
	}
	w.failure = &podstatus.Waiting{Reason: e.reason, Message: e.message}
	if e.condition != "" {
		w.disruption = &corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, ObservedGeneration: pod.Generation,
			Reason: corev1.PodReasonTerminationByKubelet, Message: e.condition,
		}
	}
}

// isEnding reports whether the pod is on its way out, by whomever.
func (w *worker) isEnding() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ending != nil || w.removed || w.pod.DeletionTimestamp != nil
}

// waitEnded waits until nothing of the pod is left on the node, or limit has passed; false then.
func (w *worker) waitEnded(ctx context.Context, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-w.ended:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// activeWorkers are those of pods that have something running or are to run it.
func (a *Agent) activeWorkers() []*worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []*worker
	for _, w := range a.workers {
		if w.admitted && !w.done() {
			list = append(list, w)
		}
	}
	return list
}
