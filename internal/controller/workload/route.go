package workload

import (
	"maps"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// selectors knows what the owners of one kind select, so that an orphan finds who may want
// it without a list.
type selectors struct {
	mu          sync.Mutex // guards byNamespace
	byNamespace map[string]map[string]labels.Selector
}

// observe takes an event of an owner. selector is what it selects now, nil when it is gone.
func (s *selectors) observe(old, current client.Object, selector *metav1.LabelSelector) {
	if old != nil && current != nil && old.GetUID() == current.GetUID() && old.GetGeneration() == current.GetGeneration() {
		return
	}
	obj := current
	if obj == nil {
		obj = old
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	owners := s.byNamespace[obj.GetNamespace()]
	if current != nil {
		parsed, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil || parsed.Empty() {
			parsed = labels.Nothing()
		}
		if owners == nil {
			owners = map[string]labels.Selector{}
			if s.byNamespace == nil {
				s.byNamespace = map[string]map[string]labels.Selector{}
			}
			s.byNamespace[obj.GetNamespace()] = owners
		}
		owners[obj.GetName()] = parsed
		return
	}
	delete(owners, obj.GetName())
	if len(owners) == 0 {
		delete(s.byNamespace, obj.GetNamespace())
	}
}

// matching returns the owners that select an object.
func (s *selectors) matching(obj client.Object) []controller.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []controller.Key
	set := labels.Set(obj.GetLabels())
	for name, selector := range s.byNamespace[obj.GetNamespace()] {
		if selector.Matches(set) {
			keys = append(keys, controller.Key{Namespace: obj.GetNamespace(), Name: name})
		}
	}
	return keys
}

// route leads the events of one kind of objects to those who own them, or might.
type route struct {
	kind   string // of the owners
	owners *selectors
	// wake is told of an owner and the event that concerns it.
	wake func(owner controller.Key, old, current client.Object)

	strays controller.Orphans
}

// onEvent takes an event of an owned object. The owner before and the one after a change
// are both told; an orphan that is new or changed is offered to all who select it.
func (r *route) onEvent(old, current client.Object) {
	r.strays.Observe(old, current)
	before, after := r.ownerOf(old), r.ownerOf(current)
	if before != nil && (after == nil || after.UID != before.UID) {
		r.wake(controller.Key{Namespace: old.GetNamespace(), Name: before.Name}, old, current)
	}
	if after != nil {
		r.wake(controller.Key{Namespace: current.GetNamespace(), Name: after.Name}, old, current)
		return
	}
	if current == nil || metav1.GetControllerOfNoCopy(current) != nil {
		return
	}
	if old == nil || metav1.GetControllerOfNoCopy(old) != nil || !maps.Equal(old.GetLabels(), current.GetLabels()) {
		for _, owner := range r.owners.matching(current) {
			r.wake(owner, old, current)
		}
	}
}

// ownerOf is the controlling owner if it is of the route's kind.
func (r *route) ownerOf(obj client.Object) *metav1.OwnerReference {
	if obj == nil {
		return nil
	}
	if ref := metav1.GetControllerOfNoCopy(obj); ref != nil && ref.Kind == r.kind {
		return ref
	}
	return nil
}
