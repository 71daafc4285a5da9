package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/google/btree"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

// registryPrefix is the root of everything Kubernetes keeps in etcd.
const registryPrefix = "/registry/"

// loadTables starts the watch and fills the tables with what etcd held just before it. It
// returns the revision of that state.
func (s *Store) loadTables(ctx context.Context) (int64, error) {
	rev := s.member.server.KV().Rev()
	if err := s.follow(ctx, rev+1); err != nil {
		return 0, err
	}
	for _, t := range s.tables.Load().byName {
		entries, err := s.rangeAt(ctx, t, rev)
		if err != nil {
			return 0, err
		}
		t.load(entries, rev)
	}
	s.applied.Store(rev)
	return rev, nil
}

// follow starts the applier's watch at a revision.
func (s *Store) follow(ctx context.Context, from int64) error {
	s.stream = s.member.server.KV().NewWatchStream()
	if _, err := s.stream.Watch(ctx, 0, []byte(registryPrefix), prefixEnd(registryPrefix), from); err != nil {
		return fmt.Errorf("watching etcd: %w", err)
	}
	return nil
}

// reload fills the tables anew: this member was so far behind that it was given a state, not the changes up to
// it. Watches begin again.
func (s *Store) reload(ctx context.Context) error {
	s.gate.RLock()
	defer s.gate.RUnlock()
	s.stream.Close()
	rev := s.member.server.KV().Rev()
	if err := s.follow(ctx, rev+1); err != nil {
		return err
	}
	for _, t := range s.tables.Load().byName {
		entries, err := s.rangeAt(ctx, t, rev)
		if err != nil {
			return err
		}
		t.replace(entries, rev)
	}
	s.applied.Store(rev)
	s.wakeWaiters()
	s.opts.Logger.LogAttrs(ctx, slog.LevelInfo, "caught up by a snapshot", slog.Int64("revision", rev))
	return nil
}

// rangeAt decodes everything a table held at rev, in key order.
func (s *Store) rangeAt(ctx context.Context, t *table, rev int64) ([]*Entry, error) {
	result, err := s.member.server.KV().Range(ctx, []byte(t.kind.Prefix), prefixEnd(t.kind.Prefix), mvcc.RangeOptions{Rev: rev})
	switch {
	case errors.Is(err, mvcc.ErrCompacted):
		return nil, ErrGone
	case errors.Is(err, mvcc.ErrFutureRev):
		return nil, ErrFuture
	case err != nil:
		return nil, fmt.Errorf("reading %s from etcd: %w", t.kind.Name, err)
	}
	entries := make([]*Entry, 0, len(result.KVs))
	for i := range result.KVs {
		kv := result.KVs[i]
		entry, err := t.open(strings.TrimPrefix(string(kv.Key), t.kind.Prefix), kv.Value, kv.ModRevision)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry)
	}
	return entries, nil
}

// listAt is a table as it was at rev.
func (s *Store) listAt(ctx context.Context, t *table, rev int64) (*btree.BTreeG[*Entry], error) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	entries, err := s.rangeAt(ctx, t, rev)
	if err != nil {
		return nil, err
	}
	old := newTable(&Kind{Name: t.kind.Name}, t.applied, ring{max: 1})
	for _, e := range entries {
		old.putLocked(e)
	}
	return old.ordered, nil
}

// apply brings etcd's changes into the tables, adds and removes tables, and opens the member another way when
// asked, until ctx ends. spawn starts what must not hold it up.
func (s *Store) apply(ctx context.Context, spawn func(func() error)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.member.server.StopNotify():
			return s.stoppedItself()
		case change := <-s.changes:
			change.done <- s.applyChange(ctx, change, spawn)
		case r := <-s.restarts:
			fatal, err := s.reopen(ctx, r.company)
			r.done <- err
			if fatal {
				return err
			}
		case resp, ok := <-s.stream.Chan():
			if !ok {
				return errors.New("store: etcd ended the watch")
			}
			if err := s.applyResponse(ctx, resp); err != nil {
				return err
			}
		}
	}
}

func (s *Store) applyResponse(ctx context.Context, resp mvcc.WatchResponse) error {
	if resp.CompactRevision != 0 {
		if s.company.Load() {
			return s.reload(ctx)
		}
		return fmt.Errorf("store: history was compacted to %d before it was read", resp.CompactRevision)
	}
	for _, event := range resp.Events {
		if err := s.applyEvent(event); err != nil {
			return err
		}
	}
	s.wakeWaiters()
	return nil
}

// stoppedItself says why etcd ended.
func (s *Store) stoppedItself() error {
	if s.company.Load() && s.member.server.Cluster().Member(s.member.server.MemberID()) == nil {
		return ErrRemoved
	}
	return errors.New("store: etcd stopped by itself")
}

func (s *Store) applyEvent(event *mvccpb.Event) error {
	kv := event.Kv
	t, key := s.route(string(kv.Key))
	switch {
	case t == nil: // a kind this version does not serve: kept as it is, but not read
		s.applied.Store(kv.ModRevision)
	case event.Type == mvccpb.Event_DELETE:
		t.remove(key, kv.ModRevision)
	default:
		if p := s.claim(string(kv.Key), kv.Value); p != nil {
			p.entry = t.entry(key, p.obj, kv.ModRevision)
			p.entry.size = len(kv.Value)
			close(p.done) // before the revision is reached, for which the writer waits too
			t.put(p.entry)
			return nil
		}
		entry, err := t.open(key, kv.Value, kv.ModRevision)
		if err != nil {
			return err // wrong state must not be served
		}
		t.put(entry)
	}
	return nil
}

// route finds the table of an etcd key and the key in it.
func (s *Store) route(etcdKey string) (*table, string) {
	routes := s.tables.Load().byRoute
	for i := len(registryPrefix); i < len(etcdKey); i++ {
		if etcdKey[i] != '/' {
			continue
		}
		if t := routes[etcdKey[:i+1]]; t != nil {
			return t, etcdKey[i+1:]
		}
	}
	return nil, ""
}

// claim takes the pending write that proposed value, nil if it was not ours.
func (s *Store) claim(etcdKey string, value []byte) *pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pending[etcdKey] {
		if bytes.Equal(p.value, value) {
			s.dropLocked(etcdKey, p)
			return p
		}
	}
	return nil
}

// refillHistory reads the changes of tables before they were loaded, so that watches resume over a
// restart.
func (s *Store) refillHistory(ctx context.Context, tables []*table, loaded int64) error {
	s.gate.RLock()
	defer s.gate.RUnlock()
	kv := s.member.server.KV()
	from := max(kv.FirstRev(), loaded-int64(s.opts.History), 1)
	if from >= loaded {
		return nil
	}
	past := make(map[*table]*table, len(tables))
	for _, t := range tables {
		entries, err := s.rangeAt(ctx, t, from)
		if errors.Is(err, ErrGone) {
			return nil // compacted meanwhile: watches from before the start list again
		}
		if isSealed(err) {
			continue // a key was taken away since: watches of this kind list again
		}
		if err != nil {
			return err
		}
		old := newTable(t.kind, &s.applied, ring{max: int(loaded-from) + 1, maxBytes: s.opts.HistoryBytes})
		old.applied = nil
		for _, e := range entries {
			old.putLocked(e)
		}
		past[t] = old
	}
	if err := s.replay(ctx, past, from, loaded); err != nil {
		if errors.Is(err, ErrGone) || ctx.Err() != nil {
			return nil
		}
		return err
	}
	for t, old := range past {
		t.mu.Lock()
		if t.history.from == loaded { // else changes since the start have already pushed the older ones out
			t.history.prepend(old.history.events, max(from, old.history.from))
		}
		t.mu.Unlock()
	}
	return nil
}

// replay runs the changes after from, up to and including to, through the tables of the past.
func (s *Store) replay(ctx context.Context, past map[*table]*table, from, to int64) error {
	stream := s.member.server.KV().NewWatchStream()
	defer stream.Close()
	if _, err := stream.Watch(ctx, 0, []byte(registryPrefix), prefixEnd(registryPrefix), from+1); err != nil {
		return fmt.Errorf("watching etcd's past: %w", err)
	}
	poll := time.NewTicker(10 * time.Millisecond) // ends the wait when the last revisions are of other keys
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-poll.C:
			stream.RequestProgress(0)
		case resp := <-stream.Chan():
			if resp.CompactRevision != 0 {
				return ErrGone
			}
			for _, event := range resp.Events {
				if event.Kv.ModRevision > to {
					return nil
				}
				if err := s.replayEvent(past, event); err != nil {
					return err
				}
			}
			if resp.Revision >= to && (len(resp.Events) == 0 || resp.Events[len(resp.Events)-1].Kv.ModRevision >= to) {
				return nil
			}
		}
	}
}

func (s *Store) replayEvent(past map[*table]*table, event *mvccpb.Event) error {
	live, key := s.route(string(event.Kv.Key))
	t := past[live]
	if t == nil {
		return nil
	}
	rev := event.Kv.ModRevision
	prev := t.byKey[key]
	if event.Type == mvccpb.Event_DELETE {
		if prev == nil {
			return nil
		}
		delete(t.byKey, key)
		t.history.add(Event{Type: Deleted, Rev: rev, Entry: prev.At(rev), Prev: prev})
		return nil
	}
	entry, err := t.open(key, event.Kv.Value, rev)
	if isSealed(err) {
		delete(past, live) // as in refillHistory
		return nil
	}
	if err != nil {
		return err
	}
	change := Event{Type: Added, Rev: rev, Entry: entry, Prev: prev}
	if prev != nil {
		change.Type = Modified
	}
	t.byKey[key] = entry
	t.history.add(change)
	return nil
}

// compactLoop drops etcd's history older than one interval, once an interval.
func (s *Store) compactLoop(ctx context.Context) error {
	ticker := time.NewTicker(s.opts.CompactInterval)
	defer ticker.Stop()
	before := s.applied.Load()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			now := s.applied.Load()
			if leading, _ := s.Leading(); leading && before > 1 {
				if err := s.compactTo(ctx, before); err != nil && ctx.Err() == nil {
					s.opts.Logger.LogAttrs(ctx, slog.LevelWarn, "compaction", slog.Any("error", err))
				}
			}
			before = now
		}
	}
}

func (s *Store) compactTo(ctx context.Context, rev int64) error {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if rev <= s.member.server.KV().FirstRev() {
		return nil
	}
	return s.member.compact(ctx, rev)
}
