package job

import (
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// track notes in the status which pods have ended and returns those that lose their finalizer once
// that has been written. It notes so many at most that the status stays small.
func (p *pass) track() []*corev1.Pod {
	status := &p.job.Status
	if p.count(p.tracked(nil)) {
		p.flush = true
	}
	var release []*corev1.Pod
	var indexes []int
	for _, pod := range p.pods {
		if !isTracked(pod) || !p.releasable(pod) {
			continue
		}
		release = append(release, pod)
		switch index := indexOf(pod); {
		case pod.Status.Phase == corev1.PodSucceeded && !p.uncountedFailed[pod.UID]:
			if !isIndexed(p.job) {
				p.note(&status.UncountedTerminatedPods.Succeeded, p.uncountedSucceeded, pod)
			} else if p.inRange(index) && !p.countedIndexes.has(index) {
				indexes = append(indexes, index) // the index is enough to count it only once
				p.flush = true
			}
		case p.losing(pod):
			if p.countable(pod) && !judgeFailure(p.job.Spec.PodFailurePolicy, pod).ignored {
				p.note(&status.UncountedTerminatedPods.Failed, p.uncountedFailed, pod)
			}
		}
		if len(indexes)+len(status.UncountedTerminatedPods.Succeeded)+len(status.UncountedTerminatedPods.Failed) >= maxUncounted {
			p.capped = true
			p.lookIn(0)
			break
		}
	}
	if isIndexed(p.job) {
		p.trackIndexes(indexes)
	}
	p.announce()
	return release
}

// note adds an ended pod to a list of those that are not counted yet.
func (p *pass) note(list *[]types.UID, known uids, pod *corev1.Pod) {
	if !known[pod.UID] {
		*list = append(*list, pod.UID)
		p.flush = true
	}
}

// releasable reports whether a pod may lose its finalizer: it has ended, or the job has.
func (p *pass) releasable(pod *corev1.Pod) bool {
	if p.job.DeletionTimestamp != nil || p.verdict != nil || pod.Status.Phase == corev1.PodSucceeded {
		return true
	}
	if !hasFailed(p.job, pod) {
		return false
	}
	delayed := p.delayed[indexOf(pod)]
	return delayed == nil || delayed.UID != pod.UID
}

// losing reports whether a pod that may lose its finalizer counts as failed. When a job fails, all
// that has not succeeded has failed; when it succeeds, only what failed without being deleted.
func (p *pass) losing(pod *corev1.Pod) bool {
	switch {
	case p.verdict == nil:
		return hasFailed(p.job, pod)
	case p.verdict.Type == batchv1.JobSuccessCriteriaMet:
		return pod.Status.Phase == corev1.PodFailed && pod.DeletionTimestamp == nil
	}
	return true
}

func (p *pass) trackIndexes(succeeded []int) {
	status := &p.job.Status
	p.succeededIndexes = p.succeededIndexes.with(succeeded)
	text := p.succeededIndexes.String()
	if text != status.CompletedIndexes {
		p.flush = true
	}
	status.CompletedIndexes, status.Succeeded = text, int32(p.succeededIndexes.total())
	var failed *string
	if p.failedIndexes != nil {
		text := p.failedIndexes.String()
		failed = &text
	}
	was, is := status.FailedIndexes, failed
	if (was == nil) != (is == nil) || (was != nil && *was != *is) {
		p.flush = true
	}
	status.FailedIndexes = failed
}

// announce says how the job is going to end before any finalizer goes: a pass that finds the pods
// gone must come to the same end.
func (p *pass) announce() {
	if p.verdict == nil {
		return
	}
	status := &p.job.Status
	var final batchv1.JobConditionType
	switch p.verdict.Type {
	case batchv1.JobFailureTarget:
		status.Conditions = append(status.Conditions, *p.verdict)
		final = batchv1.JobFailed
	case batchv1.JobSuccessCriteriaMet:
		if !isTrue(p.job, batchv1.JobSuccessCriteriaMet) {
			status.Conditions = append(status.Conditions, *p.verdict)
		} else {
			p.conclude(batchv1.JobComplete, p.verdict.Reason, p.verdict.Message)
			return
		}
		final = batchv1.JobComplete
	default:
		return
	}
	p.flush = true
	p.conclude(final, p.verdict.Reason, p.verdict.Message)
}

// tracked are the pods that have their finalizer, without those of released.
func (p *pass) tracked(released uids) uids {
	set := make(uids, len(p.pods))
	for _, pod := range p.pods {
		if isTracked(pod) && !released[pod.UID] {
			set[pod.UID] = true
		}
	}
	return set
}

// count turns the noted pods that no longer have a finalizer into numbers, and says whether there were any.
func (p *pass) count(tracked uids) bool {
	status := &p.job.Status
	move := func(list *[]types.UID, number *int32) bool {
		left := slices.DeleteFunc(slices.Clone(*list), func(uid types.UID) bool { return !tracked[uid] })
		moved := len(*list) - len(left)
		if moved == 0 {
			return false
		}
		if len(left) == 0 {
			left = nil
		}
		*list, *number = left, *number+int32(moved)
		return true
	}
	if status.UncountedTerminatedPods == nil {
		return false
	}
	succeeded := move(&status.UncountedTerminatedPods.Succeeded, &status.Succeeded)
	failed := move(&status.UncountedTerminatedPods.Failed, &status.Failed)
	return succeeded || failed
}

// finish ends the job if all of its pods are counted and gone, and says whether it did.
func (p *pass) finish() bool {
	status := &p.job.Status
	if p.verdict == nil || p.capped || p.terminating > 0 {
		return false
	}
	if u := status.UncountedTerminatedPods; u != nil && len(u.Succeeded)+len(u.Failed) > 0 {
		return false
	}
	setCondition(&status.Conditions, p.verdict.Type, p.verdict.Status, p.verdict.Reason, p.verdict.Message, p.now)
	if p.verdict.Type == batchv1.JobComplete {
		status.CompletionTime = &metav1.Time{Time: p.verdict.LastTransitionTime.Time}
	}
	return true
}

// finishEvents tell people that the job is over.
func (p *pass) finishEvents() []event {
	if p.verdict.Type != batchv1.JobComplete {
		return []event{{corev1.EventTypeWarning, p.verdict.Reason, p.verdict.Message}}
	}
	var out []event
	if p.job.Spec.Completions != nil && int(p.job.Status.Succeeded) > completionsOf(p.job) {
		out = append(out, event{corev1.EventTypeWarning, "TooManySucceededPods", "Too many succeeded pods running after completion count reached"})
	}
	return append(out, event{corev1.EventTypeNormal, "Completed", "Job completed"})
}
