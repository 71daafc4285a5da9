package store

import (
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/btree"
)

// EventType says what happened to an object.
type EventType uint8

// What can happen.
const (
	Added EventType = iota + 1
	Modified
	Deleted
	Skipped // means nothing; see WatchOptions.Map
)

// Event is one change of one object. A deletion carries the last content under the
// revision of the deletion.
type Event struct {
	Type  EventType
	Rev   int64
	Entry *Entry
	Prev  *Entry // before the change; nil when Added
}

// table holds the entries of one kind, its indexes, its history and its watchers.
type table struct {
	kind    *Kind
	applied *atomic.Int64 // the store's; advanced under mu so that a list knows its revision
	version atomic.Int64  // revision of the last change, see Store.Version
	// refilled is closed when the history from before the table was loaded is there.
	refilled chan struct{}

	mu       sync.RWMutex // guards the fields below
	byKey    map[string]*Entry
	ordered  *btree.BTreeG[*Entry]
	indexes  map[string]map[string]map[string]*Entry // index, value, key
	history  ring
	watchers watchers
}

func newTable(kind *Kind, applied *atomic.Int64, history ring) *table {
	t := &table{
		kind:     kind,
		applied:  applied,
		byKey:    make(map[string]*Entry),
		ordered:  btree.NewG(32, func(a, b *Entry) bool { return a.Key < b.Key }),
		indexes:  make(map[string]map[string]map[string]*Entry, len(kind.Indexes)),
		history:  history,
		watchers: newWatchers(),
		refilled: make(chan struct{}),
	}
	for name := range kind.Indexes {
		t.indexes[name] = make(map[string]map[string]*Entry)
	}
	return t
}

// get returns the entry of key, nil if there is none.
func (t *table) get(key string) *Entry {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byKey[key]
}

// load fills an empty table with what etcd held at rev.
func (t *table) load(entries []*Entry, rev int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range entries {
		t.putLocked(e)
		t.version.Store(max(t.version.Load(), e.Rev))
	}
	t.history.from = rev
}

// replace makes the table hold what etcd held at rev, without the changes in between: its watches end.
func (t *table) replace(entries []*Entry, rev int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watchers.endAll(ErrReset)
	clear(t.byKey)
	t.ordered.Clear(false)
	for _, values := range t.indexes {
		clear(values)
	}
	for _, e := range entries {
		t.putLocked(e)
	}
	t.version.Store(rev)
	t.history = ring{max: t.history.max, maxBytes: t.history.maxBytes, from: rev}
	t.applied.Store(rev)
}

// put applies a create or update and tells the watchers.
func (t *table) put(e *Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	event := Event{Type: Added, Rev: e.Rev, Entry: e, Prev: t.byKey[e.Key]}
	if event.Prev != nil {
		event.Type = Modified
	}
	t.putLocked(e)
	t.publishLocked(event)
}

// remove applies a deletion at rev and tells the watchers.
func (t *table) remove(key string, rev int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	prev := t.byKey[key]
	if prev == nil {
		t.applied.Store(rev)
		return
	}
	delete(t.byKey, key)
	t.ordered.Delete(prev)
	t.unindexLocked(prev)
	prev.forget()
	t.publishLocked(Event{Type: Deleted, Rev: rev, Entry: prev.At(rev), Prev: prev})
}

func (t *table) putLocked(e *Entry) {
	if prev := t.byKey[e.Key]; prev != nil {
		t.unindexLocked(prev)
		prev.forget()
	}
	t.byKey[e.Key] = e
	t.ordered.ReplaceOrInsert(e)
	for name, index := range t.kind.Indexes {
		for _, value := range index(e.Object) {
			keys := t.indexes[name][value]
			if keys == nil {
				keys = make(map[string]*Entry)
				t.indexes[name][value] = keys
			}
			keys[e.Key] = e
		}
	}
}

func (t *table) unindexLocked(e *Entry) {
	for name, index := range t.kind.Indexes {
		for _, value := range index(e.Object) {
			keys := t.indexes[name][value]
			delete(keys, e.Key)
			if len(keys) == 0 {
				delete(t.indexes[name], value)
			}
		}
	}
}

func (t *table) publishLocked(event Event) {
	t.version.Store(event.Rev)
	t.history.add(event)
	t.watchers.offer(event, t.kind.Indexes)
	t.applied.Store(event.Rev)
}

// snapshot is the table's content at one revision, in key order.
func (t *table) snapshot() (*btree.BTreeG[*Entry], int64) {
	t.mu.Lock() // Clone writes to the tree it copies
	defer t.mu.Unlock()
	return t.ordered.Clone(), t.applied.Load()
}

// rewound is the table's content at an earlier revision, made from the history; nil if that does not reach back.
func (t *table) rewound(rev int64) *btree.BTreeG[*Entry] {
	t.mu.Lock() // Clone writes to the tree it copies
	past, err := t.history.since(rev)
	tree := t.ordered.Clone()
	t.mu.Unlock()
	if err != nil {
		return nil
	}
	for i := len(past) - 1; i >= 0; i-- { // the history is only appended to, so reading it needs no lock
		if past[i].Prev != nil {
			tree.ReplaceOrInsert(past[i].Prev)
		} else {
			tree.Delete(past[i].Entry)
		}
	}
	return tree
}

// indexed lists the entries with the given index value and the revision of the answer.
func (t *table) indexed(index, value string) ([]*Entry, int64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	keys := t.indexes[index][value]
	entries := make([]*Entry, 0, len(keys))
	for _, e := range keys {
		entries = append(entries, e)
	}
	return entries, t.applied.Load()
}

// ascend walks the entries of a namespace ("" is all), after a key, in order until visit
// returns false.
func ascend(tree *btree.BTreeG[*Entry], namespace, after string, visit func(*Entry) bool) {
	prefix := ""
	if namespace != "" {
		prefix = namespace + "/"
	}
	start := &Entry{Key: max(prefix, after)}
	tree.AscendGreaterOrEqual(start, func(e *Entry) bool {
		if after != "" && e.Key == after {
			return true
		}
		if !strings.HasPrefix(e.Key, prefix) {
			return false
		}
		return visit(e)
	})
}

// ring is the recent history of a table: every change after revision from. It is bounded by
// count and, because a kind may have few and large objects, by their encoded size.
type ring struct {
	max      int
	maxBytes int   // 0 is no limit
	from     int64 // changes up to and including this revision are not kept
	bytes    int   // of the events kept
	events   []Event
}

func (r *ring) add(event Event) {
	r.events = append(r.events, event)
	r.bytes += event.Entry.size
	r.trim()
}

// trim drops the oldest events when there are too many. It drops a good part of them at once, so
// that the cost of copying the rest is shared by many changes.
func (r *ring) trim() {
	drop := 0
	if len(r.events) >= 2*r.max {
		drop = len(r.events) - r.max
	}
	kept := r.bytes
	for _, event := range r.events[:drop] {
		kept -= event.Entry.size
	}
	if r.maxBytes > 0 && kept > r.maxBytes {
		for drop < len(r.events) && kept > r.maxBytes/4*3 {
			kept -= r.events[drop].Entry.size
			drop++
		}
	}
	if drop == 0 {
		return
	}
	r.from, r.bytes = r.events[drop-1].Rev, kept
	r.events = append(make([]Event, 0, 2*(len(r.events)-drop)), r.events[drop:]...)
}

// prepend puts older events, complete from revision from on, before those kept.
func (r *ring) prepend(older []Event, from int64) {
	for _, event := range older {
		r.bytes += event.Entry.size
	}
	r.events = append(older, r.events...)
	r.from = from
	r.trim()
}

// since lists the events after rev; ErrGone if some are no longer kept.
func (r *ring) since(rev int64) ([]Event, error) {
	if rev < r.from {
		return nil, ErrGone
	}
	low, high := 0, len(r.events)
	for low < high {
		if mid := (low + high) / 2; r.events[mid].Rev <= rev {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return r.events[low:], nil
}
