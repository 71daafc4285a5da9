package registry

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/registry/rest"

	"gantry.dev/gantry/internal/store"
)

// Strategy is what a kind decides about creates, updates and deletes. Upstream's strategies
// satisfy it; they work on internal types.
type Strategy interface {
	rest.RESTCreateStrategy
	rest.RESTUpdateStrategy
}

// Info says how a resource is named and what can be done with it. It does not change.
type Info struct {
	Resource     schema.GroupVersionResource
	Kind         schema.GroupVersionKind
	Stored       schema.GroupVersionKind // the version that is kept in etcd
	Primary      bool                    // of the versions of one table, the one for who looks at each object once
	Hidden       bool                    // switched off: not for clients over HTTP
	ListKind     string
	Namespaced   bool
	Singular     string
	ShortNames   []string
	Categories   []string
	Verbs        []string // as discovery lists them
	Subresources []SubresourceInfo
	Revision     string // of a custom resource: of its definition, for what is made of that
	Warning      string // that every request to the version is answered with, "" for none
}

// SubresourceInfo describes one subresource. Name has no slash: "status". Kind is what it
// takes and gives.
type SubresourceInfo struct {
	Name  string
	Kind  schema.GroupVersionKind
	Verbs []string
}

// Resource is one kind as it is served. Its verbs are in read.go, create.go, update.go,
// patch.go and delete.go.
type Resource struct {
	Info
	registry *Registry
	def      *definition
	store    *store.Store
	subs     map[string]*subresource
	managers map[string]*fieldManager // by subresource, "" the object itself
	quiet    bool                     // deletes without asking admission
}

// Custom is what the definition of a custom resource says about the served version; nil for a
// built-in kind.
func (r *Resource) Custom() Custom { return r.def.custom }

// definition is one entry of the table in kinds.go.
type definition struct {
	info     Info
	strategy Strategy
	subs     []*subresource
	newObj   func() store.Object
	stored   *store.Kind
	versions Versions
	served   store.Codec   // of the served version
	also     []*definition // other versions of the same table
	custom   Custom        // of a kind that is made at run time, else nil
	// selectable adds to metadata.name and metadata.namespace what field selectors know; it is given stored objects.
	selectable func(obj store.Object) fields.Set
	// indexedFields are field selectors answered by the store's index of that name.
	indexedFields []string
	returnDeleted bool
	normalizes    bool // see definition.normalized
	// computed makes the objects of a kind that is not stored; nil for all others.
	computed func(ctx context.Context, namespace, name string) ([]store.Object, error)
	// table makes the columns of a kind that upstream's printers do not know; nil for all others.
	table   rest.TableConvertor
	expires func(obj store.Object) time.Time // nil: never
	hooks   hooks
}

// hooks are the steps of one kind beside its strategy.
type hooks struct {
	// begin sees the new object (internal type) before its strategy does; old is nil on
	// create. finish is called with whether the object was stored; it may be nil.
	begin func(ctx context.Context, obj, old runtime.Object, dryRun bool) (finish func(stored bool), err error)
	// markDeleted marks an object (internal type) when its deletion is first asked for, in place of
	// the rules that hold for other kinds.
	markDeleted func(obj runtime.Object)
	// beforeDelete sees the options of a delete; it may warn.
	beforeDelete func(ctx context.Context, opts *metav1.DeleteOptions)
	// share gives a new version of an object what has not changed since the current one, so that
	// memory holds it once.
	share func(obj, current store.Object)
	// afterDelete sees the last content, as it was stored, of an object that is gone.
	afterDelete func(ctx context.Context, obj store.Object)
}

// subresource is a part of an object, or an action on it, with a type of its own.
type subresource struct {
	info SubresourceInfo
	// newObj is an empty object of the kind taken; nil for connects.
	newObj func() runtime.Object
	// strategy replaces the resource's: the subresource is a view of the whole object.
	strategy rest.RESTUpdateStrategy
	create   func(ctx context.Context, r *Resource, namespace, name string, obj runtime.Object, opts *metav1.CreateOptions) (runtime.Object, error)
	// A subresource of another type, such as scale, is read from its parent and written
	// back into a copy of it.
	fromParent func(parent store.Object) (store.Object, error)
	toParent   func(parent, sub store.Object) error
	// before is fromParent for a change; nil where it is the same.
	before func(parent store.Object) (store.Object, error)
	// replicas are the paths of the replicas in all versions of the parent; nil where they are at
	// spec.replicas.
	replicas managedfields.ResourcePathMappings
}

// ListOptions selects objects for List, Watch and DeleteCollection.
type ListOptions struct {
	Labels   labels.Selector // nil is everything
	Fields   fields.Selector // nil is everything
	Revision string          // resourceVersion as the client sent it
	Match    metav1.ResourceVersionMatch
	Limit    int64
	Continue string
	Internal bool // of a component of this process: field selectors may name OwnerIndex
	// For Watch:
	SendInitialEvents *bool
	Bookmarks         bool
}

// List is one page of a list.
type List struct {
	Entries   []*store.Entry
	Revision  int64
	Continue  string
	Remaining *int64
}

// DeleteResult is the answer to a delete. Done is false while finalizers or a grace period
// keep the object.
type DeleteResult struct {
	Entry *store.Entry // the object as it is, or was at last
	Done  bool
	// ReturnsObject says that a finished delete is answered with the object, not a Status.
	ReturnsObject bool
}

// PatchRequest is one patch. Manager is the field manager, already derived from the
// user agent where the options name none.
type PatchRequest struct {
	Type    types.PatchType
	Data    []byte
	Options metav1.PatchOptions
	Manager string
}

// New returns an empty object of the resource's served version.
func (r *Resource) New() runtime.Object { return r.def.newObj() }

// Table makes the columns of a kind that upstream's printers do not know; nil if they do.
func (r *Resource) Table() rest.TableConvertor { return r.def.table }

// ReturnsDeleted reports whether a finished delete is answered with the object, not a Status.
func (r *Resource) ReturnsDeleted() bool { return r.def.returnDeleted }

// Sub is the description of a subresource, nil if there is none of that name.
func (r *Resource) Sub(name string) *SubresourceInfo {
	if s := r.subs[name]; s != nil {
		return &s.info
	}
	return nil
}

// NewSub returns an empty object of the kind that a subresource takes; nil if it takes none.
func (r *Resource) NewSub(name string) runtime.Object {
	if s := r.subs[name]; s != nil && s.newObj != nil {
		return s.newObj()
	}
	return nil
}
