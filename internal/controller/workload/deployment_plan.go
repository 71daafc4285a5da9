package workload

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
)

// deploymentKind is what owner references to a Deployment say.
func deploymentKind() schema.GroupVersionKind {
	return appsv1.SchemeGroupVersion.WithKind("Deployment")
}

// rollout is what one pass decides from.
type rollout struct {
	d    *appsv1.Deployment   // a copy the plan may change: its annotations and status
	sets []*appsv1.ReplicaSet // those d controls
	// running says which of them have pods that are not finished; needed for Recreate only.
	running map[types.UID]bool
	now     time.Time
}

// plan is what one pass does, in the order of its fields.
type plan struct {
	create *appsv1.ReplicaSet
	update []*member // in order
	remove []*appsv1.ReplicaSet
	// rollback, if there is one, is all that follows.
	rollback *rollback
	// status says that d's status or revision annotation is to be written.
	status bool
	after  time.Duration // when to look again without an event; 0 for never
}

// planner carries a rollout through the steps of planning.
type planner struct {
	rollout
	stored *appsv1.Deployment
	newest *member // nil if no ReplicaSet has the Deployment's template
	old    []*member
	plan   plan
}

// planDeployment decides the next step of a Deployment. in.d is changed to what the
// status write should say.
func planDeployment(in rollout) plan {
	p := &planner{rollout: in, stored: in.d.DeepCopy()}
	p.sort()
	if p.d.DeletionTimestamp != nil {
		p.syncRevision(false)
		p.d.Status = countStatus(p.d, p.all(), p.newest, p.now)
		return p.finish()
	}
	p.notePause()
	p.syncRevision(false)
	if revision, ok := requestedRevision(p.d); ok && !p.d.Spec.Paused {
		p.rollBack(revision)
		return p.finish()
	}
	switch {
	case p.d.Spec.Paused || p.scaled():
		p.scale()
		if p.d.Spec.Paused {
			p.cleanup()
		}
		p.d.Status = countStatus(p.d, p.all(), p.newest, p.now)
		return p.finish()
	case rolling(p.d):
		p.syncRevision(true)
		if !p.growNew() && !p.shrinkOld() && complete(p.d, &p.d.Status) {
			p.cleanup()
		}
	default:
		p.recreate()
	}
	p.d.Status = rolloutStatus(p.d, p.all(), p.newest, p.now)
	p.plan.after = progressCheck(p.d, &p.d.Status, p.now)
	return p.finish()
}

// sort finds the ReplicaSet with the Deployment's template (the oldest, should there be
// several) and the old ones, oldest first.
func (p *planner) sort() {
	sets := slices.Clone(p.sets)
	slices.SortFunc(sets, func(a, b *appsv1.ReplicaSet) int {
		if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
			return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
		}
		return strings.Compare(a.Name, b.Name)
	})
	for _, rs := range sets {
		m := newMember(rs)
		if p.newest == nil && sameTemplate(&rs.Spec.Template, &p.d.Spec.Template) {
			p.newest = m
		} else {
			p.old = append(p.old, m)
		}
	}
}

func (p *planner) all() []*member {
	if p.newest == nil {
		return p.old
	}
	return append(slices.Clone(p.old), p.newest)
}

func activeMembers(sets []*member) []*member {
	return slices.DeleteFunc(slices.Clone(sets), func(m *member) bool { return m.replicas == 0 })
}

func sumReplicas(sets []*member) (sum int32) {
	for _, m := range sets {
		sum += m.replicas
	}
	return sum
}

// notePause marks a pause in the Progressing condition, so that a Deployment that was
// paused for long does not time out the moment it goes on.
func (p *planner) notePause() {
	if !hasDeadline(p.d) {
		return
	}
	current := findCondition(&p.d.Status, appsv1.DeploymentProgressing)
	if current != nil && current.Reason == reasonDeadline {
		return
	}
	noted := current != nil && current.Reason == reasonPaused
	switch {
	case p.d.Spec.Paused && !noted:
		setCondition(&p.d.Status, condition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonPaused, "Deployment is paused", p.now))
	case !p.d.Spec.Paused && noted:
		setCondition(&p.d.Status, condition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonResumed, "Deployment is resumed", p.now))
	}
}

// syncRevision brings the annotations of the newest ReplicaSet and the Deployment's
// revision up to date. If there is no newest one and create is set, it plans one.
func (p *planner) syncRevision(create bool) {
	revision := maxRevision(p.old) + 1
	if p.newest == nil {
		if create {
			p.createNew(revision)
		}
		return
	}
	if !p.newest.stored {
		return
	}
	annotateNew(p.d, p.newest, revision)
	p.newest.minReady = p.d.Spec.MinReadySeconds
	p.setRevision(p.newest.annotations[annotationRevision])
	if hasDeadline(p.d) && findCondition(&p.d.Status, appsv1.DeploymentProgressing) == nil {
		setCondition(&p.d.Status, condition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonNewFound,
			fmt.Sprintf("Found new replica set %q", p.newest.rs.Name), p.now))
	}
}

func (p *planner) setRevision(revision string) {
	if have, ok := p.d.Annotations[annotationRevision]; ok && have == revision {
		return
	}
	p.d.Annotations = maps.Clone(p.d.Annotations)
	if p.d.Annotations == nil {
		p.d.Annotations = map[string]string{}
	}
	p.d.Annotations[annotationRevision] = revision
}

// createNew plans the ReplicaSet of the Deployment's template. Its name is a function of
// the template, so that a pass that is repeated finds it instead of making another.
func (p *planner) createNew(revision int64) {
	d := p.d
	hash := TemplateHash(&d.Spec.Template, d.Status.CollisionCount)
	template := *d.Spec.Template.DeepCopy()
	template.Labels = withLabel(template.Labels, hash)
	selector := d.Spec.Selector.DeepCopy()
	selector.MatchLabels = withLabel(selector.MatchLabels, hash)
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name: replicaSetName(d.Name, hash), Namespace: d.Namespace, Labels: template.Labels,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, deploymentKind())},
		},
		Spec: appsv1.ReplicaSetSpec{Replicas: new(int32), MinReadySeconds: d.Spec.MinReadySeconds, Selector: selector, Template: template},
	}
	p.newest = newMember(rs)
	p.newest.stored = false
	p.newest.replicas = p.newReplicas()
	annotateNew(d, p.newest, revision)
	p.newest.annotateSize(d)
	p.plan.create = p.newest.wanted()
	p.setRevision(strconv.FormatInt(revision, 10))
	if hasDeadline(d) {
		setCondition(&d.Status, condition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonNewCreated,
			fmt.Sprintf("Created new replica set %q", rs.Name), p.now))
	}
}

func withLabel(labels map[string]string, hash string) map[string]string {
	labels = maps.Clone(labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	return labels
}

func replicaSetName(deployment, hash string) string {
	room := validation.DNS1123SubdomainMaxLength - len("-") - len(hash)
	if len(deployment) > room && room > 0 {
		deployment = deployment[:room]
	}
	return deployment + "-" + hash
}

// newReplicas is the size that the newest ReplicaSet may have now. An old one that was
// told to shrink counts with the pods it still has until it has let go of them, so that
// the surge bounds the pods there are and not only the sizes asked for.
func (p *planner) newReplicas() int32 {
	if !rolling(p.d) {
		return desired(p.d)
	}
	room := desired(p.d) + maxSurge(p.d)
	for _, m := range p.all() {
		room -= max(m.replicas, m.rs.Status.Replicas)
	}
	if room <= 0 {
		return p.newest.replicas
	}
	return p.newest.replicas + min(room, desired(p.d)-p.newest.replicas)
}

// resize sets a ReplicaSet's size and says whether that changes it.
func (p *planner) resize(m *member, replicas int32) bool {
	if m.replicas == replicas {
		return false
	}
	m.replicas = replicas
	m.annotateSize(p.d)
	return true
}

// growNew moves the newest ReplicaSet towards the Deployment's size.
func (p *planner) growNew() bool {
	want := desired(p.d)
	switch {
	case p.newest.replicas == want:
		return false
	case p.newest.replicas > want:
		return p.resize(p.newest, want)
	}
	return p.resize(p.newest, p.newReplicas())
}

// shrinkOld takes pods from the old ReplicaSets as far as availability allows: those
// that are not available first, since their loss costs nothing, then the others, as many
// as are available beyond the minimum.
func (p *planner) shrinkOld() bool {
	old := activeMembers(p.old)
	if len(old) == 0 {
		return false
	}
	minAvailable := desired(p.d) - maxUnavailable(p.d)
	notYet := p.newest.replicas - p.newest.rs.Status.AvailableReplicas
	budget := sumReplicas(p.all()) - minAvailable - notYet
	if budget <= 0 {
		return false
	}
	shrunk := false
	for _, m := range old {
		broken := m.replicas - m.rs.Status.AvailableReplicas
		if broken <= 0 {
			continue // more available than wanted: its controller has not caught up yet
		}
		take := min(budget, broken)
		budget -= take
		shrunk = p.resize(m, m.replicas-take) || shrunk
		if budget == 0 {
			break
		}
	}
	var availableNow int32
	for _, m := range append(slices.Clone(old), p.newest) {
		availableNow += m.rs.Status.AvailableReplicas
	}
	for _, m := range old {
		if availableNow <= minAvailable {
			break
		}
		take := min(m.replicas, availableNow-minAvailable)
		availableNow -= take
		shrunk = p.resize(m, m.replicas-take) || shrunk
	}
	return shrunk
}

// recreate stops all old pods before it starts new ones.
func (p *planner) recreate() {
	stopped := false
	for _, m := range p.old {
		stopped = p.resize(m, 0) || stopped
	}
	if stopped || p.oldRunning() {
		return
	}
	p.syncRevision(true)
	p.resize(p.newest, desired(p.d))
	if complete(p.d, &p.d.Status) {
		p.cleanup()
	}
}

func (p *planner) oldRunning() bool {
	for _, m := range p.old {
		if m.rs.Status.Replicas > 0 || p.running[m.rs.UID] {
			return true
		}
	}
	return false
}

// scaled says whether the Deployment's size changed since its ReplicaSets got theirs.
func (p *planner) scaled() bool {
	for _, m := range activeMembers(p.all()) {
		if want, ok := m.count(annotationDesired); ok && want != desired(p.d) {
			return true
		}
	}
	return false
}

// scale spreads a new size over the ReplicaSets in proportion to theirs, so that a
// rollout that goes badly does not get all the new pods.
func (p *planner) scale() {
	want := desired(p.d)
	active := activeMembers(p.all())
	switch {
	case len(active) == 1:
		p.resize(active[0], want)
		return
	case len(active) == 0 && p.newest != nil:
		p.resize(p.newest, want)
		return
	case len(active) == 0:
		if len(p.old) > 0 {
			p.resize(p.old[len(p.old)-1], want)
		}
		return
	case p.saturated():
		for _, m := range activeMembers(p.old) {
			p.resize(m, 0)
		}
		return
	case !rolling(p.d):
		return
	}
	var limit int32
	if want > 0 {
		limit = want + maxSurge(p.d)
	}
	p.spread(active, limit-sumReplicas(active))
}

// saturated says whether the newest ReplicaSet has all the pods, all available.
func (p *planner) saturated() bool {
	if p.newest == nil {
		return false
	}
	want, err := strconv.Atoi(p.newest.annotations[annotationDesired])
	return err == nil && p.newest.replicas == desired(p.d) && int32(want) == desired(p.d) &&
		p.newest.rs.Status.AvailableReplicas == desired(p.d)
}

// spread adds diff (which may be negative) to the sets: the largest first; of equal ones
// the newer first when growing, the older first when shrinking.
func (p *planner) spread(sets []*member, diff int32) {
	slices.SortStableFunc(sets, func(a, b *member) int {
		if a.replicas != b.replicas {
			return int(b.replicas - a.replicas)
		}
		age := a.rs.CreationTimestamp.Compare(b.rs.CreationTimestamp.Time)
		if age == 0 {
			age = strings.Compare(a.rs.Name, b.rs.Name)
		}
		if diff > 0 {
			return -age
		}
		return age
	})
	sizes := make([]int32, len(sets))
	var added int32
	for i, m := range sets {
		share := p.share(m, diff, added)
		sizes[i] = m.replicas + share
		added += share
	}
	sizes[0] = max(0, sizes[0]+diff-added) // what rounding left over
	for i, m := range sets {
		m.replicas = sizes[i]
		m.annotateSize(p.d)
	}
}

// share is how much of diff a set gets when the sets before it got added.
func (p *planner) share(m *member, diff, added int32) int32 {
	if m.replicas == 0 || diff == added {
		return 0
	}
	part := p.fraction(m)
	if diff > 0 {
		return min(part, diff-added)
	}
	return max(part, diff-added)
}

// fraction is the change of a set's size that keeps its part of the whole.
func (p *planner) fraction(m *member) int32 {
	if desired(p.d) == 0 {
		return -m.replicas
	}
	before, ok := m.count(annotationMax)
	if !ok || before == 0 {
		// Somebody removed the annotation: the Deployment's own count is the next best.
		before = p.d.Status.Replicas
	}
	if before == 0 {
		return 0
	}
	exact := float64(m.replicas) * float64(desired(p.d)+maxSurge(p.d)) / float64(before)
	return int32(math.Round(exact)) - m.replicas
}

// cleanup plans to delete the oldest revisions beyond the history limit, never one that
// still has or wants pods.
func (p *planner) cleanup() {
	limit := p.d.Spec.RevisionHistoryLimit
	if limit == nil || *limit == math.MaxInt32 {
		return
	}
	var alive []*appsv1.ReplicaSet
	for _, m := range p.old {
		if m.rs.DeletionTimestamp == nil {
			alive = append(alive, m.rs)
		}
	}
	excess := len(alive) - int(*limit)
	if excess <= 0 {
		return
	}
	slices.SortStableFunc(alive, func(a, b *appsv1.ReplicaSet) int {
		left, err1 := revisionOf(a)
		right, err2 := revisionOf(b)
		if err1 != nil || err2 != nil {
			return 0 // the order of creation stands
		}
		return int(left - right)
	})
	for _, rs := range alive[:excess] {
		if rs.Status.Replicas == 0 && replicasOf(rs) == 0 && rs.Generation <= rs.Status.ObservedGeneration {
			p.plan.remove = append(p.plan.remove, rs)
		}
	}
}

// finish collects what changed.
func (p *planner) finish() plan {
	for _, m := range p.all() {
		if m.stored && m.changed() {
			p.plan.update = append(p.plan.update, m)
		}
	}
	if len(p.d.Status.Conditions) == 0 {
		p.d.Status.Conditions = nil
	}
	p.plan.status = !apiequality.Semantic.DeepEqual(p.d.Status, p.stored.Status) ||
		p.d.Annotations[annotationRevision] != p.stored.Annotations[annotationRevision]
	return p.plan
}
