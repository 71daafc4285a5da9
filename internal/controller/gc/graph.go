package gc

import (
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// item is an object the collector may have to act on.
type item struct {
	gvk             schema.GroupVersionKind
	namespace, name string
	uid             types.UID
	owners          []metav1.OwnerReference
	foreground      bool // being deleted and waiting for its dependents
	orphaning       bool // being deleted and waiting for its dependents to be released
	fresh           bool // not looked at since it appeared
}

// graph knows items and who depends on whom. It is safe for concurrent use.
type graph struct {
	mu      sync.Mutex // guards the fields below
	items   map[types.UID]*item
	byOwner map[types.UID]map[types.UID]struct{} // dependents of an owner
}

func newGraph() *graph {
	return &graph{items: map[types.UID]*item{}, byOwner: map[types.UID]map[types.UID]struct{}{}}
}

func waitsFor(obj client.Object, finalizer string) bool {
	return obj.GetDeletionTimestamp() != nil && slices.Contains(obj.GetFinalizers(), finalizer)
}

// observe takes over an object's state and returns what should be looked at.
func (g *graph) observe(gvk schema.GroupVersionKind, obj client.Object) []types.UID {
	foreground := waitsFor(obj, metav1.FinalizerDeleteDependents)
	orphaning := waitsFor(obj, metav1.FinalizerOrphanDependents)
	owners := obj.GetOwnerReferences()
	g.mu.Lock()
	defer g.mu.Unlock()
	known := g.items[obj.GetUID()]
	if known == nil && len(owners) == 0 && !foreground && !orphaning {
		return nil // nothing about it concerns the collector
	}
	var look []types.UID
	if known == nil {
		known = &item{gvk: gvk, namespace: obj.GetNamespace(), name: obj.GetName(), uid: obj.GetUID(), fresh: true}
		g.items[known.uid] = known
		if len(owners) > 0 {
			look = append(look, known.uid)
		}
	}
	if !slices.EqualFunc(known.owners, owners, sameReference) {
		before := known.owners
		g.unlinkLocked(known)
		known.owners = owners
		g.linkLocked(known)
		look = append(look, known.uid)
		for _, ref := range before {
			if owner := g.items[ref.UID]; owner != nil && owner.foreground {
				look = append(look, ref.UID) // it may have waited for this reference
			}
		}
	}
	if foreground && !known.foreground {
		look = append(look, known.uid)
		for uid := range g.byOwner[known.uid] {
			look = append(look, uid)
		}
		for _, ref := range owners {
			look = append(look, ref.UID)
		}
	}
	if orphaning && !known.orphaning {
		look = append(look, known.uid)
	}
	known.foreground, known.orphaning = foreground, orphaning
	if len(owners) == 0 && !foreground && !orphaning {
		delete(g.items, known.uid)
	}
	return look
}

// forget drops an object that is gone and returns what should be looked at: its
// dependents, and owners that waited for it.
func (g *graph) forget(uid types.UID) []types.UID {
	g.mu.Lock()
	defer g.mu.Unlock()
	var look []types.UID
	for dependent := range g.byOwner[uid] {
		look = append(look, dependent)
	}
	if known := g.items[uid]; known != nil {
		g.unlinkLocked(known)
		delete(g.items, uid)
		for _, ref := range known.owners {
			if owner := g.items[ref.UID]; owner != nil && owner.foreground {
				look = append(look, ref.UID)
			}
		}
	}
	return look
}

func sameReference(a, b metav1.OwnerReference) bool {
	return a.UID == b.UID && a.Kind == b.Kind && a.Name == b.Name && a.APIVersion == b.APIVersion && blocks(a) == blocks(b)
}

func blocks(ref metav1.OwnerReference) bool {
	return ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion
}

func (g *graph) linkLocked(it *item) {
	for _, ref := range it.owners {
		if g.byOwner[ref.UID] == nil {
			g.byOwner[ref.UID] = map[types.UID]struct{}{}
		}
		g.byOwner[ref.UID][it.uid] = struct{}{}
	}
}

func (g *graph) unlinkLocked(it *item) {
	for _, ref := range it.owners {
		delete(g.byOwner[ref.UID], it.uid)
		if len(g.byOwner[ref.UID]) == 0 {
			delete(g.byOwner, ref.UID)
		}
	}
}

// item returns a copy of an item and of its dependents.
func (g *graph) item(uid types.UID) (it item, dependents []item, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	known := g.items[uid]
	if known == nil {
		return item{}, nil, false
	}
	it = *known
	known.fresh = false
	for dependent := range g.byOwner[uid] {
		dependents = append(dependents, *g.items[dependent])
	}
	return it, dependents, true
}
