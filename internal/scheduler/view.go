package scheduler

import (
	"slices"

	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	corev1 "k8s.io/api/core/v1"
)

// view is a sum over placed pods for each domain of a topology. It is kept up by charge,
// for the templates that count in it, and built anew after a change of nodes. Views
// exist for templates that are being placed only; what they sum up is in the templates' spots.
type view struct {
	key      string // under which it is shared, empty if it belongs to one template
	kind     viewKind
	topology *topology
	query    *query    // counting: which pods
	of       *template // holding, scoring: for which pod
	scope    *scope    // which nodes count; nil for all
	users    int       // plans with it

	members []member
	layout  uint64  // State.layout it was built for
	sum     []int32 // by domain
	total   int64   // of all domains

	// For hard spreading: the domains that have nodes in scope, and how many of them
	// have which sum. least is the smallest sum of any.
	levelled bool
	present  []int32 // by domain: nodes
	domains  int
	level    []int32 // by sum: domains
	least    int32

	seen   []uint32 // by domain: the search that met it last
	search uint32
}

type viewKind uint8

const (
	counting viewKind = iota // pods that a query matches
	holding                  // pods with a required anti-affinity term that matches view.of
	scoring                  // weights of preferences, of view.of and of placed pods for it
)

// member is a template whose pods count in a view.
type member struct {
	template *template
	weight   int32
}

// watch is a view that the pods of a template count in.
type watch struct {
	view   *view
	weight int32
}

// scope is the nodes that spreading looks at.
type scope struct {
	keys        []*topology                        // nodes have these labels
	required    *nodeaffinity.RequiredNodeAffinity // and match this, unless nil
	tolerations []corev1.Toleration                // and have no other taints, if honorTaints
	honorTaints bool
	in          []bool // by slot
	shape       *shape // whose required and tolerations they are
}

func (c *scope) includes(slot int32, node *corev1.Node) bool {
	for _, t := range c.keys {
		if t.domain[slot] == none {
			return false
		}
	}
	if c.required != nil {
		if match, _ := c.required.Match(node); !match {
			return false
		}
	}
	return !c.honorTaints || !untolerated(c.tolerations, node.Spec.Taints)
}

// weigh is what a pod of a template counts in a view.
func (s *State) weigh(v *view, t *template) int32 {
	var weight int32
	switch v.kind {
	case counting:
		if s.matches(v.query, t) {
			weight = 1
		}
	case holding:
		if t.terms == nil {
			return 0
		}
		for i := range t.terms.anti {
			if term := &t.terms.anti[i]; term.key == v.topology.key && s.matchesTerm(term, v.of) {
				weight++
			}
		}
	case scoring:
		if own := v.of.terms; own != nil {
			for i := range own.preferred {
				if term := &own.preferred[i]; term.key == v.topology.key && s.matchesTerm(term, t) {
					weight += term.weight
				}
			}
		}
		if t.terms == nil {
			return weight
		}
		for i := range t.terms.preferred {
			if term := &t.terms.preferred[i]; term.key == v.topology.key && s.matchesTerm(term, v.of) {
				weight += term.weight
			}
		}
		if hard := int32(v.of.profile.HardPodAffinityWeight); hard > 0 {
			for i := range t.terms.affinity {
				if term := &t.terms.affinity[i]; term.key == v.topology.key && s.matchesTerm(term, v.of) {
					weight += hard
				}
			}
		}
	}
	return weight
}

// enlist makes a template count in a view if it is of weight there.
func (s *State) enlist(v *view, t *template) {
	weight := s.weigh(v, t)
	if weight == 0 {
		return
	}
	v.members = append(v.members, member{t, weight})
	t.watches = append(t.watches, watch{v, weight})
}

// addView takes a new view in and finds its members.
func (s *State) addView(v *view) {
	v.layout = s.layout - 1 // to be summed up
	if v.kind != counting && (v.kind == holding || !v.of.prefers()) {
		s.heldViews = append(s.heldViews, v)
		for _, h := range s.holders {
			for _, t := range h.templates {
				s.enlist(v, t)
			}
		}
		return
	}
	if namespace, ok := v.namespace(); ok {
		s.spaceViews[namespace] = append(s.spaceViews[namespace], v)
		for t := range s.spaces[namespace] {
			s.enlist(v, t)
		}
		return
	}
	s.wideViews = append(s.wideViews, v)
	for _, space := range s.spaces {
		for t := range space {
			s.enlist(v, t)
		}
	}
}

// namespace is the only one whose pods may count, if there is one.
func (v *view) namespace() (string, bool) {
	if v.kind != counting {
		return "", false
	}
	for i := range v.query.atoms {
		a := &v.query.atoms[i]
		if a.spaces == nil && len(a.namespaces) == 1 {
			for name := range a.namespaces {
				return name, true
			}
		}
	}
	return "", false
}

// release gives up one use of a view.
func (s *State) release(v *view) {
	if v.users--; v.users > 0 {
		return
	}
	if v.key != "" {
		delete(s.views, v.key)
	}
	drop := func(list []*view) []*view {
		if at := slices.Index(list, v); at >= 0 {
			return slices.Delete(list, at, at+1)
		}
		return list
	}
	if namespace, ok := v.namespace(); ok {
		if s.spaceViews[namespace] = drop(s.spaceViews[namespace]); len(s.spaceViews[namespace]) == 0 {
			delete(s.spaceViews, namespace)
		}
	} else {
		s.wideViews, s.heldViews = drop(s.wideViews), drop(s.heldViews)
	}
	for _, m := range v.members {
		m.template.watches = slices.DeleteFunc(m.template.watches, func(w watch) bool { return w.view == v })
	}
}

// admit makes a new template count in the views there are.
func (s *State) admit(t *template) {
	for _, v := range s.spaceViews[t.pod.Namespace] {
		s.enlist(v, t)
	}
	for _, v := range s.wideViews {
		s.enlist(v, t)
	}
	if t.terms != nil {
		for _, v := range s.heldViews {
			s.enlist(v, t)
		}
	}
}

// dismiss takes a template without pods out of all views.
func (s *State) dismiss(t *template) {
	for _, w := range t.watches {
		members := w.view.members
		at := slices.IndexFunc(members, func(m member) bool { return m.template == t })
		last := len(members) - 1
		members[at] = members[last]
		members[last] = member{}
		w.view.members = members[:last]
	}
	t.watches = nil
}

// fresh sums a view up if nodes have changed since it was.
func (s *State) fresh(v *view) {
	if v.layout == s.layout {
		return
	}
	v.layout = s.layout
	v.total = 0
	domains := v.topology.domains()
	v.sum = zeroed(v.sum, domains)
	if v.scope != nil {
		v.scope.in = v.scope.in[:0]
		for slot := range s.nodes {
			node := s.nodes[slot].node
			v.scope.in = append(v.scope.in, node != nil && v.scope.includes(int32(slot), node))
		}
	}
	if v.levelled {
		s.level(v, domains)
	}
	for _, m := range v.members {
		m.template.spots.each(func(at spot) {
			count := at.all
			if v.live() {
				count -= at.leaving
			}
			v.add(at.slot, count*m.weight)
		})
	}
}

// level counts the nodes of each domain, none of which has pods yet.
func (s *State) level(v *view, domains int) {
	v.present = zeroed(v.present, domains)
	v.domains, v.least = 0, 0
	clear(v.level)
	for slot := range s.nodes {
		domain := v.topology.domain[slot]
		if domain == none || s.nodes[slot].node == nil || (v.scope != nil && !v.scope.in[slot]) {
			continue
		}
		if v.present[domain]++; v.present[domain] == 1 {
			v.domains++
		}
	}
	if len(v.level) == 0 {
		v.level = append(v.level, 0)
	}
	v.level[0] = int32(v.domains)
}

func zeroed(list []int32, size int) []int32 {
	if cap(list) < size {
		return make([]int32, size)
	}
	list = list[:size]
	clear(list)
	return list
}

// live says whether pods that are being deleted do not count.
func (v *view) live() bool { return v.query != nil && v.query.live }

// add changes the sum of the domain that a slot is in.
func (v *view) add(slot, count int32) {
	domain := v.topology.domain[slot]
	if domain == none || count == 0 || (v.scope != nil && !v.scope.in[slot]) {
		return
	}
	was := v.sum[domain]
	now := was + count
	v.sum[domain] = now
	v.total += int64(count)
	if !v.levelled || v.present[domain] == 0 {
		return
	}
	for len(v.level) <= int(now) {
		v.level = append(v.level, 0)
	}
	v.level[was]--
	v.level[now]++
	v.least = min(v.least, now)
	for v.level[v.least] == 0 {
		v.least++
	}
}

// at is the sum of the domain that a slot is in, 0 if it is in none.
func (v *view) at(slot int32) int32 {
	if domain := v.topology.domain[slot]; domain != none {
		return v.sum[domain]
	}
	return 0
}

// count takes a pod into the views that its template counts in (sign 1), or out of them.
func (s *State) count(p *placed, sign int32) {
	t := p.template
	var leaving int32
	if p.leaving {
		leaving = sign
	}
	t.spots.add(p.slot, sign, leaving)
	for i := range t.watches {
		w := &t.watches[i]
		if w.view.layout != s.layout || (p.leaving && w.view.live()) {
			continue // stale views are built anew
		}
		w.view.add(p.slot, sign*w.weight)
	}
}
