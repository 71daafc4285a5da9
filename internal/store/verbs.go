package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Get returns the entry of key; ErrNotFound if there is none.
func (s *Store) Get(kind, key string) (*Entry, error) {
	t, err := s.table(kind)
	if err != nil {
		return nil, err
	}
	if e := t.get(key); e != nil {
		return e, nil
	}
	return nil, ErrNotFound
}

// Current is Get for an answer that depends on what is not there: with company a key that this store does not know
// may have been made by another one.
func (s *Store) Current(ctx context.Context, kind, key string) (*Entry, error) {
	e, err := s.Get(kind, key)
	if !errors.Is(err, ErrNotFound) || !s.company.Load() {
		return e, err
	}
	if err := s.Sync(ctx); err != nil {
		return nil, err
	}
	return s.Get(kind, key)
}

// Outdated reports whether what a caller knows of key, nil for nothing, was no longer true when it asked. What a lone member's
// tables say always is.
func (s *Store) Outdated(ctx context.Context, kind, key string, known *Entry) (bool, error) {
	if !s.company.Load() {
		return false, nil
	}
	if err := s.Sync(ctx); err != nil {
		return false, err
	}
	now, err := s.Get(kind, key)
	if errors.Is(err, ErrNotFound) {
		return known != nil, nil
	}
	return now != known, err
}

// ListOptions selects what a list returns.
type ListOptions struct {
	Namespace string            // "" is all
	Filter    func(*Entry) bool // nil is everything
	After     string            // start after this key
	Limit     int               // 0 is no limit
	Rev       int64             // as of this revision; 0 is now
	Index     string            // with Value: only the entries under this index value
	Value     string
}

// List is one page of entries in key order, as of revision Rev. When More is true,
// Remaining entries (before filtering) follow the last one.
type List struct {
	Entries   []*Entry
	Rev       int64
	More      bool
	Remaining int64
	LastKey   string // key to continue after
}

// List returns the entries of a kind. ErrGone if opts.Rev is no longer kept, ErrFuture if it
// has not happened.
func (s *Store) List(ctx context.Context, kind string, opts ListOptions) (List, error) {
	t, err := s.table(kind)
	if err != nil {
		return List{}, err
	}
	if opts.Index != "" {
		return t.listIndexed(opts)
	}
	tree, rev := t.snapshot()
	if opts.Rev > rev {
		return List{}, ErrFuture
	}
	// What etcd has dropped is gone, even where memory still has it: clients that page slowly are
	// promised an end (conformance, "API chunking"), and every server must say the same.
	if opts.Rev != 0 && opts.Rev < s.firstRev() {
		return List{}, ErrGone
	}
	if opts.Rev != 0 && opts.Rev != rev && !t.unchangedSince(opts.Rev) {
		if tree = t.rewound(opts.Rev); tree == nil { // from before the history
			var err error
			if tree, err = s.listAt(ctx, t, opts.Rev); err != nil {
				return List{}, err
			}
		}
	}
	list := List{Rev: cmp.Or(opts.Rev, rev)}
	ascend(tree, opts.Namespace, opts.After, func(e *Entry) bool {
		if list.More {
			list.Remaining++
			return true
		}
		if opts.Filter == nil || opts.Filter(e) {
			if opts.Limit > 0 && len(list.Entries) == opts.Limit {
				list.More, list.Remaining = true, 1
				return true
			}
			list.Entries = append(list.Entries, e)
			list.LastKey = e.Key
		}
		return true
	})
	return list, nil
}

func (t *table) listIndexed(opts ListOptions) (List, error) {
	if t.kind.Indexes[opts.Index] == nil {
		return List{}, fmt.Errorf("store: %s has no index %q", t.kind.Name, opts.Index)
	}
	entries, rev := t.indexed(opts.Index, opts.Value)
	prefix := ""
	if opts.Namespace != "" && t.kind.Namespaced {
		prefix = opts.Namespace + "/"
	}
	entries = slices.DeleteFunc(entries, func(e *Entry) bool {
		return len(e.Key) < len(prefix) || e.Key[:len(prefix)] != prefix || (opts.Filter != nil && !opts.Filter(e))
	})
	slices.SortFunc(entries, func(a, b *Entry) int { return cmp.Compare(a.Key, b.Key) })
	return List{Entries: entries, Rev: rev}, nil
}

// firstRev is the oldest revision that etcd still keeps.
func (s *Store) firstRev() int64 {
	s.gate.RLock()
	defer s.gate.RUnlock()
	return s.member.server.KV().FirstRev()
}

// Count is how many objects of a kind there are.
func (s *Store) Count(kind string) int {
	t, err := s.table(kind)
	if err != nil {
		return 0
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byKey)
}

// Watch streams the changes of a kind. ErrGone if opts.Since is no longer kept, ErrFuture if
// it does not come within three seconds.
func (s *Store) Watch(ctx context.Context, kind string, opts WatchOptions) (*Watch, error) {
	if !opts.Initial && opts.Since > s.applied.Load() {
		soon, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if err := s.waitApplied(soon, opts.Since); err != nil {
			return nil, cmp.Or(ctx.Err(), ErrFuture)
		}
	}
	t, err := s.table(kind)
	if err != nil {
		return nil, err
	}
	w, err := t.watch(opts)
	if !errors.Is(err, ErrGone) {
		return w, err
	}
	select { // the history from before the start may still be on its way
	case <-t.refilled:
		return t.watch(opts)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Create stores obj under a key that must be free and returns its entry; ErrExists if it is
// not. The store takes obj over: the caller must not touch it afterwards.
func (s *Store) Create(ctx context.Context, kind, key string, obj Object) (*Entry, error) {
	entry, err := s.write(ctx, kind, key, obj, 0)
	var conflict *ConflictError
	if errors.As(err, &conflict) {
		return nil, ErrExists
	}
	return entry, err
}

// Update replaces the object of key, which must be at revision rev, and returns its entry.
// It returns a *ConflictError if it is not. The store takes obj over.
func (s *Store) Update(ctx context.Context, kind, key string, rev int64, obj Object) (*Entry, error) {
	if rev == 0 {
		return nil, ErrNotFound
	}
	return s.write(ctx, kind, key, obj, rev)
}

func (s *Store) write(ctx context.Context, kind, key string, obj Object, rev int64) (*Entry, error) {
	t, err := s.table(kind)
	if err != nil {
		return nil, err
	}
	if err := s.admit(ctx, kind); err != nil {
		return nil, err
	}
	value, err := t.seal(key, obj)
	if err != nil {
		return nil, err
	}
	p := &pending{value: value, obj: obj, done: make(chan struct{})}
	etcdKey := t.kind.Prefix + key
	if err := s.propose(etcdKey, p); err != nil {
		return nil, err
	}
	newRev, ok, again, err := s.request(ctx, rev == 0, func(ctx context.Context, m *member) (int64, bool, error) {
		return m.put(ctx, etcdKey, value, rev)
	})
	if err == nil && !ok && again {
		ok = s.claimed(ctx, p, newRev) // it had been written the first time
	}
	if err != nil || !ok {
		s.withdraw(etcdKey, p)
		if err != nil {
			return nil, err
		}
		return nil, s.conflict(ctx, t, key, newRev)
	}
	if err := s.waitApplied(ctx, newRev); err != nil {
		s.withdraw(etcdKey, p)
		return nil, err
	}
	select {
	case <-p.done:
		return p.entry, nil
	default: // the applier took an equal value of another writer for ours
		s.withdraw(etcdKey, p)
		return s.Get(kind, key)
	}
}

// Delete removes key, which must be at revision rev, and returns its last content under the
// revision of the deletion.
func (s *Store) Delete(ctx context.Context, kind, key string, rev int64) (*Entry, error) {
	t, err := s.table(kind)
	if err != nil {
		return nil, err
	}
	if err := s.admitDelete(ctx); err != nil {
		return nil, err
	}
	current := t.get(key)
	if current == nil {
		return nil, ErrNotFound
	}
	if current.Rev != rev {
		return nil, &ConflictError{Current: current}
	}
	newRev, ok, again, err := s.request(ctx, false, func(ctx context.Context, m *member) (int64, bool, error) {
		return m.remove(ctx, t.kind.Prefix+key, rev)
	})
	if err != nil {
		return nil, err
	}
	if err := s.waitApplied(ctx, newRev); err != nil {
		return nil, err
	}
	if there := t.get(key); !ok && (!again || there != nil) { // gone is gone, whichever try it was
		return nil, &ConflictError{Current: there}
	}
	return current.At(newRev), nil
}

// conflict says what the key holds after a failed compare that was answered at rev.
func (s *Store) conflict(ctx context.Context, t *table, key string, rev int64) error {
	if err := s.waitApplied(ctx, rev); err != nil {
		return err
	}
	return &ConflictError{Current: t.get(key)}
}

// claimed reports whether the tables at rev have seen the write.
func (s *Store) claimed(ctx context.Context, p *pending, rev int64) bool {
	if err := s.waitApplied(ctx, rev); err != nil {
		return false
	}
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (s *Store) propose(etcdKey string, p *pending) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.pending[etcdKey] = append(s.pending[etcdKey], p)
	return nil
}

func (s *Store) withdraw(etcdKey string, p *pending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropLocked(etcdKey, p)
}

func (s *Store) dropLocked(etcdKey string, p *pending) {
	rest := slices.DeleteFunc(s.pending[etcdKey], func(q *pending) bool { return q == p })
	if len(rest) == 0 {
		delete(s.pending, etcdKey)
	} else {
		s.pending[etcdKey] = rest
	}
}

// seal encodes obj for etcd.
func (t *table) seal(key string, obj Object) ([]byte, error) {
	value, err := t.kind.Codec.Encode(obj)
	if err != nil {
		return nil, fmt.Errorf("encoding %s %s: %w", t.kind.Name, key, err)
	}
	if t.kind.Sealer == nil {
		return value, nil
	}
	if value, err = t.kind.Sealer.Seal(t.kind.Prefix+key, value); err != nil {
		return nil, fmt.Errorf("encrypting %s %s: %w", t.kind.Name, key, err)
	}
	return value, nil
}

// open decodes what etcd holds under key at rev.
func (t *table) open(key string, value []byte, rev int64) (*Entry, error) {
	if t.kind.Sealer != nil {
		plain, _, err := t.kind.Sealer.Open(t.kind.Prefix+key, value)
		if err != nil {
			return nil, fmt.Errorf("%w: %s %s: %w", ErrSealed, t.kind.Name, key, err)
		}
		value = plain
	}
	obj, err := t.kind.Codec.Decode(value)
	if err != nil {
		return nil, fmt.Errorf("decoding %s %s at revision %d: %w", t.kind.Name, key, rev, err)
	}
	entry := t.entry(key, obj, rev)
	entry.size = len(value)
	return entry, nil
}

func (t *table) entry(key string, obj Object, rev int64) *Entry {
	obj.SetResourceVersion(formatRev(rev))
	return &Entry{Key: key, Rev: rev, Object: obj, codec: t.kind.Codec}
}

// unchangedSince reports whether the table is still as it was at rev.
func (t *table) unchangedSince(rev int64) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if rev < t.history.from {
		return false
	}
	if n := len(t.history.events); n > 0 {
		return t.history.events[n-1].Rev <= rev
	}
	return true
}
