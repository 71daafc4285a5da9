package agent

import (
	"fmt"
	"runtime"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/agent/admission"
	"gantry.dev/gantry/internal/agent/eviction"
	"gantry.dev/gantry/internal/agent/podstatus"
	"gantry.dev/gantry/internal/agent/resize"
)

// roomCheck is how often a pod looks whether those that make room for it have ended.
const roomCheck = 250 * time.Millisecond

// admit decides whether a new pod runs here and counts it from then on. failure is why it does
// not; wait is when to ask again, because others are being ended for it.
func (a *Agent) admit(w *worker, pod *corev1.Pod) (failure *podstatus.Waiting, wait time.Duration) {
	a.mu.Lock()
	if w.admitted {
		a.mu.Unlock()
		return nil, 0
	}
	refusal, victims, wait := a.judgeLocked(w, pod)
	if refusal == nil && wait == 0 {
		a.countLocked(w, resize.Asked(pod))
	}
	a.mu.Unlock()
	for _, v := range victims {
		a.preempt(v)
	}
	if refusal != nil {
		a.events.pod(pod, corev1.EventTypeWarning, refusal.Reason, refusal.Message)
		return &podstatus.Waiting{Reason: refusal.Reason, Message: "Pod was rejected: " + refusal.Message}, 0
	}
	if wait == 0 {
		a.classesChanged()
	}
	return nil, wait
}

// count takes a pod that runs here already into account.
func (a *Agent) count(w *worker, granted resize.Grant) {
	a.mu.Lock()
	a.countLocked(w, granted)
	a.mu.Unlock()
	a.classesChanged()
}

func (a *Agent) countLocked(w *worker, granted resize.Grant) {
	w.admitted, w.counts = true, &granted
}

// grantedLocked is a worker's pod with what it was granted. a.mu is held.
func (w *worker) grantedLocked() *corev1.Pod {
	pod := w.current()
	if w.counts == nil {
		return pod
	}
	return w.counts.Apply(pod)
}

// judgeLocked checks a pod against all others that count. a.mu is held.
func (a *Agent) judgeLocked(w *worker, pod *corev1.Pod) (refusal *admission.Refusal, victims []*worker, wait time.Duration) {
	if message := eviction.Refusal(a.pressure.current(), pod); message != "" {
		return &admission.Refusal{Reason: eviction.Reason, Message: message}, nil, 0
	}
	var all, staying []*corev1.Pod
	byPod := map[*corev1.Pod]*worker{}
	for _, other := range a.workers {
		// What the API has forgotten has no claim any more, though its containers may still end.
		if other == w || !other.admitted || other.done() || other.isRemoved() {
			continue
		}
		granted := other.grantedLocked()
		all = append(all, granted)
		if !other.isEnding() {
			staying = append(staying, granted)
			byPod[granted] = other
		}
	}
	in := admission.Input{
		Pod: pod, Others: all, Node: a.node.Load(), Allocatable: a.allocatable(), NodeName: a.opts.NodeName, OS: runtime.GOOS,
		Static: pod.Annotations["kubernetes.io/config.source"] != "" && pod.Annotations["kubernetes.io/config.source"] != "api",
	}
	if refusal := admission.Unfit(in); refusal != nil {
		return refusal, nil, 0
	}
	failures := admission.Check(in)
	if len(failures) == 0 {
		return a.shutdownRefusal(), nil, 0
	}
	if eviction.Critical(pod) {
		in.Others = staying
		if failures = admission.Check(in); len(failures) == 0 {
			return nil, nil, roomCheck // room is being made
		}
	}
	chosen, standing, err := admission.MakeRoom(pod, staying, failures)
	if err != nil {
		return &admission.Refusal{
			Reason:  "UnexpectedAdmissionError",
			Message: fmt.Sprintf("Unexpected error while attempting to recover from admission failure: %v", err),
		}, nil, 0
	}
	if len(standing) > 0 {
		refusal := standing[0].Refusal()
		return &refusal, nil, 0
	}
	for _, victim := range chosen {
		victims = append(victims, byPod[victim])
	}
	return nil, victims, roomCheck
}

// preempt ends a pod for one that the system needs.
func (a *Agent) preempt(w *worker) {
	pod := w.current()
	a.events.pod(pod, corev1.EventTypeWarning, admission.PreemptReason, admission.PreemptMessage)
	a.log.Info("a pod makes room for one that the system needs", "namespace", pod.Namespace, "name", pod.Name, "uid", pod.UID)
	w.end(ending{reason: admission.PreemptReason, message: admission.PreemptMessage, condition: admission.PreemptCondition})
}
