package controller

import (
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Orphans knows the objects of a kind that no controller owns, by namespace. It is kept
// up by events, so that looking for something to adopt needs no scan. Its zero value is
// ready for use; it is safe for concurrent use.
type Orphans struct {
	mu          sync.Mutex // guards byNamespace
	byNamespace map[string]map[string]labels.Set
}

// Observe takes an event.
func (o *Orphans) Observe(old, current client.Object) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if current != nil && metav1.GetControllerOfNoCopy(current) == nil && current.GetDeletionTimestamp() == nil {
		if o.byNamespace == nil {
			o.byNamespace = map[string]map[string]labels.Set{}
		}
		names := o.byNamespace[current.GetNamespace()]
		if names == nil {
			names = map[string]labels.Set{}
			o.byNamespace[current.GetNamespace()] = names
		}
		names[current.GetName()] = current.GetLabels()
		return
	}
	gone := current
	if gone == nil {
		gone = old
	}
	names := o.byNamespace[gone.GetNamespace()]
	delete(names, gone.GetName())
	if len(names) == 0 {
		delete(o.byNamespace, gone.GetNamespace())
	}
}

// Matching returns the names of the orphans that selector selects, in order.
func (o *Orphans) Matching(namespace string, selector labels.Selector) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var names []string
	for name, set := range o.byNamespace[namespace] {
		if selector.Matches(set) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
