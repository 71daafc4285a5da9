package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// job is a write that a decision leads to: a binding to node, or, without a node, the
// message why there is none.
type job struct {
	pod     *corev1.Pod
	node    string
	message string
}

// write does a job. A panic costs the pod a retry, not the process.
func (s *Scheduler) write(ctx context.Context, j job) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.BindTimeout)
	defer cancel()
	defer func() {
		if cause := recover(); cause != nil {
			s.opts.Log.Error("write panicked", "namespace", j.pod.Namespace, "name", j.pod.Name, "panic", cause)
			if j.node != "" {
				s.unassume(j.pod)
			}
		}
	}()
	if j.node == "" {
		s.report(ctx, j.pod, corev1.PodReasonUnschedulable, j.message)
		return
	}
	err := s.bind(ctx, j.pod, j.node)
	if err == nil {
		s.mu.Lock()
		s.stats.Bound++
		s.dequeue(j.pod)
		s.mu.Unlock()
		s.recorder.Event(j.pod, corev1.EventTypeNormal, "Scheduled",
			fmt.Sprintf("Successfully assigned %s/%s to %s", j.pod.Namespace, j.pod.Name, j.node))
		return
	}
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return // the scheduler stops
	}
	s.unassume(j.pod)
	if apierrors.IsNotFound(err) {
		return // the pod was deleted meanwhile
	}
	s.opts.Log.Warn("binding will be retried", "namespace", j.pod.Namespace, "name", j.pod.Name, "nodeName", j.node, "error", err)
	s.report(ctx, j.pod, corev1.PodReasonSchedulerError, fmt.Sprintf("binding rejected: %v", err))
}

func (s *Scheduler) bind(ctx context.Context, pod *corev1.Pod, node string) error {
	target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}}
	return s.client.SubResource("binding").Create(ctx, target, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	})
}

// unassume takes back an assumed binding and lets the pod wait. If an event has shown
// the pod on a node, or gone, meanwhile, that stands.
func (s *Scheduler) unassume(pod *corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.BindErrors++
	if _, ok := s.assumed[pod.UID]; !ok {
		return
	}
	delete(s.assumed, pod.UID)
	if node, ok := s.state.RemovePod(pod.UID); ok {
		s.retryOn(node)
	}
	if w, ok := s.queue.pods[pod.UID]; ok {
		w.message = ""
		s.queue.backOff(w, time.Now())
		s.poke()
	}
}

// report writes the PodScheduled condition and an event.
func (s *Scheduler) report(ctx context.Context, pod *corev1.Pod, reason, message string) {
	s.recorder.Event(pod, corev1.EventTypeWarning, "FailedScheduling", message)
	condition := corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: reason, Message: message,
		ObservedGeneration: pod.Generation, LastTransitionTime: metav1.Now(),
	}
	for i := range pod.Status.Conditions {
		have := &pod.Status.Conditions[i]
		if have.Type != condition.Type {
			continue
		}
		if have.Status == condition.Status {
			condition.LastTransitionTime = have.LastTransitionTime
			if have.Reason == reason && have.Message == message {
				return
			}
		}
	}
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": pod.UID},
		"status":   map[string]any{"conditions": []corev1.PodCondition{condition}},
	})
	if err == nil {
		target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}}
		err = s.client.Status().Patch(ctx, target, client.RawPatch(types.StrategicMergePatchType, body))
	}
	if err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		s.opts.Log.Warn("condition not written", "namespace", pod.Namespace, "name", pod.Name, "error", err)
	}
}
