package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestHistoryIsBoundedByBytes: a few changes of large objects push old history out long before the count does.
func TestHistoryIsBoundedByBytes(t *testing.T) {
	const limit, size, changes = 64 << 10, 4 << 10, 100
	dir := t.TempDir()
	s, stop := start(t, Options{Dir: dir, HistoryBytes: limit})
	first := mustCreate(t, s, "a", "red", strings.Repeat("x", size))
	last := first
	for i := range changes {
		var err error
		if last, err = s.Update(t.Context(), "configmaps", "default/a", last.Rev, configMap("a", "red", fmt.Sprint(i)+strings.Repeat("x", size))); err != nil {
			t.Fatal(err)
		}
	}
	check := func(s *Store) {
		t.Helper()
		table, err := s.table("configmaps")
		if err != nil {
			t.Fatal(err)
		}
		table.mu.Lock()
		sum := 0
		for _, event := range table.history.events {
			sum += event.Entry.size
		}
		kept, bytes := len(table.history.events), table.history.bytes
		table.mu.Unlock()
		if sum != bytes || sum > limit || kept < limit/size/2 {
			t.Errorf("history keeps %d events of %d bytes (counted %d); want most of %d", kept, sum, bytes, limit)
		}
		if _, err := s.Watch(t.Context(), "configmaps", WatchOptions{Since: first.Rev}); !errors.Is(err, ErrGone) {
			t.Errorf("a watch from before the history: %v, want ErrGone", err)
		}
		w, err := s.Watch(t.Context(), "configmaps", WatchOptions{Since: last.Rev - 3})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if events, _, err := w.Next(t.Context()); err != nil || len(events) != 3 {
			t.Errorf("resume = %d events, %v; want 3", len(events), err)
		}
	}
	check(s)
	stop()
	again, _ := start(t, Options{Dir: dir, HistoryBytes: limit})
	table, err := again.table("configmaps")
	if err != nil {
		t.Fatal(err)
	}
	<-table.refilled
	check(again)
}

// TestWatchQueueIsBoundedByBytes: a reader that is away is cut off when what waits for it is too large, and is told.
func TestWatchQueueIsBoundedByBytes(t *testing.T) {
	s, _ := start(t, Options{Dir: t.TempDir(), HistoryBytes: 64 << 10})
	w, err := s.Watch(t.Context(), "configmaps", WatchOptions{Initial: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	told := make(chan struct{})
	w.OnSlow(func() { close(told) })
	entry := mustCreate(t, s, "a", "red", strings.Repeat("x", 4<<10))
	for range 20 {
		if entry, err = s.Update(t.Context(), "configmaps", "default/a", entry.Rev, configMap("a", "red", strings.Repeat("y", 4<<10))); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	select {
	case <-told:
	case <-ctx.Done():
		t.Fatal("OnSlow was not called")
	}
	if _, _, err := w.Next(ctx); !errors.Is(err, ErrSlow) {
		t.Errorf("Next = %v, want ErrSlow", err)
	}
}
