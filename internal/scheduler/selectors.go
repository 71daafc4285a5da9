package scheduler

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// owner is a controller whose selector says which pods are of one kind for the default
// spread constraints.
type owner struct{ apiVersion, kind, namespace, name string }

// SetService takes over a service's selector, which says that pods it matches are to be spread.
func (s *State) SetService(namespace, name string, selector map[string]string) {
	services := s.services[namespace]
	if old, ok := services[name]; ok && mapsEqual(old, selector) && (old == nil) == (selector == nil) {
		return
	}
	if services == nil {
		services = map[string]labels.Set{}
		s.services[namespace] = services
	}
	services[name] = selector
	s.reselect(namespace)
}

// RemoveService forgets a service.
func (s *State) RemoveService(namespace, name string) {
	if _, ok := s.services[namespace][name]; !ok {
		return
	}
	if delete(s.services[namespace], name); len(s.services[namespace]) == 0 {
		delete(s.services, namespace)
	}
	s.reselect(namespace)
}

// SetOwner takes over the selector of a ReplicationController, ReplicaSet or StatefulSet.
func (s *State) SetOwner(apiVersion, kind, namespace, name string, selector *metav1.LabelSelector) {
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return // validation lets no such selector in
	}
	key := owner{apiVersion, kind, namespace, name}
	if old, ok := s.owners[key]; ok && old.String() == parsed.String() {
		return
	}
	s.owners[key] = parsed
	s.reselect(namespace)
}

// RemoveOwner forgets such a controller.
func (s *State) RemoveOwner(apiVersion, kind, namespace, name string) {
	key := owner{apiVersion, kind, namespace, name}
	if _, ok := s.owners[key]; ok {
		delete(s.owners, key)
		s.reselect(namespace)
	}
}

// reselect marks the plans of a namespace that may have read a selector that has changed.
func (s *State) reselect(namespace string) {
	for _, t := range s.planned {
		if t.pod.Namespace == namespace && len(t.pod.Spec.TopologySpreadConstraints) == 0 {
			t.plan.stale = true
		}
	}
	for _, p := range s.profiles {
		if !p.SystemDefaulted {
			s.freed++ // such constraints may have kept pods out
			break
		}
	}
}

// defaultSelector is the pods that a pod is to be spread from if it does not say so
// itself: those of its services and of its controller. Source: kube-scheduler, helper/spread.go.
func (s *State) defaultSelector(pod *corev1.Pod) labels.Selector {
	merged := labels.Set{}
	for _, selector := range s.services[pod.Namespace] {
		if selector != nil && contains(pod.Labels, selector) {
			for key, value := range selector {
				merged[key] = value
			}
		}
	}
	var of labels.Selector
	if by := metav1.GetControllerOfNoCopy(pod); by != nil {
		of = s.owners[owner{by.APIVersion, by.Kind, pod.Namespace, by.Name}]
		if of != nil && by.Kind == "ReplicationController" {
			return overridden(merged, of)
		}
	}
	selector := merged.AsSelectorPreValidated()
	if of == nil {
		return selector
	}
	if requirements, ok := of.Requirements(); ok {
		selector = selector.Add(requirements...)
	}
	return selector
}

// overridden is the selector of a set of labels, and of a ReplicationController, whose values come first.
func overridden(set labels.Set, by labels.Selector) labels.Selector {
	requirements, _ := by.Requirements()
	for i := range requirements {
		if values := requirements[i].ValuesUnsorted(); len(values) == 1 {
			set[requirements[i].Key()] = values[0]
		}
	}
	return set.AsSelectorPreValidated()
}

func contains(set, part map[string]string) bool {
	for key, value := range part {
		if have, ok := set[key]; !ok || have != value {
			return false
		}
	}
	return true
}
