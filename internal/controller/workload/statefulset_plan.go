package workload

import (
	"cmp"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// setState is what one pass over a StatefulSet decides from. All of it is read-only.
type setState struct {
	set  *appsv1.StatefulSet
	pods []*corev1.Pod // those the set controls
	// current and update are the revisions the set is at and goes to.
	current, update setRevision
	collisions      int32
	// claim looks a PersistentVolumeClaim up; nil if there is none.
	claim func(name string) *corev1.PersistentVolumeClaim
	// gated says that maxUnavailable counts.
	gated bool
	now   time.Time
}

// setRevision is a revision's name and what it holds.
type setRevision struct {
	name     string
	template *corev1.PodTemplateSpec
}

// setAction is one thing to do about a pod.
type setAction string

const (
	actCreate setAction = "create" // the claims it needs, then the pod
	actClaims setAction = "claims" // create those a pending pod still lacks
	actMend   setAction = "mend"   // put name, labels, volumes and the claims' owners right
	actRetain setAction = "retain" // put the owners of the claims right
	actDelete setAction = "delete"
)

// setStep is what is done about one pod.
type setStep struct {
	pod     *corev1.Pod
	actions []setAction
}

// setPlan is what one pass does. A phase begins when the one before is done without an
// error; its steps are done one after the other if the set is ordered, else at once.
type setPlan struct {
	phases [][]setStep
	status appsv1.StatefulSetStatus
	// replaced is how many pods of the current revision the last phase takes away.
	replaced int32
	again    time.Duration // when to look again without an event; 0 for never
}

// setPlanner carries a pass through the steps of planning.
type setPlanner struct {
	setState
	ordered   bool
	minReady  time.Duration
	replicas  []*corev1.Pod // by ordinal; those that are not there yet are planned
	condemned []*corev1.Pod // beyond the range, the highest ordinal first
	// sick is the first pod that is not available: the only one that may be taken away
	// while others wait for it.
	sick   *corev1.Pod
	doomed map[*corev1.Pod]bool // deleted by an earlier phase
	plan   setPlan
}

// planStatefulSet decides the next step of a StatefulSet. An ordered set starts a pod when
// all before it are available, and takes one away when all that stay are: so a pass over
// it does a single thing.
func planStatefulSet(in setState) setPlan {
	p := &setPlanner{
		setState: in, doomed: map[*corev1.Pod]bool{},
		ordered:  in.set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement,
		minReady: time.Duration(in.set.Spec.MinReadySeconds) * time.Second,
	}
	p.plan.status = appsv1.StatefulSetStatus{
		ObservedGeneration: in.set.Generation, CurrentRevision: in.current.name, UpdateRevision: in.update.name,
		CollisionCount: &p.collisions, Conditions: in.set.Status.Conditions,
	}
	if in.set.DeletionTimestamp != nil {
		p.count(in.pods)
		return p.plan
	}
	p.sort()
	p.count(p.replicas)
	p.count(p.condemned)
	_ = p.keep() && p.retain() && p.shrink() && p.roll()
	return p.plan
}

// count adds pods to the status.
func (p *setPlanner) count(pods []*corev1.Pod) {
	status := &p.plan.status
	for _, pod := range pods {
		if !created(pod) {
			continue
		}
		status.Replicas++
		if runningReady(pod) {
			status.ReadyReplicas++
			ok, wait := available(pod, p.minReady, p.now)
			if ok {
				status.AvailableReplicas++
			} else if p.plan.again == 0 || wait < p.plan.again {
				p.plan.again = wait
			}
		}
		if pod.DeletionTimestamp == nil {
			if revisionOfPod(pod) == p.current.name {
				status.CurrentReplicas++
			}
			if revisionOfPod(pod) == p.update.name {
				status.UpdatedReplicas++
			}
		}
	}
}

// sort puts the pods into their places and plans a pod for each place that has none.
func (p *setPlanner) sort() {
	first := firstOrdinal(p.set)
	p.replicas = make([]*corev1.Pod, setReplicas(p.set))
	for _, pod := range p.pods {
		ordinal := ordinalOf(pod)
		switch {
		case inRange(p.set, ordinal):
			p.replicas[ordinal-first] = pod
		case ordinal >= 0:
			p.condemned = append(p.condemned, pod)
		}
	}
	for i, pod := range p.replicas {
		if pod == nil {
			p.replicas[i] = p.newPod(first + i)
		}
	}
	slices.SortFunc(p.condemned, func(a, b *corev1.Pod) int { return cmp.Compare(ordinalOf(b), ordinalOf(a)) })
	for _, pods := range []func(func(int, *corev1.Pod) bool){slices.All(p.replicas), slices.Backward(p.condemned)} {
		for _, pod := range pods {
			if p.sick == nil && unavailable(pod, p.minReady, p.now) {
				p.sick = pod
			}
		}
	}
}

// newPod plans the pod of an ordinal: of the current revision if a rolling update has not
// come to it.
func (p *setPlanner) newPod(ordinal int) *corev1.Pod {
	strategy := p.set.Spec.UpdateStrategy
	place := ordinal - firstOrdinal(p.set)
	revision := p.update
	switch {
	case strategy.RollingUpdate != nil && place < partition(p.set):
		revision = p.current
	case strategy.RollingUpdate == nil && strategy.Type == appsv1.RollingUpdateStatefulSetStrategyType && place < int(p.set.Status.CurrentReplicas):
		revision = p.current
	}
	return newSetPod(p.set, revision.template, revision.name, ordinal)
}

// partition is the first place that a rolling update reaches.
func partition(set *appsv1.StatefulSet) int {
	if rolling := set.Spec.UpdateStrategy.RollingUpdate; rolling != nil && rolling.Partition != nil {
		return int(*rolling.Partition)
	}
	return 0
}

// keep plans what the pods that stay need. It says whether the next phase may begin.
func (p *setPlanner) keep() bool {
	var steps []setStep
	free := true
	for _, pod := range p.replicas {
		actions, blocked := p.keepOne(pod)
		if len(actions) > 0 {
			steps = append(steps, setStep{pod, actions})
		}
		if blocked && p.ordered {
			free = false
			break
		}
	}
	p.add(steps)
	return free
}

// keepOne plans what one pod needs, and says whether those after it have to wait.
func (p *setPlanner) keepOne(pod *corev1.Pod) (actions []setAction, blocked bool) {
	if finished(pod) { // whatever its exit code says: evicted pods may have ended well
		if pod.DeletionTimestamp == nil {
			p.doomed[pod] = true
			actions = append(actions, actDelete)
		}
		return actions, true // the next one comes when this one is gone
	}
	if !created(pod) {
		if p.claimsAreGoing(pod) {
			p.plan.again = time.Second // nothing tells when a claim is gone
			return nil, true
		}
		return []setAction{actCreate}, true
	}
	if pod.Status.Phase == corev1.PodPending {
		actions = append(actions, actClaims)
	}
	if p.ordered && (unavailable(pod, p.minReady, p.now) || !runningReady(pod)) {
		return actions, true
	}
	if !identityMatches(p.set, pod) || !storageMatches(p.set, pod) || !p.claimsMatch(pod) {
		actions = append(actions, actMend)
	}
	return actions, false
}

// claimsAreGoing says whether a claim of a pod to be made belongs to an earlier pod of the
// name, with which it will be deleted.
func (p *setPlanner) claimsAreGoing(pod *corev1.Pod) bool {
	policy := p.set.Spec.PersistentVolumeClaimRetentionPolicy
	if policy == nil || policy.WhenScaled == appsv1.RetainPersistentVolumeClaimRetentionPolicyType {
		return false
	}
	for i := range p.set.Spec.VolumeClaimTemplates {
		claim := p.claim(claimName(p.set, &p.set.Spec.VolumeClaimTemplates[i], ordinalOf(pod)))
		if claim != nil && staleOwner(claim, pod, podKind()) {
			return true
		}
	}
	return false
}

// claimsMatch says whether the claims of a pod have the owners they should.
func (p *setPlanner) claimsMatch(pod *corev1.Pod) bool {
	for i := range p.set.Spec.VolumeClaimTemplates {
		claim := p.claim(claimName(p.set, &p.set.Spec.VolumeClaimTemplates[i], ordinalOf(pod)))
		if claim != nil && !ownersMatch(claim, p.set, pod) {
			return false
		}
	}
	return true
}

// retain plans who owns the claims of pods on their way out.
func (p *setPlanner) retain() bool {
	var steps []setStep
	for _, pod := range p.condemned {
		if !p.claimsMatch(pod) {
			steps = append(steps, setStep{pod, []setAction{actRetain}})
		}
	}
	p.add(steps)
	return true
}

// shrink plans to take away pods beyond the range, the highest ordinal first.
func (p *setPlanner) shrink() bool {
	var steps []setStep
	for _, pod := range p.condemned {
		going := pod.DeletionTimestamp != nil
		if p.ordered && (going || (pod != p.sick && (!runningReady(pod) || unavailable(pod, p.minReady, p.now)))) {
			p.add(steps)
			return false // it goes, or another one has to become available first
		}
		if going {
			continue
		}
		steps = append(steps, setStep{pod, []setAction{actDelete}})
		if p.ordered {
			break
		}
	}
	p.add(steps)
	return len(steps) == 0 || !p.ordered
}

// roll plans to take away pods of other revisions than the one to go to, the highest
// ordinal first; they come back with that one.
func (p *setPlanner) roll() bool {
	if p.set.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
		return true
	}
	room := 1
	if p.gated {
		room = maxUnavailablePods(p.set)
		for _, pod := range p.replicas {
			if unavailable(pod, p.minReady, p.now) {
				room--
			}
		}
	}
	var steps []setStep
	for _, pod := range slices.Backward(p.replicas[min(partition(p.set), len(p.replicas)):]) {
		if room <= 0 {
			break
		}
		going := pod.DeletionTimestamp != nil || p.doomed[pod]
		if revisionOfPod(pod) != p.update.name && !going {
			steps = append(steps, setStep{pod, []setAction{actDelete}})
			room--
		} else if !p.gated && unavailable(pod, p.minReady, p.now) {
			break // it has to become available before the next one goes
		}
	}
	p.plan.replaced = int32(len(steps))
	p.add(steps)
	return true
}

// maxUnavailablePods is at least one.
func maxUnavailablePods(set *appsv1.StatefulSet) int {
	rolling := set.Spec.UpdateStrategy.RollingUpdate
	if rolling == nil {
		return 1
	}
	value := intstr.ValueOrDefault(rolling.MaxUnavailable, intstr.FromInt32(1))
	count, err := intstr.GetScaledValueFromIntOrPercent(value, setReplicas(set), false)
	if err != nil {
		return 1 // validation lets no such value in
	}
	return max(1, count)
}

func (p *setPlanner) add(steps []setStep) {
	if len(steps) > 0 {
		p.plan.phases = append(p.plan.phases, steps)
	}
}

// settle is the status after a plan was carried out: a rolling update that has reached all
// pods makes the new revision the current one.
func (p *setPlan) settle(set *appsv1.StatefulSet, failed bool) appsv1.StatefulSetStatus {
	status := p.status
	if !failed {
		status.CurrentReplicas -= p.replaced
	}
	want := int32(setReplicas(set))
	if set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType &&
		status.UpdatedReplicas == want && status.ReadyReplicas == want && status.Replicas == want {
		status.CurrentReplicas, status.CurrentRevision = status.UpdatedReplicas, status.UpdateRevision
	}
	return status
}

// sameSetStatus compares what the controller writes.
func sameSetStatus(a, b *appsv1.StatefulSetStatus) bool {
	return a.ObservedGeneration == b.ObservedGeneration && a.Replicas == b.Replicas && a.ReadyReplicas == b.ReadyReplicas &&
		a.AvailableReplicas == b.AvailableReplicas && a.CurrentReplicas == b.CurrentReplicas && a.UpdatedReplicas == b.UpdatedReplicas &&
		a.CurrentRevision == b.CurrentRevision && a.UpdateRevision == b.UpdateRevision
}
