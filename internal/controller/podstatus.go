package controller

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// PodCondition is the condition of that kind in a pod's status, nil if it has none.
func PodCondition(pod *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == kind {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// PodReady says whether a pod takes requests.
func PodReady(pod *corev1.Pod) bool {
	c := PodCondition(pod, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// PatchPodStatus sets conditions of a pod, and its phase if phase is not empty, unless it
// has been replaced by another pod of its name. Other parts of the status stay.
func PatchPodStatus(ctx context.Context, c client.Client, pod *corev1.Pod, phase corev1.PodPhase, conditions ...corev1.PodCondition) error {
	status := map[string]any{}
	if phase != "" {
		status["phase"] = phase
	}
	for i := range conditions {
		conditions[i].ObservedGeneration = pod.Generation
	}
	if len(conditions) > 0 {
		status["conditions"] = conditions
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": status})
	if err != nil {
		return fmt.Errorf("encoding a pod's status: %w", err)
	}
	target := pod.DeepCopy()
	return c.Status().Patch(ctx, target, client.RawPatch(types.StrategicMergePatchType, body))
}
