package scheduler

import (
	"slices"
)

// plan is what a template knows of other pods while pods of it are being placed.
type plan struct {
	layout uint64 // State.layout the views were last looked at for
	stale  bool   // what the plan was made from has changed

	affinity []*view // a view per required term, all counting the pods that match all terms
	first    bool    // a pod of the template matches its own required terms
	anti     []*view // a view per required anti-affinity term
	held     []*view // anti-affinity of placed pods to this one, a view per topology
	unheld   bool    // while nominated pods are seated: held has no say
	score    []*view // preferences, a view per topology
	hard     []hardSpread
	soft     []softSpread
	strict   bool // nodes that lack a label of soft have no spread score
	aware    bool // feasibility depends on where other pods are
}

func (p *plan) views(do func(*view)) {
	for _, list := range [][]*view{p.affinity, p.anti, p.held, p.score} {
		for _, v := range list {
			do(v)
		}
	}
	for i := range p.hard {
		do(p.hard[i].view)
	}
	for i := range p.soft {
		do(p.soft[i].view)
	}
}

// ready gives a template a plan that is up to date.
func (s *State) ready(t *template) *plan {
	if t.plan != nil && t.plan.stale {
		s.unplan(t)
	}
	if t.plan == nil {
		if len(s.planned) >= 4*s.hotLimit() { // a plan is smaller than a cache
			s.unplan(s.planned[0])
		}
		p := &plan{layout: s.layout - 1}
		t.plan = p
		s.planned = append(s.planned, t)
		s.planSpread(t, p)
		s.planAffinity(t, p)
		p.aware = len(p.hard)+len(p.affinity)+len(p.anti)+len(p.held) > 0
	}
	if p := t.plan; p.layout != s.layout {
		p.views(s.fresh)
		p.layout = s.layout
	}
	return t.plan
}

// unplan drops a template's plan.
func (s *State) unplan(t *template) {
	if t.plan == nil {
		return
	}
	t.plan.views(s.release)
	t.plan = nil
	if at := slices.Index(s.planned, t); at >= 0 {
		s.planned = slices.Delete(s.planned, at, at+1)
	}
}

// countView returns the view that counts the pods of a query in the domains of a label.
func (s *State) countView(q *query, key string, c *scope, levelled bool) *view {
	name := q.String() + "@" + key
	if c != nil {
		name += "|" + c.String()
	}
	if levelled {
		name += "|levelled"
	}
	if v := s.views[name]; v != nil {
		v.users++
		s.fresh(v)
		return v
	}
	v := &view{key: name, kind: counting, topology: s.topology(key), query: q, scope: c, users: 1, levelled: levelled}
	s.views[name] = v
	s.addView(v)
	s.fresh(v)
	return v
}

// hotLimit is how many templates may have caches at once: in small clusters more, as a
// cache is as long as there are nodes.
func (s *State) hotLimit() int {
	return min(1024, max(64, 500_000/max(1, len(s.nodes))))
}
