package podstatus

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reasons of pod conditions.
const (
	reasonUnknownStatuses = "UnknownContainerStatuses"
	reasonCompleted       = "PodCompleted"
	reasonFailed          = "PodFailed"
	reasonNotReady        = "ContainersNotReady"
	reasonNotInitialized  = "ContainersNotInitialized"
	reasonGates           = "ReadinessGatesNotReady"
)

// owned reports whether the agent, and nobody else, sets a condition.
func owned(kind corev1.PodConditionType) bool {
	switch kind {
	case corev1.PodScheduled, corev1.PodReady, corev1.PodInitialized, corev1.ContainersReady,
		corev1.PodReadyToStartContainers, corev1.PodResizeInProgress, corev1.PodResizePending:
		return true
	}
	return false
}

// conditions returns the pod's conditions: those of others as they are, then the agent's.
func conditions(pod *corev1.Pod, hasSandbox bool, status *corev1.PodStatus) []corev1.PodCondition {
	var list []corev1.PodCondition
	for _, c := range pod.Status.Conditions {
		if !owned(c.Type) {
			list = append(list, c)
		}
	}
	sandbox := corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionFalse}
	if hasSandbox {
		sandbox.Status = corev1.ConditionTrue
	}
	all := slices.Concat(status.InitContainerStatuses, status.ContainerStatuses)
	own := []corev1.PodCondition{
		sandbox,
		initializedCondition(pod, all, status.Phase),
		readyCondition(pod, list, all, status.Phase),
		containersReadyCondition(pod, all, status.Phase),
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
	}
	for i := range own {
		own[i].ObservedGeneration = pod.Generation
	}
	return append(list, own...)
}

func containersReadyCondition(pod *corev1.Pod, statuses []corev1.ContainerStatus, phase corev1.PodPhase) corev1.PodCondition {
	condition := corev1.PodCondition{Type: corev1.ContainersReady, Status: corev1.ConditionFalse}
	unknown, unready := []string{}, []string{}
	add := func(name string) {
		if status := find(statuses, name); status == nil {
			unknown = append(unknown, name)
		} else if !status.Ready {
			unready = append(unready, name)
		}
	}
	for i := range pod.Spec.InitContainers {
		if Restartable(&pod.Spec.InitContainers[i]) {
			add(pod.Spec.InitContainers[i].Name)
		}
	}
	for i := range pod.Spec.Containers {
		add(pod.Spec.Containers[i].Name)
	}
	var messages []string
	if len(unknown) > 0 {
		messages = append(messages, fmt.Sprintf("containers with unknown status: %s", unknown))
	}
	if len(unready) > 0 {
		messages = append(messages, fmt.Sprintf("containers with unready status: %s", unready))
	}
	switch {
	case len(statuses) == 0:
		condition.Reason = reasonUnknownStatuses
	case phase == corev1.PodSucceeded && len(unknown) == 0:
		condition.Reason = reasonCompleted
	case phase == corev1.PodFailed:
		condition.Reason = reasonFailed
	case len(messages) > 0:
		condition.Reason, condition.Message = reasonNotReady, strings.Join(messages, ", ")
	default:
		condition.Status = corev1.ConditionTrue
	}
	return condition
}

func readyCondition(pod *corev1.Pod, others []corev1.PodCondition, statuses []corev1.ContainerStatus, phase corev1.PodPhase) corev1.PodCondition {
	condition := containersReadyCondition(pod, statuses, phase)
	condition.Type = corev1.PodReady
	if condition.Status != corev1.ConditionTrue {
		return condition
	}
	var messages []string
	for _, gate := range pod.Spec.ReadinessGates {
		i := slices.IndexFunc(others, func(c corev1.PodCondition) bool { return c.Type == gate.ConditionType })
		switch {
		case i < 0:
			messages = append(messages, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", string(gate.ConditionType)))
		case others[i].Status != corev1.ConditionTrue:
			messages = append(messages, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", string(gate.ConditionType), others[i].Status))
		}
	}
	if len(messages) > 0 {
		condition.Status, condition.Reason, condition.Message = corev1.ConditionFalse, reasonGates, strings.Join(messages, ", ")
	}
	return condition
}

func initializedCondition(pod *corev1.Pod, statuses []corev1.ContainerStatus, phase corev1.PodPhase) corev1.PodCondition {
	condition := corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}
	if len(statuses) == 0 && len(pod.Spec.InitContainers) > 0 {
		condition.Status, condition.Reason = corev1.ConditionFalse, reasonUnknownStatuses
		return condition
	}
	unknown, incomplete := []string{}, []string{}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		status := find(statuses, c.Name)
		switch {
		case status == nil:
			unknown = append(unknown, c.Name)
		case Restartable(c) && (status.Started == nil || !*status.Started), !Restartable(c) && !status.Ready:
			incomplete = append(incomplete, c.Name)
		}
	}
	var messages []string
	if len(unknown) > 0 {
		messages = append(messages, fmt.Sprintf("containers with unknown status: %s", unknown))
	}
	if len(incomplete) > 0 {
		messages = append(messages, fmt.Sprintf("containers with incomplete status: %s", incomplete))
	}
	switch {
	case phase == corev1.PodSucceeded && len(unknown) == 0:
		condition.Reason = reasonCompleted
	case mainStarted(pod, statuses), len(messages) == 0:
	default:
		condition.Status, condition.Reason, condition.Message = corev1.ConditionFalse, reasonNotInitialized, strings.Join(messages, ", ")
	}
	return condition
}

// mainStarted reports whether an app container runs or has run.
func mainStarted(pod *corev1.Pod, statuses []corev1.ContainerStatus) bool {
	for i := range pod.Spec.Containers {
		if s := find(statuses, pod.Spec.Containers[i].Name); s != nil && (s.State.Running != nil || s.State.Terminated != nil) {
			return true
		}
	}
	return false
}

// disrupted sets the condition of a pod that its node ends.
func disrupted(list []corev1.PodCondition, condition *corev1.PodCondition) []corev1.PodCondition {
	if condition == nil {
		return list
	}
	i := slices.IndexFunc(list, func(c corev1.PodCondition) bool { return c.Type == condition.Type })
	if i < 0 {
		return append(list, *condition)
	}
	list = slices.Clone(list)
	list[i] = *condition
	return list
}

// resizing reports whether a condition is about a resize: those come with their times.
func resizing(kind corev1.PodConditionType) bool {
	return kind == corev1.PodResizeInProgress || kind == corev1.PodResizePending
}

// stampTransitions gives each condition the time it last changed its status.
func stampTransitions(list, old []corev1.PodCondition, now metav1.Time) {
	for i := range list {
		if !owned(list[i].Type) && list[i].Type != corev1.DisruptionTarget || resizing(list[i].Type) {
			continue
		}
		list[i].LastTransitionTime = now
		j := slices.IndexFunc(old, func(c corev1.PodCondition) bool { return c.Type == list[i].Type })
		if j >= 0 && old[j].Status == list[i].Status {
			list[i].LastTransitionTime = old[j].LastTransitionTime
		}
	}
}
