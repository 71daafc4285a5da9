package store

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// WatchOptions selects what a watch delivers.
type WatchOptions struct {
	Namespace string            // "" is all
	Filter    func(*Entry) bool // nil is everything; an object that stops matching is seen as Deleted
	// Index and Value say that Filter refuses all but the objects that this index gives for this value: the watch is
	// then not asked about others. An index that the kind does not have is no help, and ignored.
	Index, Value string
	Since        int64 // deliver changes after this revision; ignored with Initial
	Initial      bool  // deliver what is there as Added first, then the changes after it
	// Map changes events as they are read, in place, in the reader's goroutine: nil leaves them as they
	// are. An event whose Type it sets to Skipped is delivered all the same, so that initial events can
	// be counted, and means nothing. An error ends the watch.
	Map   func([]Event) error
	Queue int // events kept for a slow reader, default 10000; beyond it the watch ends with ErrSlow
}

// Watch is a stream of changes to one table. Next must be called by one goroutine at a time.
type Watch struct {
	namespace string // with the slash that ends it in keys, or ""
	filter    func(*Entry) bool
	under     indexValue // the only one that concerns it, or empty
	convert   func([]Event) error
	max       int // events in the queue
	maxBytes  int // of the events in the queue, 0 is no limit
	table     *table
	applied   *atomic.Int64
	initial   int   // events of the initial state still to be delivered
	start     int64 // revision of the initial state or the one given
	wake      chan struct{}

	mu     sync.Mutex // guards the fields below
	queue  []Event
	bytes  int // of the queue without the initial state, which the table holds anyway
	ended  error
	closed bool
	onSlow func()
}

// watch registers a watch on t.
func (t *table) watch(opts WatchOptions) (*Watch, error) {
	w := &Watch{
		filter: opts.Filter, convert: opts.Map, max: opts.Queue, maxBytes: t.history.maxBytes, table: t, applied: t.applied,
		start: opts.Since, wake: make(chan struct{}, 1),
	}
	if w.max == 0 {
		w.max = 10000
	}
	if opts.Namespace != "" && t.kind.Namespaced {
		w.namespace = opts.Namespace + "/"
	}
	if t.kind.Indexes[opts.Index] != nil {
		w.under = indexValue{opts.Index, opts.Value}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if opts.Initial {
		w.start = t.applied.Load()
		w.startLocked()
		w.initial = len(w.queue)
	} else {
		past, err := t.history.since(opts.Since)
		if err != nil {
			return nil, err
		}
		for _, event := range past {
			w.offer(event)
		}
		if w.ended != nil {
			return nil, ErrGone
		}
	}
	t.watchers.add(w)
	return w, nil
}

// startLocked queues what is there. The table's lock is held; nobody else knows the watch yet.
func (w *Watch) startLocked() {
	take := func(e *Entry) bool {
		if w.matches(e) {
			w.queue = append(w.queue, Event{Type: Added, Rev: e.Rev, Entry: e})
		}
		return true
	}
	if w.under == (indexValue{}) {
		ascend(w.table.ordered, trimSlash(w.namespace), "", take)
		return
	}
	entries := slices.Collect(maps.Values(w.table.indexes[w.under.index][w.under.value]))
	slices.SortFunc(entries, func(a, b *Entry) int { return strings.Compare(a.Key, b.Key) })
	for _, e := range entries {
		take(e)
	}
}

func trimSlash(prefix string) string {
	if prefix == "" {
		return ""
	}
	return prefix[:len(prefix)-1]
}

func (w *Watch) matches(e *Entry) bool {
	if w.namespace != "" && (len(e.Key) <= len(w.namespace) || e.Key[:len(w.namespace)] != w.namespace) {
		return false
	}
	return w.filter == nil || w.filter(e)
}

// offer queues the event as this watch sees it; false when the watch has ended.
func (w *Watch) offer(event Event) bool {
	if w.namespace != "" && (len(event.Entry.Key) <= len(w.namespace) || event.Entry.Key[:len(w.namespace)] != w.namespace) {
		return true
	}
	if w.filter != nil && !w.narrow(&event) {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.ended != nil {
		return false
	}
	if w.bytes += event.Entry.size; len(w.queue) >= w.max+w.initial || (w.maxBytes > 0 && w.bytes > w.maxBytes) {
		w.ended, w.queue = ErrSlow, nil
		w.signal()
		if w.onSlow != nil {
			go w.onSlow()
		}
		return false
	}
	w.queue = append(w.queue, event)
	w.signal()
	return true
}

// narrow turns the event into what a filtered watch sees; false for nothing.
func (w *Watch) narrow(event *Event) bool {
	was := event.Prev != nil && w.filter(event.Prev)
	is := event.Type != Deleted && w.filter(event.Entry)
	switch {
	case !was && !is:
		return false
	case was && !is && event.Type != Deleted:
		*event = Event{Type: Deleted, Rev: event.Rev, Entry: event.Prev.At(event.Rev), Prev: event.Prev}
	case !was && is:
		event.Type = Added
	}
	return true
}

func (w *Watch) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// OnSlow sets what is called, once and in a goroutine of its own, when the watch ends because its
// reader did not keep up: a reader that waits for something else than Next learns of it that way.
// It must be quick and not block.
func (w *Watch) OnSlow(call func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.onSlow = call
}

// Start is the revision at which the watch began: that of the initial state, or the Since
// it was given.
func (w *Watch) Start() int64 { return w.start }

// InitialCount is how many of the first events are the initial state.
func (w *Watch) InitialCount() int { return w.initial }

// Next waits for events and returns those that are queued, in order. The revision it
// returns has been reached: no event up to it will follow. It ends with ctx's error, or with
// ErrSlow when this reader did not keep up, or with ErrClosed.
func (w *Watch) Next(ctx context.Context) ([]Event, int64, error) {
	for {
		reached := max(w.applied.Load(), w.start)
		w.mu.Lock()
		events, ended := w.queue, w.ended
		w.queue, w.bytes = nil, 0
		w.mu.Unlock()
		if len(events) > 0 {
			if w.convert != nil {
				if err := w.convert(events); err != nil {
					return nil, 0, err
				}
			}
			return events, max(reached, events[len(events)-1].Rev), nil
		}
		if ended != nil {
			return nil, 0, ended
		}
		select {
		case <-ctx.Done():
			return nil, reached, ctx.Err()
		case <-w.wake:
		}
	}
}

// Close ends the watch; further events are not kept.
func (w *Watch) Close() {
	w.table.mu.Lock()
	w.table.watchers.remove(w)
	w.table.mu.Unlock()
	w.end(ErrClosed)
}

func (w *Watch) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended == nil {
		w.ended = err
	}
	w.closed, w.queue = true, nil
	w.signal()
}
