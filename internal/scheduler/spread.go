package scheduler

import (
	"fmt"
	"math"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Reasons of PodTopologySpread, in kube-scheduler's words.
const (
	reasonSpread      = "node(s) didn't match pod topology spread constraints"
	reasonSpreadLabel = reasonSpread + " (missing required label)"
)

// hardSpread is a constraint that nodes must keep.
type hardSpread struct {
	view       *view
	maxSkew    int32
	minDomains int
	self       int32 // 1 if the pod itself counts
}

// softSpread is a constraint that nodes are scored by.
type softSpread struct {
	view *view
	// label is the constraint's topology. The view's is another one for the hostname
	// label: kube-scheduler counts those pods by node.
	label   *topology
	byNode  bool
	maxSkew int32
}

// planSpread adds a template's constraints to its plan: its own, or the default ones.
func (s *State) planSpread(t *template, p *plan) {
	constraints := t.pod.Spec.TopologySpreadConstraints
	p.strict = len(constraints) > 0 || !t.profile.SystemDefaulted
	var selector labels.Selector
	if len(constraints) == 0 {
		constraints = t.profile.DefaultConstraints
		if len(constraints) == 0 {
			return
		}
		if selector = s.defaultSelector(t.pod); selector.Empty() {
			return
		}
	}
	var hard, soft []*corev1.TopologySpreadConstraint
	for i := range constraints {
		if c := &constraints[i]; c.WhenUnsatisfiable == corev1.DoNotSchedule {
			hard = append(hard, c)
		} else {
			soft = append(soft, c)
		}
	}
	if !t.profile.Off.Has(PodTopologySpread) {
		for _, c := range hard {
			if q := spreadQuery(t, c, selector); q != nil {
				s.planHard(t, p, c, hard, q)
			}
		}
	}
	if t.profile.Weights[PodTopologySpread] > 0 {
		for _, c := range soft {
			if q := spreadQuery(t, c, selector); q != nil {
				s.planSoft(t, p, c, soft, q)
			}
		}
	}
}

func (s *State) planHard(t *template, p *plan, c *corev1.TopologySpreadConstraint, all []*corev1.TopologySpreadConstraint, q *query) {
	h := hardSpread{maxSkew: c.MaxSkew, minDomains: 1}
	if c.MinDomains != nil {
		h.minDomains = int(*c.MinDomains)
	}
	if q.atoms[0].selector.Matches(labels.Set(t.pod.Labels)) {
		h.self = 1
	}
	h.view = s.countView(q.counted(), c.TopologyKey, s.spreadScope(t, c, all), true)
	p.hard = append(p.hard, h)
}

func (s *State) planSoft(t *template, p *plan, c *corev1.TopologySpreadConstraint, all []*corev1.TopologySpreadConstraint, q *query) {
	f := softSpread{label: s.topology(c.TopologyKey), maxSkew: c.MaxSkew, byNode: c.TopologyKey == corev1.LabelHostname}
	if f.byNode {
		f.view = s.countView(q.counted(), "", nil, false)
	} else {
		if !p.strict {
			all = nil
		}
		f.view = s.countView(q.counted(), c.TopologyKey, s.spreadScope(t, c, all), false)
	}
	p.soft = append(p.soft, f)
}

// spreadQuery is the pods that a constraint counts. Validation lets no selector in that
// cannot be parsed.
func spreadQuery(t *template, c *corev1.TopologySpreadConstraint, selector labels.Selector) *query {
	if selector == nil {
		parsed, err := metav1.LabelSelectorAsSelector(c.LabelSelector)
		if err != nil {
			return nil
		}
		selector = parsed
		if requirements, ok := parsed.Requirements(); ok && len(c.MatchLabelKeys) > 0 {
			same := labels.Set{}
			for _, key := range c.MatchLabelKeys {
				if value, ok := t.pod.Labels[key]; ok {
					same[key] = value
				}
			}
			if len(same) > 0 {
				selector = labels.SelectorFromSet(same).Add(requirements...)
			}
		}
	}
	return &query{live: true, atoms: []atom{{namespaces: map[string]struct{}{t.pod.Namespace: {}}, selector: selector}}}
}

// counted is the query for counting: a selector that selects everything counts nothing
// (kube-scheduler's countPodsMatchSelector).
func (q *query) counted() *query {
	if !q.atoms[0].selector.Empty() {
		return q
	}
	nothing := q.atoms[0]
	nothing.selector = labels.Nothing()
	return &query{live: true, atoms: []atom{nothing}}
}

// spreadScope is the nodes that a constraint looks at: those with the labels of all
// constraints, and as its policies say; nil if having its own label is all.
func (s *State) spreadScope(t *template, c *corev1.TopologySpreadConstraint, all []*corev1.TopologySpreadConstraint) *scope {
	n := &scope{}
	for _, other := range all {
		if other.TopologyKey != c.TopologyKey {
			n.keys = append(n.keys, s.topology(other.TopologyKey))
		}
	}
	if t.hasRequired && (c.NodeAffinityPolicy == nil || *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor) {
		n.required = &t.required
		n.shape = t.shape
	}
	if c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor {
		n.honorTaints, n.tolerations = true, t.shape.pod.Spec.Tolerations
		n.shape = t.shape
	}
	if len(n.keys) == 0 && n.shape == nil {
		return nil
	}
	return n
}

// String tells scopes apart.
func (c *scope) String() string {
	var b strings.Builder
	for _, t := range c.keys {
		b.WriteString(t.key)
		b.WriteByte(',')
	}
	if c.shape != nil {
		fmt.Fprintf(&b, "%d", c.shape.id)
		if c.required != nil {
			b.WriteByte('a')
		}
		if c.honorTaints {
			b.WriteByte('t')
		}
	}
	return b.String()
}

// rejectSpread says why a node breaks a constraint, empty if it breaks none. A label
// that is missing is for good.
func (p *plan) rejectSpread(slot int32) string {
	for i := range p.hard {
		h := &p.hard[i]
		domain := h.view.topology.domain[slot]
		if domain == none {
			return reasonSpreadLabel
		}
		least := h.view.least
		if h.view.domains < h.minDomains {
			least = 0
		}
		if h.view.sum[domain]+h.self-least > h.maxSkew {
			return reasonSpread
		}
	}
	return ""
}

// spreadScores fills scratch.spread with how crowded each candidate is with pods that
// the soft constraints count; ignored marks those without a score.
func (s *State) spreadScores(p *plan, most *limits) {
	c := &s.scratch
	c.spread = c.spread[:0]
	if len(p.soft) == 0 {
		return
	}
	const ignored = -1
	rated := 0
	for _, slot := range c.slots {
		if p.strict && !p.labelled(slot) {
			c.spread = append(c.spread, ignored)
			continue
		}
		rated++
		c.spread = append(c.spread, 0)
	}
	c.weights = c.weights[:0]
	for i := range p.soft {
		size := rated
		if !p.soft[i].byNode {
			size = p.soft[i].values(c)
		}
		c.weights = append(c.weights, math.Log(float64(size+2)))
	}
	most.spread, most.minSpread = true, math.MaxInt64
	for i, slot := range c.slots {
		if c.spread[i] == ignored {
			continue
		}
		var score float64
		for j := range p.soft {
			f := &p.soft[j]
			if f.label.domain[slot] != none {
				score += float64(f.view.at(slot))*c.weights[j] + float64(f.maxSkew-1)
			}
		}
		raw := int64(math.Round(score))
		c.spread[i] = raw
		most.minSpread, most.maxSpread = min(most.minSpread, raw), max(most.maxSpread, raw)
	}
}

func (p *plan) labelled(slot int32) bool {
	for i := range p.soft {
		if p.soft[i].label.domain[slot] == none {
			return false
		}
	}
	return true
}

// values counts the values of the label among the rated candidates; having none is one, too.
func (f *softSpread) values(c *scratch) int {
	v := f.view
	v.search++
	if missing := len(v.sum) - len(v.seen); missing > 0 {
		v.seen = append(v.seen, make([]uint32, missing)...)
	}
	count, lacking := 0, 0
	for i, slot := range c.slots {
		if c.spread[i] < 0 {
			continue
		}
		domain := f.label.domain[slot]
		if domain == none {
			lacking = 1
		} else if v.seen[domain] != v.search {
			v.seen[domain] = v.search
			count++
		}
	}
	return count + lacking
}

func normalSpread(raw int64, most *limits) int64 {
	if raw < 0 {
		return 0
	}
	if most.maxSpread == 0 {
		return maxScore
	}
	return maxScore * (most.maxSpread + most.minSpread - raw) / most.maxSpread
}
