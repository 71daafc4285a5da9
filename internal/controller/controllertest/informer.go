package controllertest

import (
	"context"
	"sync"
	"time"

	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// GetInformer returns the informer of obj's kind. Handlers run on a goroutine of their
// own, in the order of the writes, until they are removed.
func (c *Cluster) GetInformer(_ context.Context, obj client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	gvk := c.kind(obj)
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.informers[gvk]
	if i == nil {
		i = &informer{existing: func() []client.Object { return c.rowsLocked(gvk) }, lock: &c.mu}
		c.informers[gvk] = i
	}
	return i, nil
}

type informer struct {
	lock     *sync.Mutex // the cluster's, guards handlers
	existing func() []client.Object
	handlers []*registration
}

type change struct {
	old, current client.Object
	first        bool // part of what existed at the start
}

type registration struct {
	handler toolscache.ResourceEventHandler

	mu    sync.Mutex
	wake  *sync.Cond
	queue []change
	ended bool
	first int // objects of the start not delivered yet

	synced chan struct{} // closed when first is 0
}

func (i *informer) notify(old, current client.Object) {
	for _, r := range i.handlers {
		r.push(change{old: old, current: current})
	}
}

// AddEventHandler implements cache.Informer.
func (i *informer) AddEventHandler(handler toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	r := &registration{handler: handler, synced: make(chan struct{})}
	r.wake = sync.NewCond(&r.mu)
	i.lock.Lock()
	for _, obj := range i.existing() {
		r.queue = append(r.queue, change{current: obj, first: true})
	}
	if r.first = len(r.queue); r.first == 0 {
		close(r.synced)
	}
	i.handlers = append(i.handlers, r)
	i.lock.Unlock()
	go r.deliver()
	return r, nil
}

// AddEventHandlerWithResyncPeriod implements cache.Informer.
func (i *informer) AddEventHandlerWithResyncPeriod(h toolscache.ResourceEventHandler, _ time.Duration) (toolscache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandler(h)
}

// AddEventHandlerWithOptions implements cache.Informer.
func (i *informer) AddEventHandlerWithOptions(h toolscache.ResourceEventHandler, _ toolscache.HandlerOptions) (toolscache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandler(h)
}

// RemoveEventHandler implements cache.Informer.
func (i *informer) RemoveEventHandler(handle toolscache.ResourceEventHandlerRegistration) error {
	i.lock.Lock()
	defer i.lock.Unlock()
	for n, r := range i.handlers {
		if r == handle {
			i.handlers = append(i.handlers[:n:n], i.handlers[n+1:]...)
			r.end()
			break
		}
	}
	return nil
}

// AddIndexers implements cache.Informer.
func (i *informer) AddIndexers(toolscache.Indexers) error { return nil }

// HasSynced implements cache.Informer.
func (i *informer) HasSynced() bool { return true }

// HasSyncedChecker implements cache.Informer.
func (i *informer) HasSyncedChecker() toolscache.DoneChecker { return alwaysDone{} }

// alwaysDone says that there is nothing to wait for.
type alwaysDone struct{}

// Name implements toolscache.DoneChecker.
func (alwaysDone) Name() string { return "test" }

// Done implements toolscache.DoneChecker.
func (alwaysDone) Done() <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}

// IsStopped implements cache.Informer.
func (i *informer) IsStopped() bool { return false }

func (r *registration) push(c change) {
	r.mu.Lock()
	r.queue = append(r.queue, c)
	r.mu.Unlock()
	r.wake.Signal()
}

func (r *registration) end() {
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	r.wake.Signal()
}

func (r *registration) deliver() {
	for {
		r.mu.Lock()
		for len(r.queue) == 0 && !r.ended {
			r.wake.Wait()
		}
		if r.ended {
			r.mu.Unlock()
			return
		}
		batch := r.queue
		r.queue = nil
		r.mu.Unlock()
		for _, c := range batch {
			r.call(c)
		}
	}
}

func (r *registration) call(c change) {
	switch {
	case c.current == nil:
		r.handler.OnDelete(c.old)
	case c.old == nil:
		r.handler.OnAdd(c.current, c.first)
	default:
		r.handler.OnUpdate(c.old, c.current)
	}
	if c.first {
		r.mu.Lock()
		if r.first--; r.first == 0 {
			close(r.synced)
		}
		r.mu.Unlock()
	}
}

// HasSynced implements toolscache.ResourceEventHandlerRegistration.
func (r *registration) HasSynced() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.first == 0
}

// HasSyncedChecker implements toolscache.ResourceEventHandlerRegistration.
func (r *registration) HasSyncedChecker() toolscache.DoneChecker { return r }

// Name implements toolscache.DoneChecker.
func (r *registration) Name() string { return "test" }

// Done implements toolscache.DoneChecker.
func (r *registration) Done() <-chan struct{} { return r.synced }
