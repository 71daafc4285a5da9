package scheduler

import (
	"math"

	corev1 "k8s.io/api/core/v1"
)

// verdict is the first filter that rejects a node for reasons of the node itself.
type verdict uint8

const (
	passes verdict = iota
	rejectCordon
	rejectTaint
	rejectAffinity
	rejectName // another node is demanded by name
)

// Weights of the scores, as in kube-scheduler's default profile.
const (
	weightTaint    = 3
	weightAffinity = 2
	weightSpread   = 2
	maxScore       = 100
)

// Figures of the search and of the image score (schedule_one.go, image_locality.go).
const (
	minFeasible       = 100
	minPercent        = 5
	imageMinBytes     = 23 << 20
	imageMaxBytesEach = 1000 << 20
	hostSkew          = 3
	zoneSkew          = 5
)

// scratch is what a search writes to, kept to be used again.
type scratch struct {
	slots  []int32
	spread []int64
	zones  []bool // zones seen among the candidates

	group   *group
	onNode  []int32 // pods of group by slot
	touched []int32 // slots that are not zero in onNode
}

// Place returns the node a pod should go to: the best of those that pass all filters, or
// of the first many of them in a large cluster. It changes nothing; AddPod does.
func (s *State) Place(pod *corev1.Pod) (node string, err *FitError) {
	slot, err := s.find(s.template(pod), pod)
	if err != nil {
		return "", err
	}
	return s.nodes[slot].node.Name, nil
}

// find is Place for a template.
func (s *State) find(t *template, pod *corev1.Pod) (int32, *FitError) {
	at := [2]uint64{s.freed, s.added}
	own := s.nominees[pod.UID] != nil // room is kept for this pod, not for others of its kind
	if t.failure != nil && t.failedAt == at && !own {
		return none, t.failure // nothing has become free since the last pod like this
	}
	outside, refused := s.outsideOf(pod)
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
			t.failedAt, t.failure = at, failure
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
func enough(nodes int) int {
	if nodes < minFeasible {
		return nodes
	}
	percent := max(minPercent, 50-nodes/125)
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
	want := enough(len(s.order))
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

// feasible says whether a node passes all filters.
func (s *State) feasible(t *template, cache *nodeCache, slot int32) bool {
	if cache.version[slot] != s.nodes[slot].version {
		s.judge(t, cache, slot)
	}
	return cache.verdict[slot] == passes && s.fits(t, slot) && (len(t.ports) == 0 || s.portsFree(t, slot))
}

// fits compares what is left of a node's resources.
func (s *State) fits(t *template, slot int32) bool {
	base := int(slot) * s.width
	if s.used[base+resPods]+1 > s.allocatable[base+resPods] {
		return false
	}
	for _, d := range t.demands {
		if d.amount > s.allocatable[base+d.place]-s.used[base+d.place] {
			return false
		}
	}
	return true
}

func (s *State) portsFree(t *template, slot int32) bool {
	const any4 = "0.0.0.0"
	held := s.nodes[slot].ports
	if len(held) == 0 {
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
	cache.verdict[slot] = s.static(t, n.node)
	cache.affinity[slot], cache.taints[slot] = 0, 0
	if t.preferred != nil {
		cache.affinity[slot] = int32(t.preferred.Score(n.node))
	}
	for i := range n.node.Spec.Taints {
		taint := &n.node.Spec.Taints[i]
		if taint.Effect == corev1.TaintEffectPreferNoSchedule && !tolerated(t.lenient, taint) {
			cache.taints[slot]++
		}
	}
}

// static is the first filter that a node itself fails.
func (s *State) static(t *template, node *corev1.Node) verdict {
	if t.onlyNodes != nil {
		if _, ok := t.onlyNodes[node.Name]; !ok {
			return rejectName
		}
	}
	if node.Spec.Unschedulable && !t.toleratesCordon {
		return rejectCordon
	}
	for i := range node.Spec.Taints {
		taint := &node.Spec.Taints[i]
		if taint.Effect != corev1.TaintEffectNoSchedule && taint.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		if !tolerated(t.pod.Spec.Tolerations, taint) {
			return rejectTaint
		}
	}
	if t.hasRequired {
		if match, err := t.required.Match(node); err != nil || !match {
			return rejectAffinity
		}
	}
	return passes
}

// best scores the candidates and returns the first of those with the highest score.
func (s *State) best(t *template) int32 {
	cache := t.cache
	var most limits
	s.spreadScores(t, &most)
	for _, slot := range s.scratch.slots {
		most.affinity = max(most.affinity, cache.affinity[slot])
		most.taints = max(most.taints, cache.taints[slot])
	}
	winner, high := none, int64(-1)
	for i, slot := range s.scratch.slots {
		if score := s.total(t, cache, slot, s.spreadOf(i), &most); score > high {
			winner, high = slot, score
		}
	}
	return winner
}

// limits are the extremes among the candidates that scores are normalized by.
type limits struct {
	affinity, taints     int32
	minSpread, maxSpread int64
	spread               bool
}

func (s *State) spreadOf(i int) int64 {
	if i < len(s.scratch.spread) {
		return s.scratch.spread[i]
	}
	return 0
}

// total is the weighted sum of a node's scores.
func (s *State) total(t *template, cache *nodeCache, slot int32, spread int64, most *limits) int64 {
	score := s.leastAllocated(t, slot) + s.balanced(t, slot) + s.imageScore(t, cache, slot)
	if most.affinity > 0 {
		score += weightAffinity * (maxScore * int64(cache.affinity[slot]) / int64(most.affinity))
	}
	if most.taints > 0 {
		score += weightTaint * (maxScore - maxScore*int64(cache.taints[slot])/int64(most.taints))
	} else {
		score += weightTaint * maxScore
	}
	if most.spread {
		score += weightSpread * normalSpread(spread, most)
	}
	return score
}

func normalSpread(raw int64, most *limits) int64 {
	if most.maxSpread == 0 {
		return maxScore
	}
	return maxScore * (most.maxSpread + most.minSpread - raw) / most.maxSpread
}

// leastAllocated prefers nodes with room left. Source: NodeResourcesFit, LeastAllocated.
func (s *State) leastAllocated(t *template, slot int32) int64 {
	base := int(slot) * s.width
	var sum, parts int64
	for i, add := range [2]int64{t.scoredCPU, t.scoredMemory} {
		capacity := s.allocatable[base+i]
		if capacity == 0 {
			continue
		}
		parts++
		if asked := s.scored[2*int(slot)+i] + add; asked <= capacity {
			sum += (capacity - asked) * maxScore / capacity
		}
	}
	if parts == 0 {
		return 0
	}
	return sum / parts
}

// balanced prefers nodes whose CPU and memory the pod would bring nearer to the same
// degree of use. Source: NodeResourcesBalancedAllocation.
func (s *State) balanced(t *template, slot int32) int64 {
	var cpu, memory int64
	for _, d := range t.demands {
		switch d.place {
		case resCPU:
			cpu = d.amount
		case resMemory:
			memory = d.amount
		}
	}
	if cpu == 0 && memory == 0 {
		return 0
	}
	base := int(slot) * s.width
	with := s.evenness(base, cpu, memory)
	without := s.evenness(base, 0, 0)
	return maxScore/2 + (maxScore/2+with-without)/2
}

func (s *State) evenness(base int, cpu, memory int64) int64 {
	if s.allocatable[base+resCPU] == 0 || s.allocatable[base+resMemory] == 0 {
		return maxScore
	}
	x := min(1, float64(s.used[base+resCPU]+cpu)/float64(s.allocatable[base+resCPU]))
	y := min(1, float64(s.used[base+resMemory]+memory)/float64(s.allocatable[base+resMemory]))
	return int64((1 - math.Abs(x-y)/2) * maxScore)
}

// imageScore prefers nodes that have the images, the more the larger they are and the
// more nodes have them. Source: ImageLocality.
func (s *State) imageScore(t *template, cache *nodeCache, slot int32) int64 {
	if len(s.images) == 0 {
		return 0
	}
	if cache.imageAt[slot] == s.imageChanges {
		return int64(cache.image[slot])
	}
	var sum int64
	for _, name := range t.images {
		state := s.images[name]
		if state == nil {
			continue
		}
		if _, ok := state.nodes[slot]; ok {
			sum += int64(float64(state.bytes) * (float64(len(state.nodes)) / float64(len(s.slots))))
		}
	}
	high := int64(imageMaxBytesEach) * int64(max(1, t.containers))
	sum = min(max(sum, imageMinBytes), high)
	score := maxScore * (sum - imageMinBytes) / (high - imageMinBytes)
	cache.imageAt[slot], cache.image[slot] = s.imageChanges, int32(score)
	return score
}

// spreadScores fills scratch.spread with how crowded each candidate is with pods of the
// same controller. Source: PodTopologySpread with its default constraints.
func (s *State) spreadScores(t *template, most *limits) {
	s.scratch.spread = s.scratch.spread[:0]
	g := s.groups[t.owner]
	if t.owner == "" || g == nil {
		most.spread = t.owner != "" // nobody to stay away from: all score the same
		return
	}
	s.scratch.load(g, len(s.nodes))
	zones := s.countZones()
	hostWeight := math.Log(float64(len(s.scratch.slots) + 2))
	zoneWeight := math.Log(float64(zones + 2))
	most.spread, most.minSpread = true, math.MaxInt64
	for _, slot := range s.scratch.slots {
		n := &s.nodes[slot]
		var score float64
		if n.host {
			score += float64(s.scratch.onNode[slot])*hostWeight + hostSkew - 1
		}
		if n.zone != none {
			score += float64(g.inZone[n.zone])*zoneWeight + zoneSkew - 1
		}
		raw := int64(math.Round(score))
		s.scratch.spread = append(s.scratch.spread, raw)
		most.minSpread, most.maxSpread = min(most.minSpread, raw), max(most.maxSpread, raw)
	}
}

// countZones counts the zones among the candidates.
func (s *State) countZones() int {
	if len(s.zones) == 0 {
		return 0
	}
	if len(s.scratch.zones) < len(s.zones) {
		s.scratch.zones = make([]bool, len(s.zones))
	}
	clear(s.scratch.zones)
	count := 0
	for _, slot := range s.scratch.slots {
		if zone := s.nodes[slot].zone; zone != none && !s.scratch.zones[zone] {
			s.scratch.zones[zone] = true
			count++
		}
	}
	return count
}

// load spreads a group's sparse counts over an array by slot. Pods of a group mostly
// come one after the other, so it mostly is there already.
func (c *scratch) load(g *group, slots int) {
	if missing := slots - len(c.onNode); missing > 0 {
		c.onNode = append(c.onNode, make([]int32, missing)...)
	}
	if c.group == g {
		return
	}
	for _, slot := range c.touched {
		c.onNode[slot] = 0
	}
	c.touched = c.touched[:0]
	c.group = g
	for slot, count := range g.onNode {
		c.onNode[slot] = count
		c.touched = append(c.touched, slot)
	}
}

// moved keeps the loaded group's array up to date.
func (c *scratch) moved(g *group, slot, count int32) {
	if c.group != g {
		return
	}
	if missing := int(slot) + 1 - len(c.onNode); missing > 0 {
		c.onNode = append(c.onNode, make([]int32, missing)...)
	}
	if c.onNode[slot] == 0 {
		c.touched = append(c.touched, slot)
	}
	c.onNode[slot] += count
}
