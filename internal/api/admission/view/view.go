package view

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"gantry.dev/gantry/internal/api/registry"
)

// View is the cluster as admission sees it. Make one with New; safe for concurrent use.
type View struct {
	registry *registry.Registry
	factory  func() informers.SharedInformerFactory

	mu        sync.Mutex // guards the fields below
	informers map[schema.GroupVersionResource]*informer
}

// New returns a View of what reg serves. The registry may be completed later.
func New(reg *registry.Registry) (*View, error) {
	if reg == nil {
		return nil, errors.New("view: Registry is nil")
	}
	v := &View{registry: reg, informers: make(map[schema.GroupVersionResource]*informer)}
	v.factory = sync.OnceValue(v.newFactory)
	return v, nil
}

// Informers is a factory whose informers read the store. Nothing has to be started.
func (v *View) Informers() informers.SharedInformerFactory { return v.factory() }

// newFactory hands every built-in kind to client-go's factory before it can make an informer of
// its own: it keeps informers by their Go type.
func (v *View) newFactory() informers.SharedInformerFactory {
	factory := informers.NewSharedInformerFactory(nil, 0)
	for _, r := range v.registry.Resources() {
		obj := r.New()
		if isUnstructured(obj) {
			continue
		}
		factory.InformerFor(obj, func(kubernetes.Interface, time.Duration) cache.SharedIndexInformer {
			return v.informer(r.Resource)
		})
	}
	return factory
}

func (v *View) informer(resource schema.GroupVersionResource) *informer {
	v.mu.Lock()
	defer v.mu.Unlock()
	i := v.informers[resource]
	if i == nil {
		i = newInformer(v, resource)
		v.informers[resource] = i
	}
	return i
}

// Generic is an informer of any resource that is or will be served, custom ones too.
func (v *View) Generic(resource schema.GroupVersionResource) informers.GenericInformer {
	return genericInformer{v.informer(resource)}
}

// Refresh tells the handlers of a resource what has changed since they were told last. When
// it returns they know every write that was acknowledged before the call.
func (v *View) Refresh(resource schema.GroupVersionResource) { v.informer(resource).refresh() }

// Mapping finds the resource of a kind; meta.NoKindMatchError if it is not served.
func (v *View) Mapping(kind schema.GroupVersionKind) (*meta.RESTMapping, error) {
	r := v.registry.ResourceOf(kind)
	if r == nil {
		return nil, &meta.NoKindMatchError{GroupKind: kind.GroupKind(), SearchedVersions: []string{kind.Version}}
	}
	mapping := &meta.RESTMapping{Resource: r.Resource, GroupVersionKind: kind, Scope: meta.RESTScopeNamespace}
	if !r.Namespaced {
		mapping.Scope = meta.RESTScopeRoot
	}
	return mapping, nil
}

// resource is nil while nothing of the name is served.
func (v *View) resource(name schema.GroupVersionResource) *registry.Resource {
	return v.registry.Resource(name)
}

// Table watches one resource for changes at the price of an atomic load.
type Table struct {
	view     *View
	resource schema.GroupVersionResource
	version  atomic.Pointer[func() int64]
	emptied  atomic.Pointer[emptiness]
}

// emptiness says whether a table was empty at a version.
type emptiness struct {
	version int64
	empty   bool
}

// Table is a handle of the resource's table.
func (v *View) Table(resource schema.GroupVersionResource) *Table {
	return &Table{view: v, resource: resource}
}

// Version grows with every change of the table; it is 0 while there never was an object, or
// the resource is not served.
func (t *Table) Version() int64 {
	read := t.version.Load()
	if read == nil {
		r := t.view.resource(t.resource)
		if r == nil {
			return 0
		}
		version := r.Version()
		read = &version
		t.version.Store(read)
	}
	return (*read)()
}

// Empty reports whether the table has no object. It is cheap enough to be asked for every
// request.
func (t *Table) Empty() bool {
	now := t.Version()
	if now == 0 {
		return true
	}
	if known := t.emptied.Load(); known != nil && known.version == now {
		return known.empty
	}
	known := &emptiness{version: now, empty: len(t.List(context.Background())) == 0}
	t.emptied.Store(known)
	return known.empty
}

// List is every object in the table, shared and read-only.
func (t *Table) List(ctx context.Context) []any {
	return list(ctx, t.view.resource(t.resource), "")
}
