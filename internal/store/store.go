package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"golang.org/x/sync/errgroup"
)

// Options tunes a Store. Dir and Kinds are required.
type Options struct {
	Dir             string // of etcd's data, created when missing
	Kinds           []*Kind
	Logger          *slog.Logger                     // default: discards
	Tick            time.Duration                    // etcd's heartbeat, whole milliseconds; default 10ms, which suits a lone member
	QuotaBytes      int64                            // size of the database beyond which writes are refused; default 2 GiB
	CompactInterval time.Duration                    // history is kept for one to two of these; default 5m, upstream's
	History         int                              // changes kept a kind for watches to resume from, default 10000
	HistoryBytes    int                              // encoded size of the changes kept a kind, and of those that wait for a watch's reader; default 32 MiB
	MinFreeBytes    int64                            // while less of the disk is free, only nodes write and everybody may delete; default 128 MiB
	Free            func(dir string) (uint64, error) // of the disk; default asks the kernel
	NoFsync         bool                             // for tests: an acknowledged write may be lost in a crash

	Name string   // of this store among its members; default "default"
	Peer *Peer    // how other members reach this one; nil: it stays alone
	Join []Member // the members to join, as AddLearner told them; without effect when Dir has data
}

// Store keeps the objects of all its kinds. Make one with New, then call Run.
type Store struct {
	opts    Options
	tables  atomic.Pointer[tables]
	applied atomic.Int64 // revision that all tables have reached
	ready   chan struct{}
	changes chan kindChange // for the applier
	stopped chan struct{}   // closed when the applier has ended

	company  atomic.Bool   // there are other members, or there may be at any moment
	reopened chan struct{} // capacity 1: company changed
	restarts chan restart  // for the applier
	changing sync.Mutex    // one change of the members at a time
	lead     leadership
	epoch    atomic.Pointer[epoch] // of the leader

	gate   sync.RWMutex     // held for reading by requests to the member; the applier holds it to open another one
	member *member          // set before ready is closed
	stream mvcc.WatchStream // the applier's

	// shape is held for reading while somebody reads the database file as a whole, for writing while it is made smaller.
	shape  sync.RWMutex
	room   atomic.Int32 // on the disk, for writes; see space.go
	looked atomic.Int64 // when room was found out, in nanoseconds

	mu      sync.Mutex            // guards the fields below
	pending map[string][]*pending // writes proposed, by etcd key
	waiters []waiter
	closed  bool
}

// pending is a write on its way through etcd. The applier takes the object over, so that a
// value written here is not decoded again.
type pending struct {
	value []byte
	obj   Object
	entry *Entry // set by the applier before done is closed
	done  chan struct{}
}

type waiter struct {
	rev  int64
	done chan struct{}
}

// New checks opts and returns a Store that has started nothing; call Run.
func New(opts Options) (*Store, error) {
	opts.Tick = cmp.Or(opts.Tick, 10*time.Millisecond)
	opts.QuotaBytes = cmp.Or(opts.QuotaBytes, 2<<30)
	opts.CompactInterval = cmp.Or(opts.CompactInterval, 5*time.Minute)
	opts.History = cmp.Or(opts.History, 10000)
	opts.HistoryBytes = cmp.Or(opts.HistoryBytes, 32<<20)
	opts.MinFreeBytes = cmp.Or(opts.MinFreeBytes, 128<<20)
	if opts.Free == nil {
		opts.Free = freeBytes
	}
	opts.Name = cmp.Or(opts.Name, "default")
	if opts.Peer != nil {
		peer := *opts.Peer
		peer.Tick = cmp.Or(peer.Tick, 100*time.Millisecond)
		opts.Peer = &peer
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case opts.Dir == "":
		return nil, errors.New("store: Dir is empty")
	case opts.Tick < time.Millisecond:
		return nil, fmt.Errorf("store: Tick is %v, want at least 1ms", opts.Tick)
	case opts.History < 1:
		return nil, fmt.Errorf("store: History is %d, want at least 1", opts.History)
	case opts.MinFreeBytes < 0:
		return nil, fmt.Errorf("store: MinFreeBytes is %d, want at least 0", opts.MinFreeBytes)
	case opts.HistoryBytes < 1:
		return nil, fmt.Errorf("store: HistoryBytes is %d, want at least 1", opts.HistoryBytes)
	}
	if err := opts.Peer.check(); err != nil {
		return nil, err
	}
	s := &Store{
		opts:     opts,
		ready:    make(chan struct{}),
		changes:  make(chan kindChange),
		restarts: make(chan restart),
		reopened: make(chan struct{}, 1),
		stopped:  make(chan struct{}),
		pending:  make(map[string][]*pending),
		lead:     leadership{changed: make(chan struct{})},
	}
	s.epoch.Store(newEpoch())
	first := &tables{byName: make(map[string]*table, len(opts.Kinds)), byRoute: make(map[string]*table, len(opts.Kinds))}
	for _, kind := range opts.Kinds {
		if err := first.add(newTable(kind, &s.applied, opts.ring())); err != nil {
			return nil, err
		}
	}
	s.tables.Store(first)
	return s, nil
}

// ring is an empty history of the size that the options ask for.
func (o *Options) ring() ring { return ring{max: o.History, maxBytes: o.HistoryBytes} }

// Ready is closed when the tables are filled and writes are taken.
func (s *Store) Ready() <-chan struct{} { return s.ready }

// Revision is the last revision that all tables have reached.
func (s *Store) Revision() int64 { return s.applied.Load() }

// SizeBytes is the size of the database on disk and QuotaBytes the limit beyond which
// writes are refused.
func (s *Store) SizeBytes() (size, quota int64) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	return s.member.server.Backend().Size(), s.opts.QuotaBytes
}

// Run opens the database and serves until ctx ends; then it stops etcd cleanly and returns
// nil. ErrRemoved says that the other members go on without this one. It may be called once.
func (s *Store) Run(ctx context.Context) error {
	m, err := s.openMember(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	s.member = m
	defer s.shutdown()
	from, err := s.loadTables(ctx)
	if err != nil {
		return err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	first := slices.Collect(maps.Values(s.tables.Load().byName))
	group.Go(func() error {
		defer close(s.stopped)
		return s.apply(groupCtx, group.Go)
	})
	group.Go(func() error {
		defer closeRefilled(first)
		return s.refillHistory(groupCtx, first, from)
	})
	group.Go(func() error { return s.compactLoop(groupCtx) })
	group.Go(func() error { return s.spaceLoop(groupCtx) })
	s.look(groupCtx)
	group.Go(func() error { return s.watchMembers(groupCtx) })
	close(s.ready)
	if err := group.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

// shutdown ends etcd, every watch and every waiting writer.
func (s *Store) shutdown() {
	if s.stream != nil {
		s.stream.Close()
	}
	s.member.stop(false)
	for _, t := range s.tables.Load().byName {
		t.endWatches(ErrClosed)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, w := range s.waiters {
		close(w.done)
	}
	s.waiters = nil
}

// waitApplied blocks until all tables have reached rev.
func (s *Store) waitApplied(ctx context.Context, rev int64) error {
	if s.applied.Load() >= rev {
		return nil
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	w := waiter{rev: rev, done: make(chan struct{})}
	s.waiters = append(s.waiters, w)
	s.mu.Unlock()
	s.wakeWaiters() // the applier may have passed rev before the waiter was there
	select {
	case <-w.done:
		if s.applied.Load() < rev {
			return ErrClosed
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wakeWaiters releases everyone whose revision has been reached.
func (s *Store) wakeWaiters() {
	s.mu.Lock()
	defer s.mu.Unlock()
	reached := s.applied.Load()
	kept := s.waiters[:0]
	for _, w := range s.waiters {
		if w.rev <= reached {
			close(w.done)
		} else {
			kept = append(kept, w)
		}
	}
	s.waiters = kept
}

// Await blocks until the tables have reached rev, or ctx ends.
func (s *Store) Await(ctx context.Context, rev int64) error { return s.waitApplied(ctx, rev) }
