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
	reasonName     = "node(s) didn't satisfy plugin(s) [NodeAffinity]"
	reasonPorts    = "node(s) didn't have free ports for the requested pod ports"
	reasonPods     = "Too many pods"
	messageNoNodes = "no nodes available to schedule pods"
)

// FitError says why no node can take a pod.
type FitError struct {
	Message string // what the PodScheduled condition and the event say
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

// reject names the filter that rejects a node and why; an empty filter means none does.
func (s *State) reject(t *template, slot int32) (filter string, reasons []string, resolvable bool) {
	switch s.static(t, s.nodes[slot].node) {
	case rejectCordon:
		return "NodeUnschedulable", []string{reasonCordon}, false
	case rejectTaint:
		return "TaintToleration", []string{reasonTaint}, false
	case rejectAffinity:
		return "NodeAffinity", []string{reasonAffinity}, false
	case rejectName:
		return "NodeAffinity", []string{reasonName}, false
	}
	if len(t.ports) > 0 && !s.portsFree(t, slot) {
		return "NodePorts", []string{reasonPorts}, true
	}
	resolvable = true
	base := int(slot) * s.width
	if s.used[base+resPods]+1 > s.allocatable[base+resPods] {
		reasons = append(reasons, reasonPods)
	}
	for _, d := range t.demands {
		if d.amount > s.allocatable[base+d.place]-s.used[base+d.place] {
			reasons = append(reasons, "Insufficient "+string(s.names[d.place]))
			resolvable = resolvable && d.amount <= s.allocatable[base+d.place]
		}
	}
	if len(reasons) > 0 {
		return "NodeResourcesFit", reasons, resolvable
	}
	return "", nil, false
}

// explain makes the message for a pod that fits nowhere.
func (s *State) explain(t *template, pod *corev1.Pod) *FitError {
	failure := &FitError{}
	s.reorder()
	total := len(s.order)
	if total == 0 {
		failure.Message = messageNoNodes
		return failure
	}
	counts := map[string]int{}
	resolvable := make(map[int32]bool)
	for _, slot := range s.order {
		_, reasons, ok := s.reject(t, slot)
		for _, reason := range reasons {
			counts[reason]++
		}
		if ok {
			resolvable[slot] = true
		}
	}
	failure.Message = fmt.Sprintf("0/%d nodes are available: %s.", total, histogram(counts))
	if tail := s.preemption(pod, resolvable); tail != "" {
		failure.Message += " no new claims to deallocate, preemption: " + tail
	}
	return failure
}

func histogram(counts map[string]int) string {
	lines := make([]string, 0, len(counts))
	for reason, count := range counts {
		lines = append(lines, fmt.Sprintf("%d %s", count, reason))
	}
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}

// preemption says why evicting other pods would not help. It is empty when that is not
// known: there are pods of lower priority, and this scheduler does not evict them.
func (s *State) preemption(pod *corev1.Pod, resolvable map[int32]bool) string {
	if pod.Spec.PreemptionPolicy != nil && *pod.Spec.PreemptionPolicy == corev1.PreemptNever {
		return "not eligible due to preemptionPolicy=Never."
	}
	priority := priorityOf(pod)
	for _, p := range s.pods {
		if p.slot != none && resolvable[p.slot] && priorityOf(p.template.pod) < priority {
			return ""
		}
	}
	counts := map[string]int{}
	if n := len(resolvable); n > 0 {
		counts["No preemption victims found for incoming pod"] = n
	}
	if n := len(s.order) - len(resolvable); n > 0 {
		counts["Preemption is not helpful for scheduling"] = n
	}
	return fmt.Sprintf("0/%d nodes are available: %s.", len(s.order), histogram(counts))
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
	if p, ok := s.pods[pod.UID]; ok && p.slot != none {
		s.charge(p, -1)
		defer s.charge(p, 1)
	}
	t := s.newTemplate(pod) // not shared: a question leaves no trace
	cache := &nodeCache{}
	cache.grow(len(s.nodes))
	s.reorder()
	var d Diagnosis
	s.scratch.slots = s.scratch.slots[:0]
	for _, slot := range s.order {
		if filter, reasons, resolvable := s.reject(t, slot); filter != "" {
			d.Nodes = append(d.Nodes, NodeDiagnosis{Node: s.nodes[slot].node.Name, Filter: filter, Reasons: reasons, Resolvable: resolvable})
			continue
		}
		s.judge(t, cache, slot)
		s.scratch.slots = append(s.scratch.slots, slot)
	}
	if len(s.scratch.slots) == 0 {
		d.Message = s.explain(t, pod).Message
	}
	var most limits
	s.spreadScores(t, &most)
	for _, slot := range s.scratch.slots {
		most.affinity = max(most.affinity, cache.affinity[slot])
		most.taints = max(most.taints, cache.taints[slot])
	}
	high := int64(-1)
	for i, slot := range s.scratch.slots {
		n := s.scoreLines(t, cache, slot, s.spreadOf(i), &most)
		if n.Total > high {
			d.Chosen, high = n.Node, n.Total
		}
		d.Nodes = append(d.Nodes, n)
	}
	slices.SortFunc(d.Nodes, func(a, b NodeDiagnosis) int { return strings.Compare(a.Node, b.Node) })
	return d
}

func (s *State) scoreLines(t *template, cache *nodeCache, slot int32, spread int64, most *limits) NodeDiagnosis {
	affinity, taints, crowd := int64(0), int64(maxScore), int64(0)
	if most.affinity > 0 {
		affinity = maxScore * int64(cache.affinity[slot]) / int64(most.affinity)
	}
	if most.taints > 0 {
		taints = maxScore - maxScore*int64(cache.taints[slot])/int64(most.taints)
	}
	if most.spread {
		crowd = normalSpread(spread, most)
	}
	return NodeDiagnosis{
		Node: s.nodes[slot].node.Name, Total: s.total(t, cache, slot, spread, most),
		Scores: []Score{
			{"TaintToleration", taints, weightTaint},
			{"NodeAffinity", affinity, weightAffinity},
			{"NodeResourcesFit", s.leastAllocated(t, slot), 1},
			{"PodTopologySpread", crowd, weightSpread},
			{"NodeResourcesBalancedAllocation", s.balanced(t, slot), 1},
			{"ImageLocality", s.imageScore(t, cache, slot), 1},
		},
	}
}
