package scheduler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// placed is a pod that holds room on a node.
type placed struct {
	pod      *corev1.Pod // as last seen; read-only
	node     string      // name, also when there is no such node (yet)
	slot     int32
	index    int32 // in the pods of its node
	lifted   bool  // taken off its node to see how things were without it
	leaving  bool  // it is being deleted: it holds room, but does not count as spread
	template *template
}

// nominee is a pod that room is kept for on a node, because others were evicted for it.
type nominee struct {
	placed
	priority int32
}

// AddPod charges a pod to the node it is on, or assumes it to be on it. A pod that is
// known already is moved, or only its newest form kept if all that counts is the same.
func (s *State) AddPod(pod *corev1.Pod, node string) {
	leaving := pod.DeletionTimestamp != nil
	if p := s.pods[pod.UID]; p != nil {
		if p.node == node && p.leaving == leaving && s.sameTemplate(p.template, pod) {
			p.pod = pod
			return
		}
		s.RemovePod(pod.UID)
	}
	s.Unnominate(pod.UID)
	p := s.newPlaced()
	*p = placed{pod: pod, slot: none, node: node, leaving: leaving, template: s.ref(pod)}
	s.pods[pod.UID] = p
	if slot, ok := s.slots[node]; ok {
		s.settle(p, slot)
	} else {
		s.lose(p)
	}
	s.added++
}

// newPlaced makes room for many records at once, so that a pod costs no allocation of its own.
func (s *State) newPlaced() *placed {
	if len(s.spare) == 0 {
		s.spare = make([]placed, 32)
	}
	p := &s.spare[0]
	s.spare = s.spare[1:]
	return p
}

// RemovePod releases what a pod holds and returns the name of the node it was on, if any.
func (s *State) RemovePod(uid types.UID) (node string, ok bool) {
	p := s.pods[uid]
	if p == nil {
		return "", false
	}
	delete(s.pods, uid)
	if p.slot != none {
		s.unsettle(p)
		s.freed++
	} else if delete(s.lost[p.node], p); len(s.lost[p.node]) == 0 {
		delete(s.lost, p.node)
	}
	s.unref(p.template)
	return p.node, true
}

// settle puts a pod on a node that there is.
func (s *State) settle(p *placed, slot int32) {
	n := &s.nodes[slot]
	p.slot, p.index = slot, int32(len(n.pods))
	n.pods = append(n.pods, p)
	s.charge(p, 1)
}

// unsettle takes a pod off its node.
func (s *State) unsettle(p *placed) {
	s.charge(p, -1)
	n := &s.nodes[p.slot]
	last := len(n.pods) - 1
	n.pods[p.index] = n.pods[last]
	n.pods[p.index].index = p.index
	n.pods[last] = nil
	n.pods = n.pods[:last]
	p.slot = none
}

// lose keeps a pod in mind in case its node comes.
func (s *State) lose(p *placed) {
	if s.lost[p.node] == nil {
		s.lost[p.node] = map[*placed]struct{}{}
	}
	s.lost[p.node][p] = struct{}{}
}

// podsOn returns the pods of a node, in no order. They are the State's own: read-only.
func (s *State) podsOn(slot int32) []*placed { return s.nodes[slot].pods }

// lift takes a pod off its node in all counts, to ask how things were without it. Every
// lifted pod must be let down before anything else is asked of or done to the State.
func (s *State) lift(p *placed) {
	if !p.lifted && p.slot != none {
		p.lifted = true
		s.charge(p, -1)
	}
}

// letDown undoes lift.
func (s *State) letDown(p *placed) {
	if p.lifted {
		p.lifted = false
		s.charge(p, 1)
	}
}

// fitsOn says whether a pod passes all filters on a node as things are, lifted pods
// being away and nominated pods of its priority or a higher one being there. It is cheap after the
// first call for a template.
func (s *State) fitsOn(t *template, pod *corev1.Pod, slot int32) bool {
	outside, refused := s.prepare(t, pod)
	if refused != nil {
		return false
	}
	s.warm(t)
	return s.passesNominated(t, pod, outside, slot)
}

// passesNominated is passes with and without the pods that are nominated to the node: those of lower
// priority will have to give way, and those of a higher one may not come.
func (s *State) passesNominated(t *template, pod *corev1.Pod, outside []outsideCheck, slot int32) bool {
	if len(s.nodes[slot].nominees) == 0 {
		return s.passes(t, outside, slot)
	}
	there := s.seat(t, pod, slot)
	fits := s.passes(t, outside, slot)
	s.unseat(t, there)
	if len(there) > 0 {
		fits = fits && s.passes(t, outside, slot)
	}
	return fits
}

// seat charges the pods nominated to a node that a pod may not push away; unseat undoes it.
// The template is warm.
func (s *State) seat(t *template, pod *corev1.Pod, slot int32) []*nominee {
	var there []*nominee
	t.plan.unheld = !t.plan.heldAway()
	for _, n := range s.nodes[slot].nominees {
		if n.priority >= priorityOf(pod) && n.pod.UID != pod.UID {
			n.slot = slot
			s.charge(&n.placed, 1)
			there = append(there, n)
		}
	}
	return there
}

func (s *State) unseat(t *template, there []*nominee) {
	t.plan.unheld = false
	for _, n := range there {
		s.charge(&n.placed, -1)
	}
}

// Nominate keeps room on a node for a pod that waits. AddPod ends it, and Unnominate.
func (s *State) Nominate(pod *corev1.Pod, node string) {
	s.Unnominate(pod.UID)
	n := &nominee{placed: placed{pod: pod, node: node, slot: none, template: s.ref(pod)}, priority: priorityOf(pod)}
	s.nominees[pod.UID] = n
	if slot, ok := s.slots[node]; ok {
		s.nodes[slot].nominees = append(s.nodes[slot].nominees, n)
	}
	s.added++ // a pod with affinity to this one may fit now
}

// Unnominate gives up the room that is kept for a pod, if any.
func (s *State) Unnominate(uid types.UID) {
	n := s.nominees[uid]
	if n == nil {
		return
	}
	delete(s.nominees, uid)
	if slot, ok := s.slots[n.node]; ok {
		list := s.nodes[slot].nominees
		s.nodes[slot].nominees = slices.DeleteFunc(list, func(other *nominee) bool { return other == n })
	}
	s.unref(n.template)
	s.freed++
}

// nominatedTo returns the node that room is kept on for a pod, empty if none.
func (s *State) nominatedTo(uid types.UID) string {
	if n := s.nominees[uid]; n != nil {
		return n.node
	}
	return ""
}

// charge adds (sign 1) or takes back (sign -1) what a pod asks for on its node.
func (s *State) charge(p *placed, sign int64) {
	vector := s.used[int(p.slot)*s.width : int(p.slot+1)*s.width]
	for _, d := range p.template.demands {
		vector[d.place] += sign * d.amount
	}
	vector[resPods] += sign
	s.scored[2*p.slot] += sign * p.template.scoredCPU
	s.scored[2*p.slot+1] += sign * p.template.scoredMemory
	n := &s.nodes[p.slot]
	for _, port := range p.template.ports {
		if n.ports == nil {
			n.ports = map[hostPort]int32{}
		}
		if n.ports[port] += int32(sign); n.ports[port] == 0 {
			delete(n.ports, port)
		}
	}
	s.count(p, int32(sign))
}
