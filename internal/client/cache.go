package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/store"
)

// Cache gives the store's changes as informers. Each handler has a watch of its own, so a
// slow one delays nobody else. Reads go to the Client: there is no second copy.
type Cache struct {
	*Client
	opts CacheOptions

	mu      sync.Mutex      // guards the fields below
	ctx     context.Context //nolint:containedctx // of Start, for handlers that come later
	waiting []*registration
	group   sync.WaitGroup
}

var _ cache.Cache = (*Cache)(nil)

// CacheOptions tunes a Cache. The zero value delivers everything.
type CacheOptions struct {
	Logger *slog.Logger // default: discards
	// Fields narrows the events of a kind, as in a watch by a field selector.
	Fields map[schema.GroupVersionKind]fields.Selector
}

// NewCache returns a Cache that reads as c does. It delivers nothing before Start.
func NewCache(c *Client, opts CacheOptions) *Cache {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Cache{Client: c, opts: opts}
}

// Start delivers events until ctx ends and every handler has returned.
func (c *Cache) Start(ctx context.Context) error {
	c.mu.Lock()
	if c.ctx != nil {
		c.mu.Unlock()
		return errors.New("client: the cache was started twice")
	}
	c.ctx = ctx
	for _, reg := range c.waiting {
		c.startLocked(reg)
	}
	c.waiting = nil
	c.mu.Unlock()
	<-ctx.Done()
	// Who found ctx alive under the lock has joined the group by now; nobody else does.
	c.mu.Lock()
	c.mu.Unlock() //nolint:staticcheck // a barrier
	c.group.Wait()
	return nil
}

func (c *Cache) startLocked(reg *registration) {
	if c.ctx.Err() != nil {
		return
	}
	c.group.Go(func() { reg.run(c.ctx) })
}

// WaitForCacheSync implements cache.Cache: the store is always complete.
func (c *Cache) WaitForCacheSync(ctx context.Context) bool { return ctx.Err() == nil }

// GetInformer implements cache.Cache.
func (c *Cache) GetInformer(ctx context.Context, obj ctrlclient.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	r, err := c.resource(obj)
	if err != nil {
		return nil, err
	}
	return c.informer(ctx, r, obj)
}

func (c *Cache) informer(ctx context.Context, r *registry.Resource, like ctrlclient.Object) (cache.Informer, error) {
	selector := c.opts.Fields[r.Kind]
	if _, err := c.authorizeSelected(ctx, r, "watch", "", selector); err != nil {
		return nil, err
	}
	return &informer{cache: c, kind: r.Kind, fields: selector, shape: shapeOf(r, like)}, nil
}

// GetInformerForKind implements cache.Cache.
func (c *Cache) GetInformerForKind(ctx context.Context, kind schema.GroupVersionKind, _ ...cache.InformerGetOption) (cache.Informer, error) {
	r := c.Client.opts.Registry.ResourceOf(kind)
	if r == nil {
		return nil, fmt.Errorf("client: %s is not served", kind)
	}
	return c.informer(ctx, r, nil)
}

// shapeOf makes what handlers get of stored objects: custom resources become the Go type that the
// handler asked for. nil leaves objects as they are.
func shapeOf(r *registry.Resource, like ctrlclient.Object) func(store.Object) (any, error) {
	if r.Custom() == nil || like == nil {
		return nil
	}
	if _, ok := like.(*unstructured.Unstructured); ok {
		return nil
	}
	goType := reflect.TypeOf(like).Elem()
	return func(obj store.Object) (any, error) {
		out, ok := reflect.New(goType).Interface().(ctrlclient.Object)
		if !ok {
			return nil, fmt.Errorf("client: %s is no object", goType)
		}
		return out, fill(out, obj)
	}
}

// RemoveInformer implements cache.Cache. Informers hold nothing; handlers are removed one by one.
func (c *Cache) RemoveInformer(context.Context, ctrlclient.Object) error { return nil }

// IndexField implements cache.Cache. The store's indexes are fixed where kinds are defined.
func (c *Cache) IndexField(_ context.Context, obj ctrlclient.Object, field string, _ ctrlclient.IndexerFunc) error {
	r, err := c.resource(obj)
	if err != nil {
		return err
	}
	if !r.HasIndex(field) {
		return fmt.Errorf("client: the store has no index %q of %s; define it with the kind", field, r.Resource.Resource)
	}
	return nil
}

// informer gives the changes of one resource.
type informer struct {
	cache  *Cache
	kind   schema.GroupVersionKind
	fields fields.Selector                 // nil is everything
	shape  func(store.Object) (any, error) // nil: as stored
}

// resource waits until the kind is served and returns its resource, nil when ctx ends.
func (i *informer) resource(ctx context.Context, gone func()) *registry.Resource {
	reg := i.cache.Client.opts.Registry
	for ctx.Err() == nil {
		changed := reg.Changed()
		if r := reg.ResourceOf(i.kind); r != nil {
			return r
		}
		gone()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return nil
}

// AddEventHandler implements cache.Informer.
func (i *informer) AddEventHandler(handler toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	reg := &registration{
		informer: i, handler: handler, logger: i.cache.opts.Logger,
		synced: make(chan struct{}), stop: make(chan struct{}),
	}
	i.cache.mu.Lock()
	defer i.cache.mu.Unlock()
	if i.cache.ctx == nil {
		i.cache.waiting = append(i.cache.waiting, reg)
	} else {
		i.cache.startLocked(reg)
	}
	return reg, nil
}

// AddEventHandlerWithResyncPeriod implements cache.Informer. Nothing is ever missed, so
// there is no resync.
func (i *informer) AddEventHandlerWithResyncPeriod(handler toolscache.ResourceEventHandler, _ time.Duration) (toolscache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandler(handler)
}

// AddEventHandlerWithOptions implements cache.Informer.
func (i *informer) AddEventHandlerWithOptions(handler toolscache.ResourceEventHandler, _ toolscache.HandlerOptions) (toolscache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandler(handler)
}

// RemoveEventHandler implements cache.Informer.
func (i *informer) RemoveEventHandler(handle toolscache.ResourceEventHandlerRegistration) error {
	reg, ok := handle.(*registration)
	if !ok {
		return fmt.Errorf("client: %T is not a registration of this cache", handle)
	}
	reg.once.Do(func() { close(reg.stop) })
	return nil
}

// AddIndexers implements cache.Informer; see Cache.IndexField.
func (i *informer) AddIndexers(toolscache.Indexers) error {
	return errors.New("client: indexes are defined with the kind")
}

// HasSynced implements cache.Informer.
func (i *informer) HasSynced() bool { return true }

// HasSyncedChecker implements cache.Informer.
func (i *informer) HasSyncedChecker() toolscache.DoneChecker { return alwaysDone{} }

// IsStopped implements cache.Informer.
func (i *informer) IsStopped() bool {
	i.cache.mu.Lock()
	defer i.cache.mu.Unlock()
	return i.cache.ctx != nil && i.cache.ctx.Err() != nil
}

type alwaysDone struct{}

func (alwaysDone) Name() string { return "store" }

func (alwaysDone) Done() <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}

// registration is one handler with its watch.
type registration struct {
	informer *informer
	handler  toolscache.ResourceEventHandler
	logger   *slog.Logger
	synced   chan struct{}
	stop     chan struct{}
	once     sync.Once
}

// HasSynced implements toolscache.ResourceEventHandlerRegistration.
func (r *registration) HasSynced() bool {
	select {
	case <-r.synced:
		return true
	default:
		return false
	}
}

// HasSyncedChecker implements toolscache.ResourceEventHandlerRegistration.
func (r *registration) HasSyncedChecker() toolscache.DoneChecker { return r }

// Name implements toolscache.DoneChecker.
func (r *registration) Name() string { return r.informer.kind.String() }

// Done implements toolscache.DoneChecker.
func (r *registration) Done() <-chan struct{} { return r.synced }

// run delivers events until ctx ends or the handler is removed. A handler that falls too far
// behind is given the difference to what is there now.
func (r *registration) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var waits sync.WaitGroup
	defer waits.Wait()
	defer cancel()
	waits.Go(func() {
		select {
		case <-r.stop:
			cancel()
		case <-ctx.Done():
		}
	})
	known := make(map[string]*store.Entry) // what the handler was told, for a restart of the watch
	initial := true
	for ctx.Err() == nil {
		resource := r.informer.resource(ctx, func() { r.forget(known, nil) })
		if resource == nil {
			return
		}
		w, err := resource.Watch(ctx, "", registry.ListOptions{Fields: r.informer.fields})
		if err != nil {
			if apierrors.IsNotFound(err) {
				continue // it went this moment
			}
			if ctx.Err() == nil {
				r.logger.LogAttrs(ctx, slog.LevelError, "watching for an informer", slog.String("resource", r.Name()), slog.Any("error", err))
			}
			return
		}
		err = r.deliver(ctx, w, known, initial)
		w.Close()
		select {
		case <-r.synced:
			initial = false
		default: // it ended before all of the initial state was handed on
		}
		if !store.IsEnded(err) {
			return
		}
	}
}

// deliver hands the watch's events to the handler.
func (r *registration) deliver(ctx context.Context, w *store.Watch, known map[string]*store.Entry, initial bool) error {
	left := w.InitialCount()
	if initial && left == 0 {
		close(r.synced)
	}
	var seen map[string]bool
	if !initial {
		seen = make(map[string]bool, left)
		if left == 0 {
			r.forget(known, seen)
		}
	}
	for {
		events, _, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for _, event := range events {
			r.hand(event, known, initial && left > 0)
			if left == 0 {
				continue
			}
			if seen != nil {
				seen[event.Entry.Key] = true
			}
			if left--; left == 0 {
				if initial {
					close(r.synced)
				} else {
					r.forget(known, seen)
				}
			}
		}
	}
}

// hand gives one event to the handler.
func (r *registration) hand(event store.Event, known map[string]*store.Entry, initial bool) {
	key := event.Entry.Key
	was := known[key]
	switch {
	case event.Type == store.Skipped:
	case event.Type == store.Deleted:
		delete(known, key)
		r.handler.OnDelete(r.object(event.Entry))
	case was == nil:
		known[key] = event.Entry
		r.handler.OnAdd(r.object(event.Entry), initial)
	case was.Rev != event.Entry.Rev:
		known[key] = event.Entry
		r.handler.OnUpdate(r.object(was), r.object(event.Entry))
	}
}

// object is what the handler is given of an entry.
func (r *registration) object(e *store.Entry) any {
	if r.informer.shape == nil {
		return e.Object
	}
	obj, err := r.informer.shape(e.Object)
	if err != nil {
		r.logger.Error("making an object for an informer", slog.String("kind", r.Name()), slog.String("key", e.Key), slog.Any("error", err))
		return e.Object
	}
	return obj
}

// forget tells of what vanished while the watch was cut off.
func (r *registration) forget(known map[string]*store.Entry, seen map[string]bool) {
	for key, entry := range known {
		if !seen[key] {
			delete(known, key)
			r.handler.OnDelete(toolscache.DeletedFinalStateUnknown{Key: key, Obj: r.object(entry)})
		}
	}
}
