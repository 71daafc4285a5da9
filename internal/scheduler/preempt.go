package scheduler

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Why a pod may not evict others, or to no avail, in kube-scheduler's words.
const (
	reasonNeverPreempts = "not eligible due to preemptionPolicy=Never."
	reasonTerminating   = "not eligible due to a terminating pod on the nominated node."
	reasonNoVictims     = "No preemption victims found for incoming pod"
	reasonNotHelpful    = "Preemption is not helpful for scheduling"
)

// budget is a PodDisruptionBudget as preemption reads it.
type budget struct {
	namespace string
	selector  labels.Selector // matches nothing if the budget's is empty
	allowed   int32
	disrupted map[string]metav1.Time // pods whose eviction is counted already
}

func newBudget(pdb *policyv1.PodDisruptionBudget) budget {
	b := budget{namespace: pdb.Namespace, allowed: pdb.Status.DisruptionsAllowed, disrupted: pdb.Status.DisruptedPods}
	selector, err := metav1.LabelSelectorAsSelector(pdb.Spec.Selector)
	if err != nil || selector.Empty() {
		selector = labels.Nothing()
	}
	b.selector = selector
	return b
}

func (b *budget) covers(pod *corev1.Pod) bool {
	if b.namespace != pod.Namespace || !b.selector.Matches(labels.Set(pod.Labels)) {
		return false
	}
	_, counted := b.disrupted[pod.Name]
	return !counted
}

// eviction is who must go from a node to make room for a pod.
type eviction struct {
	slot       int32
	victims    []*corev1.Pod // the most important first; never empty
	violations int           // victims whose budgets forbid their eviction
}

// preempt looks for the node on which the least is lost if pods of lower priority make
// room for a pod. It changes nothing. Without such a node it says why, and which plugins keep the pod
// from the nodes even then. Source: kube-scheduler's DefaultPreemption. from turns the nodes to begin
// with, so that not always the same are hit.
func (s *State) preempt(t *template, pod *corev1.Pod, failure *FitError, budgets []budget, from int, now time.Time) (*eviction, string, PluginSet) {
	outside, refused := s.prepare(t, pod)
	candidates := failure.candidates
	if refused != nil {
		candidates = nil
	}
	want := t.profile.preemptionCandidates(len(candidates))
	var found []*eviction
	clean := 0 // of found, those that violate no budget
	var against PluginSet
	counts := map[string]int{}
	for i := range candidates {
		if clean > 0 && len(found) >= want {
			break
		}
		e, r := s.tryEvicting(t, pod, outside, candidates[(from+i)%len(candidates)], budgets, now)
		if e == nil {
			against |= PluginsOf(r.plugin)
			for _, reason := range r.reasons {
				counts[reason]++
			}
			continue
		}
		found = append(found, e)
		if e.violations == 0 {
			clean++
		}
	}
	if len(found) > 0 {
		return cheapest(found, now), "", 0
	}
	if n := len(s.order) - len(candidates); n > 0 {
		counts[reasonNotHelpful] = n
	}
	return nil, fmt.Sprintf("0/%d nodes are available: %s.", len(s.order), histogram(counts)), against
}

// preemptionCandidates is how many nodes are compared.
func (p *Profile) preemptionCandidates(nodes int) int {
	return min(max(nodes*int(p.MinCandidatePercent)/100, int(p.MinCandidateNodes)), nodes)
}

// tryEvicting finds the least set of pods to take from a node so that a pod fits, or says
// why there is none: all of lower priority go, then as many as can are let stay,
// those first whose budgets would be violated, and the more important ones before others.
func (s *State) tryEvicting(t *template, pod *corev1.Pod, outside []outsideCheck, slot int32, budgets []budget, now time.Time) (*eviction, *rejection) {
	priority := priorityOf(pod)
	var lower []*placed
	for _, p := range s.podsOn(slot) {
		if priorityOf(p.pod) < priority {
			lower = append(lower, p)
		}
	}
	if len(lower) == 0 {
		return nil, &rejection{reasons: []string{reasonNoVictims}}
	}
	for _, p := range lower {
		s.lift(p)
	}
	defer func() {
		for _, p := range lower {
			s.letDown(p)
		}
	}()
	if r := s.rejectNominated(t, pod, outside, slot); r != nil {
		return nil, r
	}
	moreImportant := func(a, b *placed) int { return byImportance(a.pod, b.pod, now) }
	slices.SortStableFunc(lower, moreImportant)
	violating, rest := splitByBudgets(lower, budgets)
	s.warm(t)
	e := &eviction{slot: slot}
	var victims []*placed
	for _, p := range violating {
		if !s.reprieve(t, pod, outside, slot, p) {
			victims = append(victims, p)
			e.violations++
		}
	}
	for _, p := range rest {
		if !s.reprieve(t, pod, outside, slot, p) {
			victims = append(victims, p)
		}
	}
	if len(victims) == 0 {
		return nil, &rejection{reasons: []string{fmt.Sprintf("expected at least one victim pod on node %q", s.nodes[slot].node.Name)}}
	}
	slices.SortStableFunc(victims, moreImportant)
	for _, p := range victims {
		e.victims = append(e.victims, p.pod)
	}
	return e, nil
}

// reprieve lets a pod stay if the other one fits beside it.
func (s *State) reprieve(t *template, pod *corev1.Pod, outside []outsideCheck, slot int32, p *placed) bool {
	s.letDown(p)
	if s.passesNominated(t, pod, outside, slot) {
		return true
	}
	s.lift(p)
	return false
}

// splitByBudgets parts pods whose eviction would violate a budget from the others. Both keep their order.
func splitByBudgets(pods []*placed, budgets []budget) (violating, rest []*placed) {
	if len(budgets) == 0 {
		return nil, pods
	}
	allowed := make([]int32, len(budgets))
	for i := range budgets {
		allowed[i] = budgets[i].allowed
	}
	for _, p := range pods {
		violates := false
		for i := range budgets {
			if budgets[i].covers(p.pod) {
				allowed[i]--
				violates = violates || allowed[i] < 0
			}
		}
		if violates {
			violating = append(violating, p)
		} else {
			rest = append(rest, p)
		}
	}
	return violating, rest
}

// byImportance orders pods: those of higher priority first, then those that run for longer.
func byImportance(a, b *corev1.Pod, now time.Time) int {
	return cmp.Or(cmp.Compare(priorityOf(b), priorityOf(a)), startOf(a, now).Compare(startOf(b, now)),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// startOf is when a pod started, now if it has not.
func startOf(pod *corev1.Pod, now time.Time) time.Time {
	if pod.Status.StartTime == nil {
		return now
	}
	return pod.Status.StartTime.Time
}

// cheapest picks the eviction with, in this order, the fewest violated budgets, the least important
// highest victim, the lowest sum of priorities, the fewest victims, the latest start of
// the highest victims.
func cheapest(all []*eviction, now time.Time) *eviction {
	best := all[0]
	cost := best.cost(now)
	for _, e := range all[1:] {
		if other := e.cost(now); slices.Compare(other[:], cost[:]) < 0 {
			best, cost = e, other
		}
	}
	return best
}

// cost is what is lost with an eviction, what counts most first.
func (e *eviction) cost(now time.Time) [5]int64 {
	highest := priorityOf(e.victims[0])
	var sum int64
	earliest := startOf(e.victims[0], now)
	for _, pod := range e.victims {
		// All priorities are made positive, so that many pods of a negative one cost more than few.
		sum += int64(priorityOf(pod)) + math.MaxInt32 + 1
		if start := startOf(pod, now); priorityOf(pod) == highest && start.Before(earliest) {
			earliest = start
		}
	}
	return [5]int64{int64(e.violations), int64(highest), sum, int64(len(e.victims)), -earliest.UnixNano()}
}

// terminatingForPreemption says whether a pod goes because a scheduler has evicted it.
func terminatingForPreemption(pod *corev1.Pod) bool {
	if pod.DeletionTimestamp == nil {
		return false
	}
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.DisruptionTarget {
			return c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonPreemptionByScheduler
		}
	}
	return false
}

// waitsForVictims says whether a pod already has others on their way out of the node that
// it is nominated to, so that it must not evict more. gone names pods whose eviction is
// not to be seen yet.
func (s *State) waitsForVictims(t *template, pod *corev1.Pod, gone func(*corev1.Pod) bool) bool {
	slot, ok := s.slots[s.nominatedTo(pod.UID)]
	if !ok {
		return false
	}
	outside, refused := s.prepare(t, pod)
	if refused == nil {
		refused = s.rejectNominated(t, pod, outside, slot)
	}
	if refused != nil && !refused.resolvable {
		return false
	}
	priority := priorityOf(pod)
	return slices.ContainsFunc(s.podsOn(slot), func(p *placed) bool {
		return priorityOf(p.pod) < priority && (terminatingForPreemption(p.pod) || gone(p.pod))
	})
}

// pushedAside returns the pods nominated to a node that must give way to one of a priority.
func (s *State) pushedAside(slot int32, priority int32) []*corev1.Pod {
	var pods []*corev1.Pod
	for _, n := range s.nodes[slot].nominees {
		if n.priority < priority {
			pods = append(pods, n.pod)
		}
	}
	return pods
}
