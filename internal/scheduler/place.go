package scheduler

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/nodedeclaredfeatures"
)

// maxScore is the highest score of a plugin.
const maxScore = 100

// Figures of the search and of the image score (schedule_one.go, image_locality.go).
const (
	minFeasible       = 100
	minPercent        = 5
	imageMinBytes     = 23 << 20
	imageMaxBytesEach = 1000 << 20
)

// scratch is what a search writes to, kept to be used again.
type scratch struct {
	slots    []int32
	spread   []int64
	affinity []int64
	weights  []float64
}

// Place returns the node a pod should go to: the best of those that pass all filters, or
// of the first many of them in a large cluster. It changes nothing; AddPod does.
func (s *State) Place(pod *corev1.Pod) (node string, err *FitError) {
	t := s.ref(pod)
	defer s.unref(t)
	slot, err := s.find(t, pod)
	if err != nil {
		return "", err
	}
	return s.nodes[slot].node.Name, nil
}

// find is Place for a template.
func (s *State) find(t *template, pod *corev1.Pod) (int32, *FitError) {
	own := s.nominees[pod.UID] != nil // room is kept for this pod, not for others of its kind
	if t.failure != nil && !own && t.failedAt == s.freed && (!t.social || t.failedWith == s.added) {
		return none, t.failure // nothing has become free since the last pod like this
	}
	outside, refused := s.prepare(t, pod)
	if refused != nil {
		return none, s.refuse(refused, t, pod)
	}
	if own {
		if slot, ok := s.slots[s.nominatedTo(pod.UID)]; ok && s.warm(t) != nil && s.passesNominated(t, pod, outside, slot) {
			return slot, nil // others were evicted to make room here
		}
	}
	s.collect(t, pod, outside)
	if len(s.scratch.slots) == 0 {
		failure := s.explain(t, pod, outside)
		if outside == nil && !own {
			t.failedAt, t.failedWith, t.failure = s.freed, s.added, failure
			t.social = s.ready(t).aware
		}
		return none, failure
	}
	t.failure = nil
	if len(s.scratch.slots) == 1 {
		return s.scratch.slots[0], nil
	}
	return s.best(t), nil
}

// enough is how many feasible nodes a search looks for. Upstream's formula.
func (p *Profile) enough(nodes int) int {
	if nodes < minFeasible {
		return nodes
	}
	percent := int(p.PercentageOfNodesToScore)
	if percent == 0 {
		percent = max(minPercent, 50-nodes/125)
	}
	return max(minFeasible, nodes*percent/100)
}

// collect fills scratch.slots with feasible nodes.
func (s *State) collect(t *template, pod *corev1.Pod, outside []outsideCheck) {
	s.scratch.slots = s.scratch.slots[:0]
	s.warm(t)
	if only, limited := onlyNodes(t, outside); limited {
		for name := range only {
			if slot, ok := s.slots[name]; ok && s.passesNominated(t, pod, outside, slot) {
				s.scratch.slots = append(s.scratch.slots, slot)
			}
		}
		return
	}
	s.reorder()
	cache := t.cache
	want := t.profile.enough(len(s.order))
	at := s.start
	seen := 0
	for ; seen < len(s.order) && len(s.scratch.slots) < want; seen++ {
		slot := s.order[at]
		if at++; at == len(s.order) {
			at = 0
		}
		if len(outside) > 0 || len(s.nodes[slot].nominees) > 0 {
			if s.passesNominated(t, pod, outside, slot) {
				s.scratch.slots = append(s.scratch.slots, slot)
			}
			continue
		}
		if s.feasible(t, cache, slot) {
			s.scratch.slots = append(s.scratch.slots, slot)
		}
	}
	if len(s.order) > 0 {
		// The next search begins behind this one; where all were seen, one further, so
		// that equal nodes take turns.
		s.start = at
		if seen == len(s.order) {
			s.start = (at + 1) % len(s.order)
		}
	}
}

// onlyNodes returns the nodes that alone may do, if there is such a limit.
func onlyNodes(t *template, outside []outsideCheck) (names map[string]struct{}, limited bool) {
	names, limited = t.onlyNodes, t.onlyNodes != nil
	for i := range outside {
		only := outside[i].only
		if only == nil {
			continue
		}
		if !limited {
			names, limited = only, true
			continue
		}
		both := map[string]struct{}{}
		for name := range only {
			if _, ok := names[name]; ok {
				both[name] = struct{}{}
			}
		}
		names = both
	}
	return names, limited
}

// feasible says whether a node passes all filters but the outside ones. The template is warm.
func (s *State) feasible(t *template, cache *nodeCache, slot int32) bool {
	if cache.version[slot] != s.nodes[slot].version {
		s.judge(t, cache, slot)
	}
	if cache.verdict[slot] != 0 || !s.fits(t, slot) || (len(t.ports) > 0 && !s.portsFree(t, slot)) {
		return false
	}
	p := t.plan
	return !p.aware || (p.rejectSpread(slot) == "" && p.rejectAffinity(slot) == "")
}

// fits compares what is left of a node's resources.
func (s *State) fits(t *template, slot int32) bool {
	if t.profile.Off.Has(NodeResourcesFit) {
		return true
	}
	base := int(slot) * s.width
	if s.used[base+resPods]+1 > s.allocatable[base+resPods] {
		return false
	}
	for _, d := range t.wanted {
		if d.amount > s.allocatable[base+d.place]-s.used[base+d.place] {
			return false
		}
	}
	return true
}

func (s *State) portsFree(t *template, slot int32) bool {
	const any4 = "0.0.0.0"
	held := s.nodes[slot].ports
	if len(held) == 0 || t.profile.Off.Has(NodePorts) {
		return true
	}
	for _, want := range t.ports {
		if want.ip != any4 {
			if held[want] > 0 || held[hostPort{any4, want.protocol, want.port}] > 0 {
				return false
			}
			continue
		}
		for have := range held {
			if have.port == want.port && have.protocol == want.protocol {
				return false
			}
		}
	}
	return true
}

// judge caches what depends on a node's labels, taints and cordon only.
func (s *State) judge(t *template, cache *nodeCache, slot int32) {
	n := &s.nodes[slot]
	cache.version[slot] = n.version
	cache.verdict[slot] = t.static(n)
	cache.affinity[slot], cache.taints[slot] = 0, 0
	if t.profile.added != nil && t.profile.added.preferred != nil {
		cache.affinity[slot] += int32(t.profile.added.preferred.Score(n.node))
	}
	if t.preferred != nil {
		cache.affinity[slot] += int32(t.preferred.Score(n.node))
	}
	for i := range n.node.Spec.Taints {
		taint := &n.node.Spec.Taints[i]
		if taint.Effect == corev1.TaintEffectPreferNoSchedule && !tolerated(t.lenient, taint) {
			cache.taints[slot]++
		}
	}
}

// static is the first filter that a node itself fails, 0 if it fails none.
func (t *shape) static(n *nodeInfo) Plugin {
	node, off := n.node, t.profile.Off
	if node.Spec.Unschedulable && !t.toleratesCordon && !off.Has(NodeUnschedulable) {
		return NodeUnschedulable
	}
	if !off.Has(TaintToleration) && untolerated(t.pod.Spec.Tolerations, node.Spec.Taints) {
		return TaintToleration
	}
	if !off.Has(NodeAffinity) {
		if _, ok := t.onlyNodes[node.Name]; t.onlyNodes != nil && !ok {
			return NodeAffinity
		}
		if added := t.profile.added; added != nil && added.required != nil && !added.required.Match(node) {
			return NodeAffinity
		}
		if t.hasRequired {
			if match, err := t.required.Match(node); err != nil || !match {
				return NodeAffinity
			}
		}
	}
	if t.features != nil && !off.Has(NodeDeclaredFeatures) {
		if enough, err := t.features.IsSubset(n.features()); err != nil || !enough {
			return NodeDeclaredFeatures
		}
	}
	return 0
}

// features is what a node declares. Few pods need any, so that it is not kept.
func (n *nodeInfo) features() nodedeclaredfeatures.FeatureSet {
	return nodedeclaredfeatures.DefaultFramework.TryMap(n.node.Status.DeclaredFeatures)
}
