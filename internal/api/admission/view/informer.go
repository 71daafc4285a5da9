package view

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"

	"gantry.dev/gantry/internal/store"
)

// informer covers one table. It implements cache.SharedIndexInformer.
type informer struct {
	indexer
	table *Table

	seen atomic.Int64 // the table's version that the handlers know

	mu       sync.Mutex // guards the fields below
	handlers []cache.ResourceEventHandler
	known    map[string]store.Object
}

var _ cache.SharedIndexInformer = (*informer)(nil)

func newInformer(v *View, resource schema.GroupVersionResource) *informer {
	return &informer{indexer: indexer{view: v, resource: resource, indexers: make(cache.Indexers)}, table: v.Table(resource)}
}

// AddEventHandler implements cache.SharedInformer. The handler is called by View.Refresh.
func (i *informer) AddEventHandler(handler cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.handlers = append(i.handlers, handler)
	for _, obj := range i.known {
		handler.OnAdd(obj, true)
	}
	return synced{i}, nil
}

// AddEventHandlerWithResyncPeriod implements cache.SharedInformer.
func (i *informer) AddEventHandlerWithResyncPeriod(handler cache.ResourceEventHandler, _ time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandler(handler)
}

// AddEventHandlerWithOptions implements cache.SharedInformer.
func (i *informer) AddEventHandlerWithOptions(handler cache.ResourceEventHandler, _ cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandler(handler)
}

// RemoveEventHandler implements cache.SharedInformer. Handlers live as long as the server.
func (i *informer) RemoveEventHandler(cache.ResourceEventHandlerRegistration) error { return nil }

// refresh calls the handlers for what differs from what they know.
func (i *informer) refresh() {
	if i.table.Version() == i.seen.Load() {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.table.Version() // before the read: a change in between is found again
	if now == i.seen.Load() || len(i.handlers) == 0 {
		return
	}
	defer i.seen.Store(now) // last: who finds it set relies on the handlers having been called
	next := make(map[string]store.Object)
	for _, item := range i.List() {
		obj, ok := item.(store.Object)
		if !ok {
			continue
		}
		key := obj.GetNamespace() + "/" + obj.GetName()
		next[key] = obj
		was := i.known[key]
		for _, h := range i.handlers {
			switch {
			case was == nil:
				h.OnAdd(obj, false)
			case was.GetResourceVersion() != obj.GetResourceVersion():
				h.OnUpdate(was, obj)
			}
		}
	}
	for key, obj := range i.known {
		if next[key] == nil {
			for _, h := range i.handlers {
				h.OnDelete(obj)
			}
		}
	}
	i.known = next
}

// GetStore implements cache.SharedInformer.
func (i *informer) GetStore() cache.Store { return &i.indexer }

// GetIndexer implements cache.SharedIndexInformer.
func (i *informer) GetIndexer() cache.Indexer { return &i.indexer }

// GetController implements cache.SharedInformer; there is none.
func (i *informer) GetController() cache.Controller { return nil }

// Run implements cache.SharedInformer.
func (i *informer) Run(stop <-chan struct{}) { <-stop }

// RunWithContext implements cache.SharedInformer.
func (i *informer) RunWithContext(ctx context.Context) { <-ctx.Done() }

// HasSynced implements cache.SharedInformer: the store is always complete.
func (i *informer) HasSynced() bool { return true }

// HasSyncedChecker implements cache.SharedInformer.
func (i *informer) HasSyncedChecker() cache.DoneChecker { return synced{i} }

// LastSyncResourceVersion implements cache.SharedInformer.
func (i *informer) LastSyncResourceVersion() string { return i.LastStoreSyncResourceVersion() }

// SetWatchErrorHandler implements cache.SharedInformer; there is no watch.
func (i *informer) SetWatchErrorHandler(cache.WatchErrorHandler) error { return nil }

// SetWatchErrorHandlerWithContext implements cache.SharedInformer; there is no watch.
func (i *informer) SetWatchErrorHandlerWithContext(cache.WatchErrorHandlerWithContext) error {
	return nil
}

// SetTransform implements cache.SharedInformer. Objects are the store's own.
func (i *informer) SetTransform(cache.TransformFunc) error {
	return errors.New("view: objects of the store cannot be transformed")
}

// IsStopped implements cache.SharedInformer.
func (i *informer) IsStopped() bool { return false }

// synced says that everything is there. It implements cache.DoneChecker and
// cache.ResourceEventHandlerRegistration.
type synced struct{ informer *informer }

// HasSynced implements cache.ResourceEventHandlerRegistration.
func (s synced) HasSynced() bool { return true }

// HasSyncedChecker implements cache.ResourceEventHandlerRegistration.
func (s synced) HasSyncedChecker() cache.DoneChecker { return s }

// Name implements cache.DoneChecker.
func (s synced) Name() string { return s.informer.indexer.resource.String() }

// Done implements cache.DoneChecker.
func (s synced) Done() <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}

// genericInformer implements informers.GenericInformer.
type genericInformer struct{ informer *informer }

// Informer implements informers.GenericInformer.
func (g genericInformer) Informer() cache.SharedIndexInformer { return g.informer }

// Lister implements informers.GenericInformer.
func (g genericInformer) Lister() cache.GenericLister {
	return cache.NewGenericLister(&g.informer.indexer, g.informer.indexer.resource.GroupResource())
}

func isUnstructured(obj runtime.Object) bool {
	_, ok := obj.(*unstructured.Unstructured)
	return ok
}

// namespaceOf is the namespace that a query by cache.NamespaceIndex names.
func namespaceOf(obj any) (string, bool) {
	meta, ok := obj.(metav1.Object)
	if !ok {
		return "", false
	}
	return meta.GetNamespace(), true
}
