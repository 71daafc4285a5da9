package scheduler

import (
	corev1 "k8s.io/api/core/v1"
)

// topology is a label key of nodes. Its values are domains: pods are held together in
// them, kept out of them, or spread over them. The empty key stands for the node itself.
type topology struct {
	key    string
	values map[string]int32 // label value to domain
	domain []int32          // by slot; none without the label
}

// topology returns the topology of a label key, making it if it is new.
func (s *State) topology(key string) *topology {
	t := s.topologies[key]
	if t == nil {
		t = &topology{key: key}
		s.topologies[key] = t
		s.layOut(t)
	}
	return t
}

// layOut numbers the domains of all nodes.
func (s *State) layOut(t *topology) {
	t.values = map[string]int32{}
	t.domain = t.domain[:0]
	for slot := range s.nodes {
		t.place(int32(slot), s.nodes[slot].node)
	}
}

// domains is how many numbers of domains there may be.
func (t *topology) domains() int {
	if t.key == "" {
		return len(t.domain)
	}
	return len(t.values)
}

// place says which domain a slot is in; node is nil for a free one.
func (t *topology) place(slot int32, node *corev1.Node) {
	for len(t.domain) <= int(slot) {
		t.domain = append(t.domain, none)
	}
	t.domain[slot] = none
	if node == nil {
		return
	}
	if t.key == "" {
		t.domain[slot] = slot
		return
	}
	value, ok := node.Labels[t.key]
	if !ok {
		return
	}
	number, ok := t.values[value]
	if !ok {
		number = int32(len(t.values))
		t.values[value] = number
	}
	t.domain[slot] = number
}

// replace takes over a change of a node in all topologies. Views are built anew when they
// are next looked at.
func (s *State) replace(slot int32) {
	s.layout++
	for _, t := range s.topologies {
		if len(t.values) > 2*len(s.nodes)+64 {
			s.layOut(t) // most values are of nodes that are gone
			continue
		}
		t.place(slot, s.nodes[slot].node)
	}
}

// spots counts the pods of a template by slot. Few templates are on more nodes than fit
// the array's first entries, so that is looked through before a map is made.
type spots struct {
	few  []spot
	many map[int32]spot
}

// spot is how many pods of a template are in a slot.
type spot struct {
	slot    int32
	all     int32
	leaving int32 // of them those that are being deleted
}

const fewSpots = 8

func (s *spots) add(slot, all, leaving int32) {
	if s.many != nil {
		at := s.many[slot]
		at.slot, at.all, at.leaving = slot, at.all+all, at.leaving+leaving
		if at.all == 0 && at.leaving == 0 {
			delete(s.many, slot)
			return
		}
		s.many[slot] = at
		return
	}
	for i := range s.few {
		at := &s.few[i]
		if at.slot != slot {
			continue
		}
		at.all += all
		at.leaving += leaving
		if at.all == 0 && at.leaving == 0 {
			last := len(s.few) - 1
			s.few[i] = s.few[last]
			s.few = s.few[:last]
		}
		return
	}
	if len(s.few) < fewSpots {
		s.few = append(s.few, spot{slot, all, leaving})
		return
	}
	s.many = make(map[int32]spot, 2*fewSpots)
	for _, at := range s.few {
		s.many[at.slot] = at
	}
	s.many[slot] = spot{slot, all, leaving}
	s.few = nil
}

// each calls do for every slot with pods.
func (s *spots) each(do func(spot)) {
	for _, at := range s.few {
		do(at)
	}
	for _, at := range s.many {
		do(at)
	}
}
