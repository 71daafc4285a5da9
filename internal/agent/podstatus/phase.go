package podstatus

import (
	corev1 "k8s.io/api/core/v1"
)

// counts sorts the containers of a pod by what their statuses say.
type counts struct {
	pendingInit, pendingSidecar, failedInit                           int
	unknown, running, waiting, stopped, stoppedForGood, stoppedWithOK int
}

// Phase computes a pod's phase from its container statuses (of all kinds). ended says that
// nothing of the pod runs or will run again; started that an app container has run.
func Phase(pod *corev1.Pod, statuses []corev1.ContainerStatus, ended, started bool) corev1.PodPhase {
	n := count(pod, statuses)
	switch {
	case n.failedInit > 0:
		return corev1.PodFailed
	case n.pendingInit > 0, n.pendingSidecar > 0 && !started, n.waiting > 0:
		return corev1.PodPending
	case n.running > 0 && n.unknown == 0:
		return corev1.PodRunning
	case n.running == 0 && n.stopped > 0 && n.unknown == 0:
		if !ended && n.stopped != n.stoppedForGood {
			return corev1.PodRunning
		}
		if n.stopped == n.stoppedWithOK {
			return corev1.PodSucceeded
		}
		return corev1.PodFailed
	default:
		return corev1.PodPending
	}
}

func count(pod *corev1.Pod, statuses []corev1.ContainerStatus) counts {
	var n counts
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		status := find(statuses, c.Name)
		if Restartable(c) {
			n.addSidecar(status)
		} else {
			n.addInit(c, pod, status)
		}
	}
	for i := range pod.Spec.Containers {
		n.addMain(&pod.Spec.Containers[i], pod, find(statuses, pod.Spec.Containers[i].Name))
	}
	return n
}

func (n *counts) addInit(c *corev1.Container, pod *corev1.Pod, status *corev1.ContainerStatus) {
	terminated := lastTermination(status)
	switch {
	case terminated == nil:
		n.pendingInit++
	case terminated.ExitCode != 0 && !ShouldRestart(c, pod.Spec.RestartPolicy, terminated.ExitCode):
		n.failedInit++
	}
}

// lastTermination is how a container that does not run ended last; nil when it runs or never ran.
func lastTermination(status *corev1.ContainerStatus) *corev1.ContainerStateTerminated {
	switch {
	case status == nil || status.State.Running != nil:
		return nil
	case status.State.Terminated != nil:
		return status.State.Terminated
	case status.State.Waiting != nil:
		return status.LastTerminationState.Terminated
	default:
		return nil
	}
}

func (n *counts) addSidecar(status *corev1.ContainerStatus) {
	switch {
	case status == nil:
		n.unknown++
	case status.State.Running != nil:
		if status.Started == nil || !*status.Started {
			n.pendingSidecar++
		}
		n.running++
	case status.State.Terminated != nil:
		// A sidecar that has ended says nothing about the pod.
	case status.State.Waiting != nil:
		if status.LastTerminationState.Terminated == nil {
			n.pendingSidecar++
			n.waiting++
		}
	default:
		n.pendingSidecar++
		n.unknown++
	}
}

func (n *counts) addMain(c *corev1.Container, pod *corev1.Pod, status *corev1.ContainerStatus) {
	switch {
	case status == nil:
		n.unknown++
	case status.State.Running != nil:
		n.running++
	case status.State.Terminated != nil, status.State.Waiting != nil:
		terminated := lastTermination(status)
		if terminated == nil {
			n.waiting++
			return
		}
		n.stopped++
		if !ShouldRestart(c, pod.Spec.RestartPolicy, terminated.ExitCode) {
			n.stoppedForGood++
		}
		if status.State.Terminated != nil && terminated.ExitCode == 0 {
			n.stoppedWithOK++
		}
	default:
		n.unknown++
	}
}

func find(statuses []corev1.ContainerStatus, name string) *corev1.ContainerStatus {
	for i := range statuses {
		if statuses[i].Name == name {
			return &statuses[i]
		}
	}
	return nil
}
