package scheduler

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Reasons of InterPodAffinity, in kube-scheduler's words.
const (
	reasonPodAffinity      = "node(s) didn't match pod affinity rules"
	reasonPodAntiAffinity  = "node(s) didn't match pod anti-affinity rules"
	reasonHeldAntiAffinity = "node(s) didn't satisfy existing pods anti-affinity rules"
)

// terms are the affinities of pods to pods.
type terms struct {
	affinity  []term // required
	anti      []term // required
	preferred []term // those of anti-affinity with a negative weight
}

// term holds pods together with, or apart from, those it matches, in a domain of key.
type term struct {
	atom
	key    string
	weight int32
}

// atom is pods by namespace and labels.
type atom struct {
	namespaces map[string]struct{}
	spaces     labels.Selector // of namespaces beside the named ones, nil for none
	selector   labels.Selector
}

// query is the pods that all its atoms match.
type query struct {
	atoms []atom
	live  bool // pods that are being deleted do not count
}

// newTerms reads the terms of a pod, nil if it has none. A pod whose selectors cannot be
// parsed has none: validation lets no such pod in.
func newTerms(pod *corev1.Pod) *terms {
	affinity := pod.Spec.Affinity
	if affinity == nil || (affinity.PodAffinity == nil && affinity.PodAntiAffinity == nil) {
		return nil
	}
	t := &terms{}
	add := func(list *[]term, from *corev1.PodAffinityTerm, weight int32) {
		if parsed, ok := newTerm(pod.Namespace, from, weight); ok {
			*list = append(*list, parsed)
		}
	}
	if a := affinity.PodAffinity; a != nil {
		for i := range a.RequiredDuringSchedulingIgnoredDuringExecution {
			add(&t.affinity, &a.RequiredDuringSchedulingIgnoredDuringExecution[i], 1)
		}
		for i := range a.PreferredDuringSchedulingIgnoredDuringExecution {
			p := &a.PreferredDuringSchedulingIgnoredDuringExecution[i]
			add(&t.preferred, &p.PodAffinityTerm, p.Weight)
		}
	}
	if a := affinity.PodAntiAffinity; a != nil {
		for i := range a.RequiredDuringSchedulingIgnoredDuringExecution {
			add(&t.anti, &a.RequiredDuringSchedulingIgnoredDuringExecution[i], 1)
		}
		for i := range a.PreferredDuringSchedulingIgnoredDuringExecution {
			p := &a.PreferredDuringSchedulingIgnoredDuringExecution[i]
			add(&t.preferred, &p.PodAffinityTerm, -p.Weight)
		}
	}
	if len(t.affinity)+len(t.anti)+len(t.preferred) == 0 {
		return nil
	}
	return t
}

// newTerm parses a term. Its matchLabelKeys and mismatchLabelKeys are in its selector
// already: the API server puts them there.
func newTerm(namespace string, from *corev1.PodAffinityTerm, weight int32) (term, bool) {
	selector, err := metav1.LabelSelectorAsSelector(from.LabelSelector)
	if err != nil {
		return term{}, false
	}
	t := term{atom: atom{selector: selector, namespaces: map[string]struct{}{}}, key: from.TopologyKey, weight: weight}
	if len(from.Namespaces) == 0 && from.NamespaceSelector == nil {
		t.namespaces[namespace] = struct{}{}
	}
	for _, name := range from.Namespaces {
		t.namespaces[name] = struct{}{}
	}
	if from.NamespaceSelector != nil {
		if t.spaces, err = metav1.LabelSelectorAsSelector(from.NamespaceSelector); err != nil {
			return term{}, false
		}
	}
	return t, true
}

// needsNamespaces says whether labels of namespaces matter to the terms.
func (t *terms) needsNamespaces() bool {
	needs := func(list []term) bool {
		return slices.ContainsFunc(list, func(t term) bool { return t.spaces != nil && !t.spaces.Empty() })
	}
	return t != nil && (needs(t.affinity) || needs(t.anti) || needs(t.preferred))
}

// matchesTerm says whether pods of a template are among those that a term is about.
func (s *State) matchesTerm(a *term, t *template) bool { return s.matchesAtom(&a.atom, t) }

func (s *State) matchesAtom(a *atom, t *template) bool {
	if _, ok := a.namespaces[t.pod.Namespace]; !ok {
		if a.spaces == nil || !a.spaces.Matches(s.namespaces[t.pod.Namespace]) {
			return false
		}
	}
	return a.selector.Matches(labels.Set(t.pod.Labels))
}

func (s *State) matches(q *query, t *template) bool {
	for i := range q.atoms {
		if !s.matchesAtom(&q.atoms[i], t) {
			return false
		}
	}
	return true
}

// String tells queries apart.
func (q *query) String() string {
	var b strings.Builder
	for i := range q.atoms {
		a := &q.atoms[i]
		for _, name := range slices.Sorted(maps.Keys(a.namespaces)) {
			b.WriteString(name)
			b.WriteByte(',')
		}
		if a.spaces != nil {
			b.WriteByte('{')
			b.WriteString(a.spaces.String())
			b.WriteByte('}')
		}
		b.WriteByte('[')
		b.WriteString(a.selector.String())
		if requirements, ok := a.selector.Requirements(); !ok || len(requirements) == 0 && !a.selector.Empty() {
			b.WriteByte('!') // nothing
		}
		b.WriteByte(']')
	}
	if q.live {
		b.WriteByte('~')
	}
	return b.String()
}

// prefers says whether a template has preferences about pods of its own.
func (t *template) prefers() bool { return t.terms != nil && len(t.terms.preferred) > 0 }

// planAffinity adds to a plan what pods of the template have to do with other pods.
func (s *State) planAffinity(t *template, p *plan) {
	if own := t.terms; own != nil {
		if len(own.affinity) > 0 {
			q := &query{}
			for i := range own.affinity {
				q.atoms = append(q.atoms, own.affinity[i].atom)
			}
			for i := range own.affinity {
				p.affinity = append(p.affinity, s.countView(q, own.affinity[i].key, nil, false))
			}
			p.first = s.matches(q, t)
		}
		for i := range own.anti {
			q := &query{atoms: []atom{own.anti[i].atom}}
			p.anti = append(p.anti, s.countView(q, own.anti[i].key, nil, false))
		}
	}
	scores := t.profile.Weights[InterPodAffinity] > 0 && (t.prefers() || !t.profile.IgnorePreferredTermsOfExistingPods)
	held, scored := map[string]struct{}{}, map[string]struct{}{}
	if t.prefers() && scores {
		for i := range t.terms.preferred {
			scored[t.terms.preferred[i].key] = struct{}{}
		}
	}
	for _, h := range s.holders {
		s.touches(h, t, held, scored)
	}
	for _, key := range slices.Sorted(maps.Keys(held)) {
		p.held = append(p.held, s.ownView(holding, key, t))
	}
	if scores {
		for _, key := range slices.Sorted(maps.Keys(scored)) {
			p.score = append(p.score, s.ownView(scoring, key, t))
		}
	}
}

// touches collects the topologies in which pods of a shape keep pods of a template out,
// and those in which they have a preference about them. It says whether there are any.
func (s *State) touches(h *shape, t *template, held, scored map[string]struct{}) bool {
	any := false
	look := func(list []term, keys map[string]struct{}) {
		for i := range list {
			if s.matchesTerm(&list[i], t) {
				any = true
				if keys != nil {
					keys[list[i].key] = struct{}{}
				}
			}
		}
	}
	look(h.terms.anti, held)
	look(h.terms.preferred, scored)
	if t.profile.HardPodAffinityWeight > 0 {
		look(h.terms.affinity, scored)
	}
	return any
}

// ownView makes a view that belongs to one template.
func (s *State) ownView(kind viewKind, key string, t *template) *view {
	v := &view{kind: kind, topology: s.topology(key), of: t, users: 1}
	s.addView(v)
	return v
}

// rejectAffinity says why the pods that are there keep a pod out of a node, empty if
// they do not. Only the first is for good: pods that are missing do not come by removing others.
func (p *plan) rejectAffinity(slot int32) string {
	if len(p.affinity) > 0 && !p.together(slot) {
		return reasonPodAffinity
	}
	for _, v := range p.anti {
		if v.at(slot) > 0 {
			return reasonPodAntiAffinity
		}
	}
	for _, v := range p.held {
		if v.at(slot) > 0 && !p.unheld {
			return reasonHeldAntiAffinity
		}
	}
	return ""
}

// heldAway says whether anti-affinity has a say: kube-scheduler's InterPodAffinity leaves a
// pod alone that has no terms if no placed pod's term is about it, and then takes no notice of
// nominated ones either.
func (p *plan) heldAway() bool {
	if len(p.affinity)+len(p.anti) > 0 {
		return true
	}
	for _, v := range p.held {
		if v.total > 0 {
			return true
		}
	}
	return false
}

// together says whether a node is where the pods are that a pod demands. Where there is
// none in the whole cluster, a pod that would match itself is the first of its group.
func (p *plan) together(slot int32) bool {
	found := true
	var total int64
	for _, v := range p.affinity {
		if v.topology.domain[slot] == none {
			return false
		}
		found = found && v.at(slot) > 0
		total += v.total
	}
	return found || (p.first && total == 0)
}

// SetNamespace takes over the labels of a namespace; RemoveNamespace forgets it.
func (s *State) SetNamespace(name string, set map[string]string) {
	if old, ok := s.namespaces[name]; ok && mapsEqual(old, set) {
		return
	}
	s.namespaces[name] = set
	s.renamespace(name)
}

// RemoveNamespace forgets the labels of a namespace.
func (s *State) RemoveNamespace(name string) {
	delete(s.namespaces, name)
	s.renamespace(name)
}

// renamespace drops what was concluded from the labels of a namespace, if anything was.
func (s *State) renamespace(name string) {
	if !s.wantsNamespaces {
		return
	}
	for len(s.planned) > 0 {
		s.unplan(s.planned[0])
	}
	s.freed++
	s.added++
}
