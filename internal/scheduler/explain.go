package scheduler

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Reasons that a node is not used for, in kube-scheduler's words.
const (
	reasonCordon   = "node(s) were unschedulable"
	reasonTaint    = "node(s) had untolerated taint(s)"
	reasonAffinity = "node(s) didn't match Pod's node affinity/selector"
	reasonEnforced = "node(s) didn't match scheduler-enforced node affinity"
	reasonConflict = "pod affinity terms conflict"
	reasonClaims   = "pod has resource claims, which are not allocated here" // ours; kube-scheduler has none for it
	reasonFeatures = "node(s) didn't match Pod's required features"
	reasonPorts    = "node(s) didn't have free ports for the requested pod ports"
	reasonPods     = "Too many pods"
	messageNoNodes = "no nodes available to schedule pods"
)

// FitError says why no node can take a pod.
type FitError struct {
	Message string // what the PodScheduled condition and the event say
	// Plugins are those that rejected any node: only what changes their minds helps.
	Plugins PluginSet

	// candidates are the nodes on which taking pods away may help.
	candidates []int32
	// evictable says that some of them have pods of lower priority. Then the message does not
	// say yet what came of preemption.
	evictable bool
}

// Error returns the message.
func (e *FitError) Error() string { return e.Message }

// Diagnosis tells how each node did for a pod: why it failed, or how it scored.
type Diagnosis struct {
	Message string // the FitError's message, empty if a node was found
	Chosen  string // the node with the highest score, empty if there is none
	Nodes   []NodeDiagnosis
}

// NodeDiagnosis is one node's part of a Diagnosis. Filter and Reasons are set if a filter
// rejected the node, Scores and Total if all passed.
type NodeDiagnosis struct {
	Node    string
	Filter  string // the plugin's name, as "TaintToleration"
	Reasons []string
	// Resolvable says whether fewer pods on the node would help.
	Resolvable bool
	Scores     []Score
	Total      int64
}

// Score is one scorer's weighted part of a node's total.
type Score struct {
	Plugin string
	Value  int64 // 0 to 100
	Weight int64
}

// reject is the first filter that rejects a node, nil if none does. Outside filters have
// the say that their pod gave them.
func (s *State) reject(t *template, outside []outsideCheck, slot int32) *rejection {
	n := &s.nodes[slot]
	static := t.static(n)
	switch static {
	case NodeUnschedulable:
		return &rejection{static, []string{reasonCordon}, false}
	case TaintToleration:
		return &rejection{static, []string{reasonTaint}, false}
	case NodeAffinity:
		if added := t.profile.added; added != nil && added.required != nil && !added.required.Match(n.node) {
			return &rejection{static, []string{reasonEnforced}, false}
		}
		return &rejection{static, []string{reasonAffinity}, false}
	}
	if len(t.ports) > 0 && !s.portsFree(t, slot) {
		return &rejection{NodePorts, []string{reasonPorts}, true}
	}
	if r := s.rejectResources(t, slot); r != nil {
		return r
	}
	for i := range outside {
		if c := &outside[i]; c.check != nil {
			if r := c.check(n.node, slot); r != nil {
				return r
			}
		}
	}
	p := s.ready(t)
	if reason := p.rejectSpread(slot); reason != "" {
		return &rejection{PodTopologySpread, []string{reason}, reason != reasonSpreadLabel}
	}
	if reason := p.rejectAffinity(slot); reason != "" {
		return &rejection{InterPodAffinity, []string{reason}, reason != reasonPodAffinity}
	}
	if static == NodeDeclaredFeatures {
		return &rejection{static, []string{reasonFeatures}, false}
	}
	return nil
}

func (s *State) rejectResources(t *template, slot int32) *rejection {
	if t.profile.Off.Has(NodeResourcesFit) {
		return nil
	}
	r := &rejection{plugin: NodeResourcesFit, resolvable: true}
	base := int(slot) * s.width
	if s.used[base+resPods]+1 > s.allocatable[base+resPods] {
		r.reasons = append(r.reasons, reasonPods)
	}
	for _, d := range t.wanted {
		if d.amount > s.allocatable[base+d.place]-s.used[base+d.place] {
			r.reasons = append(r.reasons, "Insufficient "+string(s.names[d.place]))
			r.resolvable = r.resolvable && d.amount <= s.allocatable[base+d.place]
		}
	}
	if len(r.reasons) == 0 {
		return nil
	}
	return r
}

// rejectNominated is reject with and without the pods nominated to the node, as passesNominated.
func (s *State) rejectNominated(t *template, pod *corev1.Pod, outside []outsideCheck, slot int32) *rejection {
	if len(s.nodes[slot].nominees) == 0 {
		return s.reject(t, outside, slot)
	}
	s.ready(t)
	there := s.seat(t, pod, slot)
	r := s.reject(t, outside, slot)
	s.unseat(t, there)
	if r == nil {
		r = s.reject(t, outside, slot)
	}
	return r
}

// refuse is the failure of a pod that no node may take, whatever it has.
func (s *State) refuse(r *rejection, t *template, pod *corev1.Pod) *FitError {
	s.reorder()
	total := len(s.order)
	if total == 0 {
		return &FitError{Message: messageNoNodes}
	}
	failure := &FitError{Plugins: PluginsOf(r.plugin)}
	failure.Message = fmt.Sprintf("0/%d nodes are available: %s.", total, strings.Join(r.reasons, ", "))
	if !r.resolvable {
		// kube-scheduler breaks off before DynamicResources has looked at the pod, which then
		// finds nothing to do after the failure, and says so.
		failure.Message += " not found"
		return failure
	}
	failure.candidates = slices.Clone(s.order)
	s.finish(failure, t, pod)
	return failure
}

// explain makes the message for a pod that fits nowhere.
func (s *State) explain(t *template, pod *corev1.Pod, outside []outsideCheck) *FitError {
	failure := &FitError{}
	s.reorder()
	total := len(s.order)
	if total == 0 {
		failure.Message = messageNoNodes
		return failure
	}
	only, limited := onlyNodes(t, outside)
	counts := map[string]int{}
	for _, slot := range s.order {
		r := s.limit(only, limited, t, outside, slot)
		if r == nil {
			r = s.rejectNominated(t, pod, outside, slot)
		}
		if r == nil {
			continue
		}
		failure.Plugins |= PluginsOf(r.plugin)
		for _, reason := range r.reasons {
			counts[reason]++
		}
		if r.resolvable {
			failure.candidates = append(failure.candidates, slot)
		}
	}
	failure.Message = fmt.Sprintf("0/%d nodes are available: %s.", total, histogram(counts))
	s.finish(failure, t, pod)
	return failure
}

// limit rejects a node that is not among the only ones that may do.
func (s *State) limit(only map[string]struct{}, limited bool, t *template, outside []outsideCheck, slot int32) *rejection {
	if !limited {
		return nil
	}
	if _, ok := only[s.nodes[slot].node.Name]; ok {
		return nil
	}
	var set PluginSet
	if t.onlyNodes != nil {
		set |= PluginsOf(NodeAffinity)
	}
	for i := range outside {
		if outside[i].only != nil {
			set |= PluginsOf(outside[i].plugin)
		}
	}
	names := make([]string, 0, 2)
	for _, p := range set.List() {
		names = append(names, p.String())
	}
	slices.Sort(names)
	return &rejection{set.List()[0], []string{fmt.Sprintf("node(s) didn't satisfy plugin(s) %v", names)}, false}
}

// finish says behind the message why evicting other pods would not help, if that is clear.
func (s *State) finish(failure *FitError, t *template, pod *corev1.Pod) {
	if t.profile.Off.Has(DefaultPreemption) {
		return
	}
	var tail string
	if tail, failure.evictable = s.preemption(pod, failure.candidates); tail != "" {
		failure.Message = withTail(failure.Message, tail)
	}
}

// withTail puts what came of preemption behind a message.
func withTail(message, tail string) string {
	return message + " no new claims to deallocate, preemption: " + tail
}

func (s *State) failure(t *template, pod *corev1.Pod, outside []outsideCheck, refused *rejection) *FitError {
	if refused != nil {
		return s.refuse(refused, t, pod)
	}
	return s.explain(t, pod, outside)
}

func histogram(counts map[string]int) string {
	lines := make([]string, 0, len(counts))
	for reason, count := range counts {
		lines = append(lines, fmt.Sprintf("%d %s", count, reason))
	}
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}

// preemption says why evicting other pods would not help, or that there are pods of lower
// priority on the candidates.
func (s *State) preemption(pod *corev1.Pod, candidates []int32) (tail string, evictable bool) {
	if pod.Spec.PreemptionPolicy != nil && *pod.Spec.PreemptionPolicy == corev1.PreemptNever {
		return reasonNeverPreempts, false
	}
	priority := priorityOf(pod)
	for _, slot := range candidates {
		for _, p := range s.podsOn(slot) {
			if priorityOf(p.pod) < priority {
				return "", true
			}
		}
	}
	counts := map[string]int{}
	if n := len(candidates); n > 0 {
		counts[reasonNoVictims] = n
	}
	if n := len(s.order) - len(candidates); n > 0 {
		counts[reasonNotHelpful] = n
	}
	return fmt.Sprintf("0/%d nodes are available: %s.", len(s.order), histogram(counts)), false
}

func priorityOf(pod *corev1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}

// Diagnose tells how every node does for a pod as things are now. A pod that has a place
// is looked at as if it were not there.
func (s *State) Diagnose(pod *corev1.Pod) Diagnosis {
	if p := s.pods[pod.UID]; p != nil {
		s.lift(p)
		defer s.letDown(p)
	}
	t := s.newTemplate(pod, s.newShape(pod, 0)) // not shared: a question leaves no trace
	s.warm(t)
	defer s.cool(t)
	s.reorder()
	var d Diagnosis
	s.scratch.slots = s.scratch.slots[:0]
	outside, refused := s.prepare(t, pod)
	only, limited := onlyNodes(t, outside)
	for _, slot := range s.order {
		r := refused
		if r == nil {
			r = s.limit(only, limited, t, outside, slot)
		}
		if r == nil {
			r = s.rejectNominated(t, pod, outside, slot)
		}
		if r != nil {
			d.Nodes = append(d.Nodes, NodeDiagnosis{
				Node: s.nodes[slot].node.Name, Filter: r.plugin.String(), Reasons: r.reasons, Resolvable: r.resolvable,
			})
			continue
		}
		s.judge(t, t.cache, slot)
		s.scratch.slots = append(s.scratch.slots, slot)
	}
	if len(s.scratch.slots) == 0 {
		d.Message = s.failure(t, pod, outside, refused).Message
	}
	var most limits
	s.measure(t, &most)
	high := int64(-1)
	for i, slot := range s.scratch.slots {
		n := NodeDiagnosis{Node: s.nodes[slot].node.Name, Total: s.total(t, i, slot, &most)}
		parts := s.scoresOf(t, i, slot, &most)
		for plugin, weight := range t.profile.Weights {
			if weight > 0 {
				n.Scores = append(n.Scores, Score{Plugin(plugin).String(), parts[plugin], weight})
			}
		}
		if n.Total > high {
			d.Chosen, high = n.Node, n.Total
		}
		d.Nodes = append(d.Nodes, n)
	}
	slices.SortFunc(d.Nodes, func(a, b NodeDiagnosis) int { return strings.Compare(a.Node, b.Node) })
	return d
}

// cool drops what a template that is not shared has made.
func (s *State) cool(t *template) {
	s.unplan(t)
	s.hot = slices.DeleteFunc(s.hot, func(h *shape) bool { return h == t.shape })
}
