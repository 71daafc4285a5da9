package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// Waits between attempts to follow a kind.
const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 3 * time.Second
)

// feedOptions says what a feed follows.
type feedOptions struct {
	client    ctrlclient.WithWatch
	newList   func() ctrlclient.ObjectList
	namespace string          // "" is all
	fields    fields.Selector // nil is all
	file      string          // where it is written down; "" nowhere
	scheme    *runtime.Scheme // with file
	log       *slog.Logger
}

// feed follows the objects of a list and tells handlers of changes.
type feed struct {
	opts     feedOptions
	listed   chan struct{} // closed when there is a first state, of the API or of the file
	real     chan struct{} // closed when there is one of the API
	once     sync.Once
	realOnce sync.Once
	changed  chan struct{} // capacity 1: there is something to write down

	forgotten atomic.Bool // nothing is written down any more

	mu       sync.Mutex // guards the fields below; held while handlers run, so that they hear in order
	objects  map[string]ctrlclient.Object
	handlers []*handle
	version  string // where to watch from; "" lists
}

func newFeed(opts feedOptions) *feed {
	return &feed{opts: opts, listed: make(chan struct{}), real: make(chan struct{}), changed: make(chan struct{}, 1), objects: map[string]ctrlclient.Object{}}
}

// handle is one handler.
type handle struct {
	feed   *feed
	to     toolscache.ResourceEventHandler
	synced chan struct{}
}

// HasSynced implements toolscache.ResourceEventHandlerRegistration.
func (h *handle) HasSynced() bool {
	select {
	case <-h.synced:
		return true
	default:
		return false
	}
}

// HasSyncedChecker implements toolscache.ResourceEventHandlerRegistration.
func (h *handle) HasSyncedChecker() toolscache.DoneChecker { return h }

// Name implements toolscache.DoneChecker.
func (h *handle) Name() string { return "remote" }

// Done implements toolscache.DoneChecker.
func (h *handle) Done() <-chan struct{} { return h.synced }

// AddEventHandler implements cache.Informer.
func (f *feed) AddEventHandler(to toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	h := &handle{feed: f, to: to, synced: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.handlers = append(f.handlers, h)
	select {
	case <-f.listed:
		for _, key := range slices.Sorted(maps.Keys(f.objects)) {
			to.OnAdd(f.objects[key], true)
		}
		close(h.synced)
	default:
	}
	return h, nil
}

// AddEventHandlerWithResyncPeriod implements cache.Informer. Nothing is missed, so nothing is told twice.
func (f *feed) AddEventHandlerWithResyncPeriod(to toolscache.ResourceEventHandler, _ time.Duration) (toolscache.ResourceEventHandlerRegistration, error) {
	return f.AddEventHandler(to)
}

// AddEventHandlerWithOptions implements cache.Informer.
func (f *feed) AddEventHandlerWithOptions(to toolscache.ResourceEventHandler, _ toolscache.HandlerOptions) (toolscache.ResourceEventHandlerRegistration, error) {
	return f.AddEventHandler(to)
}

// RemoveEventHandler implements cache.Informer.
func (f *feed) RemoveEventHandler(registration toolscache.ResourceEventHandlerRegistration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.handlers = slices.DeleteFunc(f.handlers, func(h *handle) bool { return h == registration })
	return nil
}

// AddIndexers implements cache.Informer.
func (f *feed) AddIndexers(toolscache.Indexers) error {
	return errors.New("remote: there are no indexes")
}

// HasSynced implements cache.Informer.
func (f *feed) HasSynced() bool {
	select {
	case <-f.listed:
		return true
	default:
		return false
	}
}

// HasSyncedChecker implements cache.Informer.
func (f *feed) HasSyncedChecker() toolscache.DoneChecker { return &handle{synced: f.listed} }

// IsStopped implements cache.Informer.
func (f *feed) IsStopped() bool { return false }

// run follows until ctx ends.
func (f *feed) run(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	if f.opts.file != "" {
		group.Go(func() { f.keep(ctx) })
	}
	delay := retryFirst
	for ctx.Err() == nil {
		progress, err := f.follow(ctx)
		if progress {
			delay = retryFirst
			if err == nil {
				continue // the server ended the watch: go on where it was
			}
		}
		if err != nil && ctx.Err() == nil {
			f.opts.log.Debug("a kind is followed again soon", "kind", f.name(), "error", err)
			f.recall()
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		delay = min(2*delay, retryMost)
	}
}

func (f *feed) name() string { return fmt.Sprintf("%T", f.opts.newList()) }

func (f *feed) raw() *metav1.ListOptions {
	options := &metav1.ListOptions{}
	if f.opts.fields != nil {
		options.FieldSelector = f.opts.fields.String()
	}
	return options
}

// follow lists, if need be, and watches until the watch ends. progress is whether a server answered.
func (f *feed) follow(ctx context.Context) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	version := f.version
	f.mu.Unlock()
	if version == "" {
		list := f.opts.newList()
		if err := f.opts.client.List(ctx, list, &ctrlclient.ListOptions{Namespace: f.opts.namespace, Raw: f.raw()}); err != nil {
			return false, err
		}
		if err := f.replace(list, true); err != nil {
			return false, err
		}
		version = list.GetResourceVersion()
	}
	options := f.raw()
	options.ResourceVersion, options.AllowWatchBookmarks = version, true
	events, err := f.opts.client.Watch(ctx, f.opts.newList(), &ctrlclient.ListOptions{Namespace: f.opts.namespace, Raw: options})
	if err != nil {
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			f.restart()
			return true, nil
		}
		return false, err
	}
	defer events.Stop()
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return true, nil
		case event, ok := <-events.ResultChan():
			if !ok {
				if time.Since(began) < time.Second {
					return false, nil
				}
				return true, nil
			}
			if event.Type == watch.Error {
				err := apierrors.FromObject(event.Object)
				if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
					f.restart()
					return true, nil
				}
				return time.Since(began) >= time.Second, err
			}
			f.take(event)
		}
	}
}

// restart makes the next turn list.
func (f *feed) restart() {
	f.mu.Lock()
	f.version = ""
	f.mu.Unlock()
}

func keyOf(obj ctrlclient.Object) string { return obj.GetNamespace() + "/" + obj.GetName() }

// slim drops what nobody on a node reads.
func slim(obj ctrlclient.Object) { obj.SetManagedFields(nil) }

// replace makes the state that of a list.
func (f *feed) replace(list ctrlclient.ObjectList, fromAPI bool) error {
	items, err := meta.ExtractList(list)
	if err != nil {
		return fmt.Errorf("reading a list: %w", err)
	}
	next := make(map[string]ctrlclient.Object, len(items))
	for _, item := range items {
		if obj, ok := item.(ctrlclient.Object); ok {
			slim(obj)
			next[keyOf(obj)] = obj
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.objects
	f.objects = next
	if fromAPI {
		f.version = list.GetResourceVersion()
	}
	for _, key := range slices.Sorted(maps.Keys(before)) {
		if next[key] == nil || next[key].GetUID() != before[key].GetUID() {
			f.tell(before[key], nil)
			delete(before, key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(next)) {
		f.tell(before[key], next[key])
	}
	f.once.Do(func() {
		close(f.listed)
		for _, h := range f.handlers {
			close(h.synced)
		}
	})
	if fromAPI {
		f.realOnce.Do(func() { close(f.real) })
		f.note()
	}
	return nil
}

// take is one event of the watch.
func (f *feed) take(event watch.Event) {
	obj, ok := event.Object.(ctrlclient.Object)
	if !ok {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version = obj.GetResourceVersion()
	if event.Type == watch.Bookmark {
		return
	}
	slim(obj)
	key := keyOf(obj)
	before := f.objects[key]
	if event.Type == watch.Deleted {
		delete(f.objects, key)
		f.tell(obj, nil)
	} else {
		f.objects[key] = obj
		f.tell(before, obj)
	}
	f.note()
}

// tell hands one change to the handlers. f.mu is held.
func (f *feed) tell(before, now ctrlclient.Object) {
	for _, h := range f.handlers {
		switch {
		case now == nil && before != nil:
			h.to.OnDelete(before)
		case before == nil && now != nil:
			h.to.OnAdd(now, !h.HasSynced())
		case before != nil && before.GetResourceVersion() != now.GetResourceVersion():
			h.to.OnUpdate(before, now)
		}
	}
}

// get is an object; nil if there is none.
func (f *feed) get(namespace, name string) ctrlclient.Object {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.objects[namespace+"/"+name]
}

// all are the objects, in the order of their names.
func (f *feed) all() []ctrlclient.Object {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]ctrlclient.Object, 0, len(f.objects))
	for _, key := range slices.Sorted(maps.Keys(f.objects)) {
		out = append(out, f.objects[key])
	}
	return out
}
