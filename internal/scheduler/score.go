package scheduler

import (
	"math"

	corev1 "k8s.io/api/core/v1"
)

// limits are the extremes among the candidates that scores are normalized by.
type limits struct {
	affinity, taints     int32
	minSpread, maxSpread int64
	spread               bool
	minPods, maxPods     int64
}

// scores are a node's scores by plugin, before weights.
type scores [pluginCount]int64

// best scores the candidates and returns the first of those with the highest score.
func (s *State) best(t *template) int32 {
	var most limits
	s.measure(t, &most)
	winner, high := none, int64(-1)
	for i, slot := range s.scratch.slots {
		if score := s.total(t, i, slot, &most); score > high {
			winner, high = slot, score
		}
	}
	return winner
}

// measure finds the extremes among the candidates, and their raw scores that depend on other pods.
func (s *State) measure(t *template, most *limits) {
	cache := t.cache
	s.spreadScores(t.plan, most)
	s.podScores(t.plan, most)
	for _, slot := range s.scratch.slots {
		most.affinity = max(most.affinity, cache.affinity[slot])
		most.taints = max(most.taints, cache.taints[slot])
	}
}

// podScores fills scratch.affinity with the weights of preferences about pods.
func (s *State) podScores(p *plan, most *limits) {
	c := &s.scratch
	c.affinity = c.affinity[:0]
	if len(p.score) == 0 {
		return
	}
	most.minPods, most.maxPods = math.MaxInt64, math.MinInt64
	for _, slot := range c.slots {
		var raw int64
		for _, v := range p.score {
			raw += int64(v.at(slot))
		}
		c.affinity = append(c.affinity, raw)
		most.minPods, most.maxPods = min(most.minPods, raw), max(most.maxPods, raw)
	}
}

// total is the weighted sum of the scores of candidate i, which is slot.
func (s *State) total(t *template, i int, slot int32, most *limits) int64 {
	w := &t.profile.Weights
	score := w[TaintToleration]*taintScore(t.cache, slot, most) + w[NodeAffinity]*affinityScore(t.cache, slot, most)
	if w[NodeResourcesFit] > 0 {
		score += w[NodeResourcesFit] * s.fitScore(t, slot)
	}
	if w[NodeResourcesBalancedAllocation] > 0 {
		score += w[NodeResourcesBalancedAllocation] * s.balanced(t, slot)
	}
	if len(s.images) > 0 && w[ImageLocality] > 0 {
		score += w[ImageLocality] * s.imageScore(t, t.cache, slot)
	}
	if most.spread {
		score += w[PodTopologySpread] * normalSpread(s.scratch.spread[i], most)
	}
	if most.maxPods > most.minPods {
		score += w[InterPodAffinity] * normalPods(s.scratch.affinity[i], most)
	}
	return score
}

// scoresOf is the parts of total.
func (s *State) scoresOf(t *template, i int, slot int32, most *limits) scores {
	var parts scores
	parts[TaintToleration] = taintScore(t.cache, slot, most)
	parts[NodeAffinity] = affinityScore(t.cache, slot, most)
	parts[NodeResourcesFit] = s.fitScore(t, slot)
	parts[NodeResourcesBalancedAllocation] = s.balanced(t, slot)
	if len(s.images) > 0 {
		parts[ImageLocality] = s.imageScore(t, t.cache, slot)
	}
	if most.spread {
		parts[PodTopologySpread] = normalSpread(s.scratch.spread[i], most)
	}
	if most.maxPods > most.minPods {
		parts[InterPodAffinity] = normalPods(s.scratch.affinity[i], most)
	}
	return parts
}

func taintScore(cache *nodeCache, slot int32, most *limits) int64 {
	if most.taints == 0 {
		return maxScore
	}
	return maxScore - maxScore*int64(cache.taints[slot])/int64(most.taints)
}

func affinityScore(cache *nodeCache, slot int32, most *limits) int64 {
	if most.affinity == 0 {
		return 0
	}
	return maxScore * int64(cache.affinity[slot]) / int64(most.affinity)
}

func normalPods(raw int64, most *limits) int64 {
	return int64(maxScore * (float64(raw-most.minPods) / float64(most.maxPods-most.minPods)))
}

// part is a resource that a score looks at.
type part struct {
	place  int
	weight int64
	add    int64 // what the pod would add
}

// parts prepares a score's resources for a shape, nil for the default ones: CPU and
// memory of equal weight. Resources beside the usual ones count for pods that ask for them.
func (s *State) parts(t *shape, resources []ResourceWeight, cpu, memory int64) []part {
	if len(resources) == 2 && resources[0] == (ResourceWeight{corev1.ResourceCPU, 1}) && resources[1] == (ResourceWeight{corev1.ResourceMemory, 1}) {
		return nil
	}
	list := make([]part, 0, len(resources))
	for _, r := range resources {
		p := part{place: s.place(r.Name), weight: r.Weight}
		switch p.place {
		case resCPU:
			p.add = cpu
		case resMemory:
			p.add = memory
		default:
			for _, d := range t.demands {
				if d.place == p.place {
					p.add = d.amount
				}
			}
			if p.add == 0 && p.place >= resFixed {
				continue
			}
		}
		list = append(list, p)
	}
	return list
}

// fitScore is NodeResourcesFit's score.
func (s *State) fitScore(t *template, slot int32) int64 {
	strategy := &t.profile.Fit
	if t.fitParts == nil && strategy.Type == LeastAllocated {
		return s.leastAllocated(t, slot)
	}
	base := int(slot) * s.width
	var sum, weights int64
	parts := t.fitParts
	if parts == nil {
		parts = []part{{resCPU, 1, t.askedCPU}, {resMemory, 1, t.askedMemory}}
	}
	for _, p := range parts {
		capacity := s.allocatable[base+p.place]
		if capacity == 0 {
			continue
		}
		asked := s.used[base+p.place]
		if p.place <= resMemory {
			asked = s.scored[2*int(slot)+p.place]
		}
		score := strategy.score(asked+p.add, capacity)
		if strategy.Type == RequestedToCapacityRatio && score <= 0 {
			continue
		}
		sum += score * p.weight
		weights += p.weight
	}
	if weights == 0 {
		return 0
	}
	if strategy.Type == RequestedToCapacityRatio {
		return int64(math.Round(float64(sum) / float64(weights)))
	}
	return sum / weights
}

// score is a resource's score; capacity is not 0.
func (c *ScoringStrategy) score(asked, capacity int64) int64 {
	switch c.Type {
	case MostAllocated:
		return min(asked, capacity) * maxScore / capacity
	case RequestedToCapacityRatio:
		use := int64(maxScore)
		if asked <= capacity {
			use = asked * maxScore / capacity
		}
		return c.shaped(use)
	}
	if asked > capacity {
		return 0
	}
	return (capacity - asked) * maxScore / capacity
}

// shaped follows the broken line. Points have scores up to 10 (MaxCustomPriorityScore).
func (c *ScoringStrategy) shaped(use int64) int64 {
	const scale = maxScore / 10
	for i, point := range c.Shape {
		if use > point.Utilization {
			continue
		}
		if i == 0 {
			return point.Score * scale
		}
		before := c.Shape[i-1]
		rise := point.Score*scale - before.Score*scale
		return before.Score*scale + rise*(use-before.Utilization)/(point.Utilization-before.Utilization)
	}
	if len(c.Shape) == 0 {
		return 0
	}
	return c.Shape[len(c.Shape)-1].Score * scale
}

// leastAllocated prefers nodes with room left. Source: NodeResourcesFit, LeastAllocated.
func (s *State) leastAllocated(t *template, slot int32) int64 {
	base, at := int(slot)*s.width, 2*int(slot)
	cpu, memory := s.allocatable[base+resCPU], s.allocatable[base+resMemory]
	var sum, parts int64
	if cpu != 0 {
		parts++
		if asked := s.scored[at] + t.askedCPU; asked <= cpu {
			sum += (cpu - asked) * maxScore / cpu
		}
	}
	if memory != 0 {
		parts++
		if asked := s.scored[at+1] + t.askedMemory; asked <= memory {
			sum += (memory - asked) * maxScore / memory
		}
	}
	if parts == 0 {
		return 0
	}
	return sum / parts
}

// balanced prefers nodes whose resources the pod would bring nearer to the same degree of use; a pod that
// asks for none of them has no score. Source: NodeResourcesBalancedAllocation.
func (s *State) balanced(t *template, slot int32) int64 {
	base := int(slot) * s.width
	if t.balanceParts != nil {
		asks := false
		for _, p := range t.balanceParts {
			asks = asks || p.add > 0
		}
		if !asks {
			return 0
		}
		return maxScore/2 + (maxScore/2+s.evennessOf(base, t.balanceParts, 1)-s.evennessOf(base, t.balanceParts, 0))/2
	}
	if t.cpu == 0 && t.memory == 0 {
		return 0
	}
	return maxScore/2 + (maxScore/2+s.evenness(base, t.cpu, t.memory)-s.evenness(base, 0, 0))/2
}

func (s *State) evenness(base int, cpu, memory int64) int64 {
	if s.allocatable[base+resCPU] == 0 || s.allocatable[base+resMemory] == 0 {
		return maxScore
	}
	x := min(1, float64(s.used[base+resCPU]+cpu)/float64(s.allocatable[base+resCPU]))
	y := min(1, float64(s.used[base+resMemory]+memory)/float64(s.allocatable[base+resMemory]))
	return int64((1 - math.Abs((x-y)/2)) * maxScore)
}

// evennessOf is evenness of any resources, with the pod's share (times 1) or without (times 0).
func (s *State) evennessOf(base int, parts []part, times int64) int64 {
	var fractions [16]float64
	list := fractions[:0]
	var sum float64
	for _, p := range parts {
		capacity := s.allocatable[base+p.place]
		if capacity == 0 {
			continue
		}
		fraction := min(1, float64(s.used[base+p.place]+times*p.add)/float64(capacity))
		list = append(list, fraction)
		sum += fraction
	}
	deviation := 0.0
	switch {
	case len(list) == 2:
		deviation = math.Abs((list[0] - list[1]) / 2)
	case len(list) > 2:
		mean := sum / float64(len(list))
		var squares float64
		for _, fraction := range list {
			squares += (fraction - mean) * (fraction - mean)
		}
		deviation = math.Sqrt(squares / float64(len(list)))
	}
	return int64((1 - deviation) * maxScore)
}

// imageScore prefers nodes that have the images, the more the larger they are and the
// more nodes have them. Source: ImageLocality.
func (s *State) imageScore(t *template, cache *nodeCache, slot int32) int64 {
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
