package job

import (
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/controller"
)

// Upstream's figures (kubernetes, pkg/controller/job): the wait after a failed pod doubles.
const (
	firstBackoff = 10 * time.Second
	lastBackoff  = 10 * time.Minute
)

// backoff is how a job has failed of late. It is kept in memory: after a restart a job starts afresh.
type backoff struct {
	failures int       // since the last success
	last     time.Time // of the last failure
}

// after is b once these pods have ended.
func (b backoff) after(succeeded, failed []*corev1.Pod) backoff {
	if len(succeeded) == 0 {
		if len(failed) > 0 {
			b.failures += len(failed)
			b.last = lastFinish(failed)
		}
		return b
	}
	since := lastFinish(succeeded)
	b = backoff{}
	for _, pod := range failed {
		if at := finishTime(pod); at.After(since) {
			b.failures++
			if at.After(b.last) {
				b.last = at
			}
		}
	}
	return b
}

func lastFinish(pods []*corev1.Pod) time.Time {
	return finishTime(slices.MaxFunc(pods, func(a, b *corev1.Pod) int { return finishTime(a).Compare(finishTime(b)) }))
}

// left is how long no pod may be created.
func (b backoff) left(now time.Time) time.Duration {
	if b.failures == 0 {
		return 0
	}
	wait := firstBackoff
	for range b.failures - 1 {
		if wait *= 2; wait >= lastBackoff {
			wait = lastBackoff
			break
		}
	}
	return max(0, wait-now.Sub(b.last))
}

// indexBackoff is the back-off of an index whose last pod failed; nil for one that has not.
func indexBackoff(failed *corev1.Pod) backoff {
	if failed == nil {
		return backoff{}
	}
	return backoff{failures: allFailures(failed) + 1, last: finishTime(failed)}
}

// allFailures is how often a pod's index had failed before it, ignored failures included.
func allFailures(pod *corev1.Pod) int {
	return failureCount(pod, batchv1.JobIndexFailureCountAnnotation) + failureCount(pod, batchv1.JobIndexIgnoredFailureCountAnnotation)
}

// failureCount reads a count from an annotation; nonsense counts as none.
func failureCount(pod *corev1.Pod, annotation string) int {
	count, err := strconv.ParseInt(pod.Annotations[annotation], 10, 32)
	if err != nil || count < 0 {
		return 0
	}
	return int(count)
}

// finishTime is when a pod ended: its last container, else when it stopped being ready, else when
// its deletion was asked for, else when it was made.
func finishTime(pod *corev1.Pod) time.Time {
	if at, ok := containersEnd(pod); ok {
		return at
	}
	if c := controller.PodCondition(pod, corev1.PodReady); c != nil && c.Status == corev1.ConditionFalse && !c.LastTransitionTime.IsZero() {
		return c.LastTransitionTime.Time
	}
	if pod.DeletionTimestamp != nil {
		at := pod.DeletionTimestamp.Time
		if pod.DeletionGracePeriodSeconds != nil {
			at = at.Add(-time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second)
		}
		return at
	}
	return pod.CreationTimestamp.Time
}

// containersEnd is when the last of the containers and sidecars ended, if all have.
func containersEnd(pod *corev1.Pod) (time.Time, bool) {
	var last time.Time
	ended := func(status *corev1.ContainerStatus) bool {
		t := status.State.Terminated
		if t == nil || t.FinishedAt.IsZero() {
			return false
		}
		if t.FinishedAt.After(last) {
			last = t.FinishedAt.Time
		}
		return true
	}
	for i := range pod.Status.ContainerStatuses {
		if !ended(&pod.Status.ContainerStatuses[i]) {
			return time.Time{}, false
		}
	}
	for i := range pod.Status.InitContainerStatuses {
		status := &pod.Status.InitContainerStatuses[i]
		if isSidecar(pod, status.Name) && !ended(status) {
			return time.Time{}, false
		}
	}
	return last, !last.IsZero()
}

func isSidecar(pod *corev1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == name && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	})
}
