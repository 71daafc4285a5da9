package workload

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// daemonBurst is the most pods one pass creates or deletes (upstream's BurstReplicas).
const daemonBurst = 250

// labelTemplateGeneration is on pods for controllers that are older than revisions.
const labelTemplateGeneration = "pod-template-generation"

// daemonState is what one pass over a DaemonSet decides from. All of it is read-only.
type daemonState struct {
	ds    *appsv1.DaemonSet
	nodes []nodeFit     // all nodes, by name
	pods  []*corev1.Pod // those the DaemonSet controls
	hash  string        // of the revision that new pods get
	// held is how long a failed pod on a node has to stay, so that pods that fail at once do
	// not keep the machine busy.
	held func(node string) time.Duration
	now  time.Time
}

// daemonPlan is what one pass does.
type daemonPlan struct {
	create []string // nodes that get a pod
	remove []*corev1.Pod
	ended  []endedPod    // those of remove that ended by themselves
	again  time.Duration // when to look again without an event; 0 for never
	more   bool          // there is more to do than one pass does
}

// endedPod is a pod that ended though it should run for ever.
type endedPod struct {
	pod  *corev1.Pod
	node string
}

// daemonPlace is a node with a DaemonSet's pods on it.
type daemonPlace struct {
	nodeFit
	exists bool // the node
	pods   []*corev1.Pod
}

// old and updated are the one pod of an old revision and the one of the newest. ok is false
// if there are more: they are thinned out first.
func (p *daemonPlace) split(s *daemonState) (updated, old *corev1.Pod, ok bool) {
	for _, pod := range p.pods {
		side := &old
		if s.updated(pod) {
			side = &updated
		}
		switch {
		case pod.DeletionTimestamp != nil:
		case *side != nil:
			return nil, nil, false
		default:
			*side = pod
		}
	}
	return updated, old, true
}

// updated says whether a pod is of the newest template.
func (s *daemonState) updated(pod *corev1.Pod) bool {
	if s.hash != "" && pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == s.hash {
		return true
	}
	generation, ok := templateGeneration(s.ds)
	return ok && pod.Labels[labelTemplateGeneration] == generation
}

// templateGeneration is what the API counts for controllers that are older than revisions.
func templateGeneration(ds *appsv1.DaemonSet) (string, bool) {
	number, err := strconv.ParseInt(ds.Annotations[appsv1.DeprecatedTemplateGeneration], 10, 64)
	return strconv.FormatInt(number, 10), err == nil
}

func (s *daemonState) minReady() time.Duration {
	return time.Duration(s.ds.Spec.MinReadySeconds) * time.Second
}

func (s *daemonState) available(pod *corev1.Pod) bool {
	ok, _ := available(pod, s.minReady(), s.now)
	return ok
}

// places pairs the nodes with the pods on them, or made for them. Pods of nodes that are
// gone come last.
func (s *daemonState) places() []daemonPlace {
	// Two turns: the first counts the pods of each node, so that one array holds them all.
	const nowhere = -1
	at := make([]int, len(s.pods))
	counts := make([]int, len(s.nodes))
	elsewhere := map[string][]*corev1.Pod{}
	for i, pod := range s.pods {
		at[i] = nowhere
		node, ok := targetNode(pod)
		if !ok || (finished(pod) && pod.DeletionTimestamp != nil) {
			continue // somebody else has it deleted already
		}
		if place, found := slices.BinarySearchFunc(s.nodes, node, compareNode); found {
			at[i] = place
			counts[place]++
		} else {
			elsewhere[node] = append(elsewhere[node], pod)
		}
	}
	out := make([]daemonPlace, len(s.nodes), len(s.nodes)+len(elsewhere))
	space := make([]*corev1.Pod, len(s.pods))
	for i, n := range s.nodes {
		out[i] = daemonPlace{nodeFit: n, exists: true, pods: space[:0:counts[i]]}
		space = space[counts[i]:]
	}
	for i, pod := range s.pods {
		if at[i] != nowhere {
			out[at[i]].pods = append(out[at[i]].pods, pod)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(elsewhere)) {
		out = append(out, daemonPlace{nodeFit: nodeFit{name, fitNone}, pods: elsewhere[name]})
	}
	return out
}

// sortDaemonPods puts those that have a node first, then the oldest.
func sortDaemonPods(pods []*corev1.Pod) {
	slices.SortFunc(pods, func(a, b *corev1.Pod) int {
		if diff := order(a.Spec.NodeName == "", b.Spec.NodeName == ""); diff != 0 {
			return diff
		}
		if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
			return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
		}
		return strings.Compare(a.Name, b.Name)
	})
}

// daemonLimits resolves maxSurge and maxUnavailable, both rounded up. If both come to
// nothing one pod may be unavailable, or no rollout could ever move.
func daemonLimits(ds *appsv1.DaemonSet, desired int) (surge, unavailable int) {
	rolling := ds.Spec.UpdateStrategy.RollingUpdate
	if ds.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType && rolling != nil {
		resolve := func(value *intstr.IntOrString) int {
			n, err := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(value, intstr.FromInt32(0)), desired, true)
			if err != nil {
				return 0 // validation lets no such value in
			}
			return n
		}
		surge, unavailable = resolve(rolling.MaxSurge), resolve(rolling.MaxUnavailable)
	}
	if desired > 0 && surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

// surges says whether a node may have two pods during a rollout.
func surges(ds *appsv1.DaemonSet) bool {
	surge, _ := daemonLimits(ds, 1)
	return surge > 0
}

// planDaemonSet decides the next step of a DaemonSet, whose places are given: first every
// node gets what it should have, and when that is so a rollout goes on.
func planDaemonSet(s daemonState, all []daemonPlace) daemonPlan {
	var p daemonPlan
	var running []*corev1.Pod // of one node; its space is used again for the next
	for i := range all {
		running = s.manage(&p, &all[i], running[:0])
	}
	if len(p.create)+len(p.remove) == 0 && s.ds.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		desired := 0
		for i := range all {
			if all[i].fit == fitRun {
				desired++
			}
		}
		surge, unavailable := daemonLimits(s.ds, desired)
		if surge > 0 {
			s.rollWithSurge(&p, all, desired, surge)
		} else {
			s.roll(&p, all, unavailable)
		}
	}
	p.more = len(p.create) > daemonBurst || len(p.remove) > daemonBurst
	p.create = p.create[:min(len(p.create), daemonBurst)]
	p.remove = p.remove[:min(len(p.remove), daemonBurst)]
	return p
}

// manage gives one node what it should have. running is space for the pods that run there.
func (s *daemonState) manage(p *daemonPlan, place *daemonPlace, running []*corev1.Pod) []*corev1.Pod {
	switch {
	case !place.exists:
		for _, pod := range place.pods {
			if pod.Spec.NodeName == "" {
				p.remove = append(p.remove, pod) // it waits for a node that does not come back
			}
		}
	case place.fit == fitRun && len(place.pods) == 0:
		p.create = append(p.create, place.name)
	case place.fit == fitNone:
		for _, pod := range place.pods {
			if pod.DeletionTimestamp == nil {
				p.remove = append(p.remove, pod)
			}
		}
	default:
		running = s.replaceEnded(p, place, running)
		s.thin(p, place, running)
	}
	return running
}

// replaceEnded plans to remove pods that ended and adds those that run to running.
func (s *daemonState) replaceEnded(p *daemonPlan, place *daemonPlace, running []*corev1.Pod) []*corev1.Pod {
	for _, pod := range place.pods {
		switch {
		case pod.DeletionTimestamp != nil:
		case pod.Status.Phase == corev1.PodFailed:
			if wait := s.held(place.name); wait > 0 {
				if p.again == 0 || wait < p.again {
					p.again = wait
				}
				continue
			}
			fallthrough
		case pod.Status.Phase == corev1.PodSucceeded:
			p.ended = append(p.ended, endedPod{pod, place.name})
			p.remove = append(p.remove, pod)
		default:
			running = append(running, pod)
		}
	}
	return running
}

// thin leaves one running pod on a node, the oldest; with surge one of the newest revision
// beside an old one until it is available.
func (s *daemonState) thin(p *daemonPlan, place *daemonPlace, running []*corev1.Pod) {
	if len(running) > 1 {
		sortDaemonPods(running)
	}
	if !surges(s.ds) {
		if len(running) > 1 {
			p.remove = append(p.remove, running[1:]...)
		}
		return
	}
	if len(running) <= 1 {
		if len(running) == 0 && place.fit == fitRun {
			p.create = append(p.create, place.name) // beside one that is on its way out
		}
		return
	}
	var newest, old *corev1.Pod
	for _, pod := range running {
		side := &old
		if pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == s.hash {
			side = &newest
		}
		if *side != nil {
			p.remove = append(p.remove, pod)
			continue
		}
		*side = pod
	}
	if newest == nil || old == nil {
		return
	}
	if _, ready := readySince(old); !ready || s.available(newest) {
		p.remove = append(p.remove, old)
	}
}

// roll takes away old pods as far as limit lets pods be unavailable; the nodes get new ones
// in the next passes. An old pod that is not available anyway goes at once.
func (s *daemonState) roll(p *daemonPlan, all []daemonPlace, limit int) {
	down := 0
	var candidates []*corev1.Pod
	for i := range all {
		place := &all[i]
		if place.fit != fitRun && len(place.pods) == 0 {
			continue
		}
		updated, old, ok := place.split(s)
		switch {
		case !ok || (updated == nil) == (old == nil):
			down++
		case updated != nil:
			if !s.available(updated) {
				down++
			}
		case !s.available(old):
			p.remove = append(p.remove, old)
			down++
		default:
			candidates = append(candidates, old)
		}
	}
	p.remove = append(p.remove, candidates[:min(max(0, limit-down), len(candidates))]...)
}

// rollWithSurge starts new pods beside old ones, at most limit at a time, and takes an old
// one away when the new one is available. A node whose old pod is not available gets its
// new one at once.
func (s *daemonState) rollWithSurge(p *daemonPlan, all []daemonPlace, desired, limit int) {
	surging, availableNow := 0, 0
	var candidates []string    // nodes for a pod within the limit
	var unwanted []*corev1.Pod // available, on nodes that should not have one
	for i := range all {
		place := &all[i]
		updated, old, ok := place.split(s)
		if !ok {
			surging++
			continue
		}
		if one := firstPod(old, updated); one != nil && s.available(one) {
			availableNow++
		}
		switch {
		case old == nil:
		case updated == nil && place.fit != fitRun && s.available(old):
			unwanted = append(unwanted, old)
		case updated == nil && place.fit != fitRun:
			p.remove = append(p.remove, old)
		case updated == nil && !s.available(old):
			p.create = append(p.create, place.name)
		case updated == nil:
			candidates = append(candidates, place.name)
		case !s.available(updated):
			surging++
		default:
			p.remove = append(p.remove, old)
		}
	}
	// Pods where none should be go only when as many as wanted are available elsewhere.
	p.remove = append(p.remove, unwanted[:min(max(0, availableNow-desired), len(unwanted))]...)
	p.create = append(p.create, candidates[:min(max(0, limit-surging), len(candidates))]...)
}

func firstPod(pods ...*corev1.Pod) *corev1.Pod {
	for _, pod := range pods {
		if pod != nil {
			return pod
		}
	}
	return nil
}

// planDaemonStatus is the status that the places show. wait is when a ready pod becomes available
// next, 0 if none will.
func planDaemonStatus(s daemonState, all []daemonPlace) (status appsv1.DaemonSetStatus, wait time.Duration) {
	status = *s.ds.Status.DeepCopy()
	status.ObservedGeneration = s.ds.Generation
	status.DesiredNumberScheduled, status.CurrentNumberScheduled, status.NumberMisscheduled = 0, 0, 0
	status.NumberReady, status.NumberAvailable, status.UpdatedNumberScheduled = 0, 0, 0
	for _, place := range all {
		switch {
		case !place.exists:
		case place.fit == fitRun:
			status.DesiredNumberScheduled++
			if len(place.pods) == 0 {
				continue
			}
			status.CurrentNumberScheduled++
			if len(place.pods) > 1 {
				sortDaemonPods(place.pods)
			}
			pod := place.pods[0]
			if _, ready := readySince(pod); ready {
				status.NumberReady++
				ok, missing := available(pod, s.minReady(), s.now)
				if ok {
					status.NumberAvailable++
				} else if wait == 0 || missing < wait {
					wait = missing
				}
			}
			if s.updated(pod) {
				status.UpdatedNumberScheduled++
			}
		case len(place.pods) > 0:
			status.NumberMisscheduled++
		}
	}
	status.NumberUnavailable = status.DesiredNumberScheduled - status.NumberAvailable
	return status, wait
}
