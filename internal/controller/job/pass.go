package job

import (
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/controller"
)

// Upstream's limits of one pass (kubernetes, pkg/controller/job).
const (
	maxUncounted = 500 // UIDs in a job's status: some 20 KB
	maxPodWrites = 500 // pods created or deleted
)

// event is something to tell people about a job.
type event struct{ kind, reason, note string }

// uids is a set of pods.
type uids map[types.UID]bool

func newUIDs(list []types.UID) uids {
	set := make(uids, len(list))
	for _, uid := range list {
		set[uid] = true
	}
	return set
}

// pass is one look at a job. Its methods are called in the order of this package's doc.
type pass struct {
	job    *batchv1.Job  // a copy of our own; its status is being made
	pods   []*corev1.Pod // that it owns; those of indexed jobs by index
	active []*corev1.Pod // neither over nor being deleted
	now    time.Time

	succeeded, failed                   int // in all
	ready, terminating                  int
	uncountedSucceeded, uncountedFailed uids
	backoff                             backoff

	// of indexed jobs only
	countedIndexes   intervals // that succeeded, as the status says
	succeededIndexes intervals
	failedIndexes    *intervals          // nil unless the job has a back-off limit per index
	delayed          map[int]*corev1.Pod // failed pods that stay until a replacement has taken over their count

	verdict *batchv1.JobCondition // how the job ends: FailureTarget, SuccessCriteriaMet, Complete or Failed; nil while it goes on
	managed bool                  // the number of pods was looked at
	flush   bool                  // the status must be written
	capped  bool                  // there were too many pods to count them all
	events  []event
	wait    time.Duration // until time alone makes a change; 0 for never
}

// observe counts what there is. job becomes part of the pass.
func observe(job *batchv1.Job, pods []*corev1.Pod, before backoff, now time.Time) *pass {
	p := &pass{job: job, pods: pods, now: now}
	if job.Status.UncountedTerminatedPods == nil {
		job.Status.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	}
	p.uncountedSucceeded = newUIDs(job.Status.UncountedTerminatedPods.Succeeded)
	p.uncountedFailed = newUIDs(job.Status.UncountedTerminatedPods.Failed)
	if isIndexed(job) {
		byIndex(pods)
	}
	var succeeded, failed []*corev1.Pod
	for _, pod := range pods {
		switch {
		case !ended(pod) && pod.DeletionTimestamp == nil:
			p.active = append(p.active, pod)
			if controller.PodReady(pod) {
				p.ready++
			}
		case !ended(pod):
			p.terminating++
		}
		if !p.countable(pod) {
			continue
		}
		if pod.Status.Phase == corev1.PodSucceeded && !p.uncountedSucceeded[pod.UID] {
			succeeded = append(succeeded, pod)
		}
		if hasFailed(job, pod) && !p.uncountedFailed[pod.UID] {
			failed = append(failed, pod)
		}
	}
	counted := 0
	for _, pod := range failed {
		if !judgeFailure(job.Spec.PodFailurePolicy, pod).ignored {
			counted++
		}
	}
	p.succeeded = int(job.Status.Succeeded) + len(succeeded) + len(p.uncountedSucceeded)
	p.failed = int(job.Status.Failed) + counted + len(p.uncountedFailed)
	p.backoff = before.after(succeeded, failed)
	if job.Status.StartTime == nil && !isSuspended(job) {
		start := inSeconds(now)
		job.Status.StartTime = &start
	}
	if isIndexed(job) {
		p.observeIndexes()
	}
	return p
}

// countable reports whether a pod has not been counted for good yet, and can be.
func (p *pass) countable(pod *corev1.Pod) bool {
	return isTracked(pod) && (!isIndexed(p.job) || p.inRange(indexOf(pod)))
}

func (p *pass) inRange(index int) bool { return index != unknownIndex && index < completionsOf(p.job) }

func (p *pass) observeIndexes() {
	job, limit := p.job, completionsOf(p.job)
	p.countedIndexes = parseIndexes(job.Status.CompletedIndexes, limit)
	var succeeded, failed []int
	for _, pod := range p.pods {
		switch {
		case !p.countable(pod):
		case pod.Status.Phase == corev1.PodSucceeded:
			succeeded = append(succeeded, indexOf(pod))
		case job.Spec.BackoffLimitPerIndex != nil && p.failsIndex(pod):
			failed = append(failed, indexOf(pod))
		}
	}
	p.succeededIndexes = p.countedIndexes.with(succeeded)
	p.succeeded = p.succeededIndexes.total()
	if job.Spec.BackoffLimitPerIndex == nil {
		return
	}
	before := ""
	if job.Status.FailedIndexes != nil {
		before = *job.Status.FailedIndexes
	}
	all := parseIndexes(before, limit).with(failed)
	p.failedIndexes = &all
	p.delayed = p.planDelayed()
}

// failsIndex reports whether a pod's failure was one too many for its index.
func (p *pass) failsIndex(pod *corev1.Pod) bool {
	if !hasFailed(p.job, pod) {
		return false
	}
	v := judgeFailure(p.job.Spec.PodFailurePolicy, pod)
	return v.action == batchv1.PodFailurePolicyActionFailIndex ||
		(!v.ignored && failureCount(pod, batchv1.JobIndexFailureCountAnnotation) >= int(*p.job.Spec.BackoffLimitPerIndex))
}

// planDelayed finds the last failed pod of each index that needs a new one: it keeps its finalizer,
// and so its count of failures, until the new one is there.
func (p *pass) planDelayed() map[int]*corev1.Pod {
	running := map[int]bool{}
	for _, pod := range p.active {
		running[indexOf(pod)] = true
	}
	delayed := map[int]*corev1.Pod{}
	for _, pod := range p.pods {
		index := indexOf(pod)
		if !p.countable(pod) || !hasFailed(p.job, pod) || running[index] || p.succeededIndexes.has(index) || p.failedIndexes.has(index) {
			continue
		}
		last := delayed[index]
		if last == nil || (allFailures(last) <= allFailures(pod) && !finishTime(pod).Before(finishTime(last))) {
			delayed[index] = pod
		}
	}
	return delayed
}

// judge says whether the job is to end, by what came first: what the status says already, then
// failures, then success by policy.
func (p *pass) judge() {
	job := p.job
	if c := findCondition(job.Status.Conditions, batchv1.JobSuccessCriteriaMet); c != nil && c.Status == corev1.ConditionTrue {
		p.verdict = c.DeepCopy()
	} else if c := findCondition(job.Status.Conditions, batchv1.JobFailureTarget); c != nil && c.Status == corev1.ConditionTrue {
		p.conclude(batchv1.JobFailed, c.Reason, c.Message)
	} else if message := p.failsByPolicy(); message != "" {
		p.conclude(batchv1.JobFailureTarget, batchv1.JobReasonPodFailurePolicy, message)
	}
	if p.verdict == nil {
		p.judgeLimits()
	}
	if p.verdict == nil && isIndexed(job) {
		p.judgeIndexes()
	}
}

func (p *pass) conclude(kind batchv1.JobConditionType, reason, message string) {
	c := newCondition(kind, corev1.ConditionTrue, reason, message, p.now)
	p.verdict = &c
}

// failsByPolicy is why the pod failure policy fails the job, empty if it does not.
func (p *pass) failsByPolicy() string {
	if p.job.Spec.PodFailurePolicy == nil {
		return ""
	}
	for _, pod := range p.pods {
		if hasFailed(p.job, pod) {
			if v := judgeFailure(p.job.Spec.PodFailurePolicy, pod); v.message != "" {
				return v.message
			}
		}
	}
	return ""
}

// judgeLimits looks at the back-off limit and the deadline.
func (p *pass) judgeLimits() {
	job, limit := p.job, backoffLimitOf(p.job)
	exceeded := p.failed > limit
	if job.Spec.Template.Spec.RestartPolicy == corev1.RestartPolicyOnFailure {
		exceeded = exceeded || restarts(p.pods) >= max(limit, 1)
	}
	if exceeded {
		p.conclude(batchv1.JobFailureTarget, batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
		return
	}
	if job.Spec.ActiveDeadlineSeconds == nil || isSuspended(job) || job.Status.StartTime == nil {
		return
	}
	left := time.Duration(*job.Spec.ActiveDeadlineSeconds)*time.Second - p.now.Sub(job.Status.StartTime.Time)
	if left <= 0 {
		p.conclude(batchv1.JobFailureTarget, batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
		return
	}
	p.lookIn(left)
}

func (p *pass) judgeIndexes() {
	job := p.job
	if p.failedIndexes != nil {
		failed := p.failedIndexes.total()
		switch {
		case job.Spec.MaxFailedIndexes != nil && failed > int(*job.Spec.MaxFailedIndexes):
			p.conclude(batchv1.JobFailureTarget, batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes")
			return
		case failed > 0 && failed+p.succeededIndexes.total() >= completionsOf(job):
			p.conclude(batchv1.JobFailureTarget, batchv1.JobReasonFailedIndexes, "Job has failed indexes")
			return
		}
	}
	if message, ok := judgeSuccess(job.Spec.SuccessPolicy, completionsOf(job), p.succeededIndexes); ok {
		p.conclude(batchv1.JobSuccessCriteriaMet, batchv1.JobReasonSuccessPolicy, message)
	}
}

// lookIn asks for another pass after a while.
func (p *pass) lookIn(wait time.Duration) {
	if p.wait == 0 || wait < p.wait {
		p.wait = max(wait, time.Nanosecond)
	}
}

// podPlan is what to do about the number of pods: delete some or create some, never both.
type podPlan struct {
	remove  []*corev1.Pod
	uncount bool  // the pods to remove do not count as failed: their finalizer goes first
	create  []int // completion indexes, unknownIndex for pods without one
}

// planPods compares the number of pods with what it should be.
func (p *pass) planPods() podPlan {
	job := p.job
	switch {
	case p.verdict != nil:
		return podPlan{remove: p.active}
	case job.DeletionTimestamp != nil:
		return podPlan{}
	}
	p.managed = true
	if isSuspended(job) {
		return podPlan{remove: p.active, uncount: true}
	}
	want := p.wanted()
	if remove := planRemoval(job, p.active, max(0, len(p.active)-want)); len(remove) > 0 {
		p.lookIn(0) // pods are only deleted or only created in one pass
		return podPlan{remove: remove[:min(len(remove), maxPodWrites)], uncount: true}
	}
	missing := want - len(p.active)
	if replacesOnlyFailed(job) {
		missing -= p.terminating
	}
	if missing <= 0 {
		return podPlan{}
	}
	if job.Spec.BackoffLimitPerIndex == nil {
		if left := p.backoff.left(p.now); left > 0 {
			p.lookIn(left)
			return podPlan{}
		}
	}
	if missing > maxPodWrites {
		missing = maxPodWrites
		p.lookIn(0)
	}
	if !isIndexed(job) {
		return podPlan{create: slices.Repeat([]int{unknownIndex}, missing)}
	}
	return podPlan{create: p.planIndexes(missing)}
}

// wanted is how many pods should be active.
func (p *pass) wanted() int {
	if p.job.Spec.Completions != nil {
		return max(0, min(completionsOf(p.job)-p.succeeded, parallelismOf(p.job)))
	}
	if p.succeeded > 0 {
		return len(p.active) // one success is enough; what runs may end
	}
	return parallelismOf(p.job)
}

// planIndexes picks the lowest indexes that need a pod, without those whose back-off is not over.
func (p *pass) planIndexes(count int) []int {
	var taken []int
	for _, pod := range p.pods {
		if !ended(pod) && (pod.DeletionTimestamp == nil || replacesOnlyFailed(p.job)) {
			if index := indexOf(pod); index != unknownIndex {
				taken = append(taken, index)
			}
		}
	}
	busy := p.succeededIndexes.with(taken)
	if p.failedIndexes != nil {
		busy = busy.union(*p.failedIndexes)
	}
	indexes := busy.gaps(completionsOf(p.job), count)
	if p.failedIndexes == nil {
		return indexes
	}
	var now []int
	var first time.Duration
	for _, index := range indexes {
		left := indexBackoff(p.delayed[index]).left(p.now)
		if left == 0 {
			now = append(now, index)
		} else if first == 0 || left < first {
			first = left
		}
	}
	if first > 0 {
		p.lookIn(first)
	}
	return now
}

// written is what became of a podPlan.
type written struct {
	created, removed, removedReady int
}

// settle takes in what has been written: the job may be complete now, or suspended.
func (p *pass) settle(w written) {
	active := len(p.active) + w.created - w.removed
	p.terminating += w.removed
	p.ready -= w.removedReady
	switch {
	case p.verdict != nil && w.removed != len(p.active):
		p.verdict = nil // pods are left; the next pass ends the job
		p.lookIn(0)
	case p.verdict != nil:
	case p.complete(active):
		p.conclude(batchv1.JobSuccessCriteriaMet, batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods")
	case p.managed:
		p.settleSuspension()
	}
	status := &p.job.Status
	ready, terminating := int32(p.ready), int32(p.terminating)
	if int32(active) != status.Active || status.Ready == nil || *status.Ready != ready || status.Terminating == nil || *status.Terminating != terminating {
		p.flush = true
	}
	status.Active, status.Ready, status.Terminating = int32(active), &ready, &terminating
}

func (p *pass) complete(active int) bool {
	if p.job.Spec.Completions == nil {
		return p.succeeded > 0 && active == 0
	}
	return p.succeeded >= completionsOf(p.job) && active == 0
}

// settleSuspension says that the job has been suspended or goes on. Its time starts anew then.
func (p *pass) settleSuspension() {
	status, value, reason, note := &p.job.Status, corev1.ConditionFalse, "Resumed", "Job resumed"
	if isSuspended(p.job) {
		value, reason, note = corev1.ConditionTrue, "Suspended", "Job suspended"
	}
	if !setCondition(&status.Conditions, batchv1.JobSuspended, value, "Job"+reason, note, p.now) {
		return
	}
	p.flush = true
	p.events = append(p.events, event{corev1.EventTypeNormal, reason, note})
	status.StartTime = nil
	if value == corev1.ConditionFalse {
		start := inSeconds(p.now)
		status.StartTime = &start
	}
}
