package scheduler

import (
	"maps"
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// company is the pods whose coming, going or change of labels may let a pod fit somewhere, even on
// other nodes than theirs: those that its affinity and its spread constraints count. It
// may name too many, never too few. It plays the part of the queueing hints of
// kube-scheduler's InterPodAffinity and PodTopologySpread.
type company struct {
	terms []companyTerm
	// guarded says that a placed pod's anti-affinity may keep the pod away.
	guarded bool
}

type companyTerm struct {
	namespaces []string // nil for all
	selector   labels.Selector
}

// companyOf returns what other pods matter to a pod that these plugins have rejected, nil
// if none do.
func companyOf(pod *corev1.Pod, plugins PluginSet) *company {
	c := company{guarded: plugins.Has(InterPodAffinity)}
	if c.guarded && pod.Spec.Affinity != nil {
		if a := pod.Spec.Affinity.PodAffinity; a != nil {
			c.add(pod, a.RequiredDuringSchedulingIgnoredDuringExecution)
		}
		if a := pod.Spec.Affinity.PodAntiAffinity; a != nil {
			c.add(pod, a.RequiredDuringSchedulingIgnoredDuringExecution)
		}
	}
	if plugins.Has(PodTopologySpread) {
		for i := range pod.Spec.TopologySpreadConstraints {
			if constraint := &pod.Spec.TopologySpreadConstraints[i]; constraint.WhenUnsatisfiable == corev1.DoNotSchedule {
				c.addSelector([]string{pod.Namespace}, constraint.LabelSelector)
			}
		}
		if len(pod.Spec.TopologySpreadConstraints) == 0 { // default constraints: any pod beside it may count
			c.terms = append(c.terms, companyTerm{[]string{pod.Namespace}, labels.Everything()})
		}
	}
	if len(c.terms) == 0 && !c.guarded {
		return nil
	}
	return &c
}

func (c *company) add(pod *corev1.Pod, terms []corev1.PodAffinityTerm) {
	for i := range terms {
		namespaces := terms[i].Namespaces
		switch {
		case terms[i].NamespaceSelector != nil:
			namespaces = nil
		case len(namespaces) == 0:
			namespaces = []string{pod.Namespace}
		}
		c.addSelector(namespaces, terms[i].LabelSelector)
	}
}

func (c *company) addSelector(namespaces []string, selector *metav1.LabelSelector) {
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		parsed = labels.Everything() // better a search in vain than a pod forgotten
	}
	c.terms = append(c.terms, companyTerm{namespaces, parsed})
}

// has says whether another pod is among the company.
func (c *company) has(pod *corev1.Pod) bool {
	if c.guarded && pod.Spec.Affinity != nil && pod.Spec.Affinity.PodAntiAffinity != nil &&
		len(pod.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution) > 0 {
		return true
	}
	return slices.ContainsFunc(c.terms, func(t companyTerm) bool {
		return (t.namespaces == nil || slices.Contains(t.namespaces, pod.Namespace)) && t.selector.Matches(labels.Set(pod.Labels))
	})
}

// nodeChanged has the pods retried that a node's coming or change may help: those that would fit on it,
// and, if nodes are other ones for affinity and spread now, those that these have rejected.
func (s *Scheduler) nodeChanged(old, node *corev1.Node) {
	slot, ok := s.state.slots[node.Name]
	if !ok {
		return
	}
	s.retryOn(slot)
	if old == nil || !maps.Equal(old.Labels, node.Labels) || old.Spec.Unschedulable != node.Spec.Unschedulable ||
		!apiequality.Semantic.DeepEqual(old.Spec.Taints, node.Spec.Taints) {
		s.retryRejectedBy(PluginsOf(InterPodAffinity, PodTopologySpread), nil)
	}
}

// nodeGone has the pods retried that may fit elsewhere once a node and its pods are not counted, and those
// nominated to it.
func (s *Scheduler) nodeGone(name string) {
	s.retryRejectedBy(PluginsOf(PodTopologySpread, InterPodAffinity, VolumeRestrictions), nil)
	for uid, n := range s.state.nominees {
		if w := s.queue.pods[uid]; n.node == name && w != nil && w.line != nil {
			s.retry(w.line)
		}
	}
}

// podGone has the pods retried that a pod has made room for on a node.
func (s *Scheduler) podGone(pod *corev1.Pod, node string) {
	if slot, ok := s.state.slots[node]; ok {
		s.retryOn(slot)
	}
	s.podChanged(pod)
	s.claimsFreed(pod)
}

// podChanged has the pods retried to which a placed pod is company.
func (s *Scheduler) podChanged(pod *corev1.Pod) {
	for l := range s.queue.social {
		if l.company.has(pod) {
			s.retry(l)
		}
	}
}

// retryOn has the pods retried that would fit on a node now, or after they have evicted others there. Of the
// others it notes what keeps them from it now: that may be another plugin than when they were tried, and
// what changes its mind may happen on another node. It costs a look a template, not a pod.
func (s *Scheduler) retryOn(slot int32) {
	name := s.state.nodes[slot].node.Name
	lowest := int32(math.MaxInt32)
	for _, p := range s.state.podsOn(slot) {
		lowest = min(lowest, priorityOf(p.pod))
	}
	for t, lines := range s.queue.listening {
		known, fits := false, false
		var against PluginSet
		for l := range lines {
			w := l.tried.first()
			if w == nil {
				continue
			}
			if !l.shared && s.state.nominatedTo(w.pod.UID) == name {
				if s.state.objector(t, w.pod, slot) == 0 || !s.state.waitsForVictims(t, w.pod, s.isDoomed) {
					s.retry(l)
				}
				continue // tried at the latest when its victims have gone
			}
			if !known {
				known = true
				fits, against = s.state.couldTake(t, w.pod, slot, lowest)
			}
			if fits {
				s.retry(l)
			} else {
				s.queue.object(l, l.plugins|against)
			}
		}
	}
}

// retryRejectedBy has the pods retried that one of the plugins has rejected and that match; a nil match
// takes them all. A line is asked about once, by the pod that waits longest.
func (s *Scheduler) retryRejectedBy(plugins PluginSet, match func(*corev1.Pod) bool) {
	for _, lines := range s.queue.listening {
		for l := range lines {
			if l.plugins&plugins == 0 {
				continue
			}
			if w := l.tried.first(); w != nil && (match == nil || match(w.pod)) {
				s.retry(l)
			}
		}
	}
}

// retry has a line tried again whose pods wait for an event.
func (s *Scheduler) retry(l *line) {
	s.queue.help(l, s.now())
	s.poke()
}

// couldTake says whether a pod would fit on a node now, or without the pods there that it may evict, of which
// lowest is the lowest priority; if not, what keeps it away in both cases.
func (s *State) couldTake(t *template, pod *corev1.Pod, slot, lowest int32) (bool, PluginSet) {
	first := s.objector(t, pod, slot)
	if first == 0 || lowest >= priorityOf(pod) || !preempts(pod) || t.profile.Off.Has(DefaultPreemption) {
		return first == 0, PluginsOf(first)
	}
	second := s.objectorAlone(t, pod, slot)
	return second == 0, PluginsOf(first, second)
}

// objector is the first plugin that keeps a pod from a node now, 0 if none does. It leaves no cache behind.
func (s *State) objector(t *template, pod *corev1.Pod, slot int32) Plugin {
	if !s.fits(t, slot) {
		return NodeResourcesFit
	}
	outside, refused := s.prepare(t, pod)
	if refused == nil {
		refused = s.rejectNominated(t, pod, outside, slot)
	}
	if refused == nil {
		return 0
	}
	return refused.plugin
}

// objectorAlone is objector as if all pods were gone that a pod may evict.
func (s *State) objectorAlone(t *template, pod *corev1.Pod, slot int32) Plugin {
	var lower []*placed
	for _, p := range s.podsOn(slot) {
		if priorityOf(p.pod) < priorityOf(pod) {
			s.lift(p)
			lower = append(lower, p)
		}
	}
	plugin := s.objector(t, pod, slot)
	for _, p := range lower {
		s.letDown(p)
	}
	return plugin
}
