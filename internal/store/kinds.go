package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"
)

// tables are those that the store has at one time. They are replaced as a whole, so that reads
// need no lock.
type tables struct {
	byName  map[string]*table
	byRoute map[string]*table // by etcd prefix
}

func (t *tables) clone() *tables {
	return &tables{byName: maps.Clone(t.byName), byRoute: maps.Clone(t.byRoute)}
}

func (t *tables) add(table *table) error {
	kind := table.kind
	if t.byName[kind.Name] != nil || t.byRoute[kind.Prefix] != nil {
		return fmt.Errorf("store: kind %s or its prefix %s is there twice", kind.Name, kind.Prefix)
	}
	t.byName[kind.Name], t.byRoute[kind.Prefix] = table, table
	return nil
}

// kindChange asks the applier to add and remove kinds between two events.
type kindChange struct {
	add    []*Kind
	remove string
	done   chan error
}

// AddKinds gives the running store more tables, filled with what etcd holds under their prefixes.
// The history from before is read afterwards, so that watches resume over a restart.
func (s *Store) AddKinds(ctx context.Context, kinds ...*Kind) error {
	if len(kinds) == 0 {
		return nil
	}
	return s.changeKinds(ctx, kindChange{add: kinds})
}

// RemoveKind takes a table away: its watches end with ErrNoKind, and so does every call that names
// it. What etcd holds stays.
func (s *Store) RemoveKind(ctx context.Context, name string) error {
	return s.changeKinds(ctx, kindChange{remove: name})
}

func (s *Store) changeKinds(ctx context.Context, change kindChange) error {
	change.done = make(chan error, 1)
	select {
	case s.changes <- change:
	case <-s.stopped:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-change.done:
		return err
	case <-s.stopped:
		return ErrClosed
	}
}

// HasKind reports whether there is a table of that name.
func (s *Store) HasKind(name string) bool { return s.tables.Load().byName[name] != nil }

// EndWatches ends all watches of a kind with ErrReset: what they deliver would be made another way now.
func (s *Store) EndWatches(kind string) {
	if t, err := s.table(kind); err == nil {
		t.endWatches(ErrReset)
	}
}

func (t *table) endWatches(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watchers.endAll(err)
}

// rangeApplied is rangeAt of a revision that the applier has seen. etcd tells its watches of a revision
// a moment before the revision can be read (mvcc, watchableStoreTxnWrite.End).
func (s *Store) rangeApplied(ctx context.Context, t *table, rev int64) ([]*Entry, error) {
	for {
		entries, err := s.rangeAt(ctx, t, rev)
		if !errors.Is(err, ErrFuture) {
			return entries, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// applyChange is run by the applier, so that the new tables start exactly where it stands.
func (s *Store) applyChange(ctx context.Context, change kindChange, spawn func(func() error)) error {
	next := s.tables.Load().clone()
	if change.remove != "" {
		t := next.byName[change.remove]
		if t == nil {
			return nil
		}
		delete(next.byName, t.kind.Name)
		delete(next.byRoute, t.kind.Prefix)
		s.tables.Store(next)
		t.endWatches(ErrNoKind)
		return nil
	}
	rev := s.applied.Load()
	var filled []*table
	for _, kind := range change.add {
		t := newTable(kind, &s.applied, s.opts.ring())
		if err := next.add(t); err != nil {
			return err
		}
		entries, err := s.rangeApplied(ctx, t, rev)
		if err != nil {
			return err
		}
		t.load(entries, rev)
		if len(entries) == 0 {
			close(t.refilled)
			continue
		}
		filled = append(filled, t)
	}
	s.tables.Store(next)
	if len(filled) > 0 {
		spawn(func() error {
			defer closeRefilled(filled)
			if err := s.refillHistory(ctx, filled, rev); err != nil && ctx.Err() == nil {
				s.opts.Logger.LogAttrs(ctx, slog.LevelWarn, "reading the history of added kinds", slog.Any("error", err))
			}
			return nil
		})
	}
	return nil
}

func closeRefilled(tables []*table) {
	for _, t := range tables {
		close(t.refilled)
	}
}

// table finds the table of a kind, which may have been removed.
func (s *Store) table(kind string) (*table, error) {
	if t := s.tables.Load().byName[kind]; t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("%s: %w", kind, ErrNoKind)
}

// IsEnded reports whether err ends a watch whose kind changed or whose reader was slow: the reader
// begins again.
func IsEnded(err error) bool {
	return errors.Is(err, ErrSlow) || errors.Is(err, ErrReset) || errors.Is(err, ErrNoKind)
}
