package registry

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestTruncateTimes(t *testing.T) {
	at := time.Date(2026, 5, 4, 3, 2, 1, 987654321, time.UTC)
	long, short := metav1.NewTime(at), metav1.NewTime(at.Truncate(time.Second))
	micro := metav1.NewMicroTime(at)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{CreationTimestamp: long, DeletionTimestamp: &metav1.Time{Time: at}},
		Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{LastTransitionTime: long}, {LastTransitionTime: short}}},
	}
	truncateTimes(pod)
	for name, got := range map[string]metav1.Time{
		"creation": pod.CreationTimestamp, "deletion": *pod.DeletionTimestamp, "condition": pod.Status.Conditions[0].LastTransitionTime, "whole": pod.Status.Conditions[1].LastTransitionTime,
	} {
		if got != short {
			t.Errorf("%s is %v", name, got.Time)
		}
	}
	budget := &policyv1.PodDisruptionBudget{Status: policyv1.PodDisruptionBudgetStatus{DisruptedPods: map[string]metav1.Time{"a": long, "b": short}}}
	truncateTimes(budget)
	if budget.Status.DisruptedPods["a"] != short || budget.Status.DisruptedPods["b"] != short {
		t.Errorf("budget has %v", budget.Status.DisruptedPods)
	}
	event := &corev1.Event{EventTime: micro}
	truncateTimes(event)
	if event.EventTime != micro {
		t.Errorf("a time with microseconds became %v", event.EventTime)
	}
	truncateTimes((*corev1.Pod)(nil))
}

func BenchmarkTruncateTimes(b *testing.B) {
	at := metav1.NewTime(time.Now().Truncate(time.Second))
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: at}}
	for range 5 {
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{LastTransitionTime: at})
	}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at}}}}
	b.ReportAllocs()
	for b.Loop() {
		truncateTimes(pod)
	}
}
