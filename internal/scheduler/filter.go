package scheduler

import (
	corev1 "k8s.io/api/core/v1"
)

// rejection says that a node, or every node, is not for a pod, and which plugin says so.
type rejection struct {
	plugin  Plugin
	reasons []string // kube-scheduler's words
	// resolvable says that taking pods away from the node may help
	// (kube-scheduler's Unschedulable; if false, UnschedulableAndUnresolvable).
	resolvable bool
}

// outsideFilter judges by what State does not hold, such as volumes. Its plugins stand between
// NodeResourcesFit and PodTopologySpread in the order of filters.
type outsideFilter interface {
	// prepare looks at a pod before its nodes are judged. No checks: the filter has nothing
	// to say of this pod. A rejection is of all nodes, before any filter is asked.
	prepare(pod *corev1.Pod) ([]outsideCheck, *rejection)
}

// outsideCheck judges nodes for the pod it was prepared for.
type outsideCheck struct {
	plugin Plugin
	// only, unless nil, names the only nodes that may do; the others are not looked at.
	only map[string]struct{}
	// check returns nil for a node that will do. It may be nil itself. Pods for which
	// lifted is true in podsOn are to be taken as not there.
	check func(node *corev1.Node, slot int32) *rejection
}

// outsideOf asks the outside filters about a pod. Pods without volumes cost nothing.
func (s *State) outsideOf(pod *corev1.Pod) ([]outsideCheck, *rejection) {
	if len(s.outside) == 0 || len(pod.Spec.Volumes) == 0 {
		return nil, nil
	}
	var all []outsideCheck
	for _, filter := range s.outside {
		checks, refused := filter.prepare(pod)
		if refused != nil {
			return nil, refused
		}
		all = append(all, checks...)
	}
	return all, nil
}

// prepare asks what may be said of all nodes before any is looked at.
func (s *State) prepare(t *template, pod *corev1.Pod) ([]outsideCheck, *rejection) {
	if t.onlyNodes != nil && len(t.onlyNodes) == 0 {
		return nil, &rejection{plugin: NodeAffinity, reasons: []string{reasonConflict}}
	}
	if len(pod.Spec.ResourceClaims) > 0 && !t.profile.Off.Has(DynamicResources) {
		return nil, &rejection{plugin: DynamicResources, reasons: []string{reasonClaims}}
	}
	return s.outsideOf(pod)
}

// passes says whether a node passes all filters. The template is warm.
func (s *State) passes(t *template, outside []outsideCheck, slot int32) bool {
	if !s.feasible(t, t.cache, slot) {
		return false
	}
	for i := range outside {
		c := &outside[i]
		if c.check != nil && c.check(s.nodes[slot].node, slot) != nil {
			return false
		}
	}
	return true
}
