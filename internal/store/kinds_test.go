package store

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func added() *Kind {
	return &Kind{Name: "things.example.com", Prefix: "/registry/example.com/things/", Namespaced: true, Codec: jsonCodec{}}
}

func TestKindsComeAndGo(t *testing.T) {
	dir := t.TempDir()
	s, stop := start(t, Options{Dir: dir})
	ctx := t.Context()
	if _, err := s.Get("things.example.com", "default/a"); !errors.Is(err, ErrNoKind) {
		t.Errorf("Get before: %v, want ErrNoKind", err)
	}
	if _, err := s.Create(ctx, "things.example.com", "default/a", configMap("a", "red", "")); !errors.Is(err, ErrNoKind) {
		t.Errorf("Create before: %v, want ErrNoKind", err)
	}
	if err := s.AddKinds(ctx, added()); err != nil {
		t.Fatal(err)
	}
	if err := s.AddKinds(ctx, added()); err == nil {
		t.Error("the same kind was added twice")
	}
	w, err := s.Watch(ctx, "things.example.com", WatchOptions{Initial: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	first, err := s.Create(ctx, "things.example.com", "default/a", configMap("a", "red", "1"))
	if err != nil {
		t.Fatal(err)
	}
	if events, _, err := w.Next(ctx); err != nil || len(events) != 1 || events[0].Type != Added {
		t.Errorf("Next = %v, %v", events, err)
	}
	s.EndWatches("things.example.com")
	if _, _, err := w.Next(ctx); !errors.Is(err, ErrReset) {
		t.Errorf("Next after EndWatches: %v, want ErrReset", err)
	}
	if w, err = s.Watch(ctx, "things.example.com", WatchOptions{Since: first.Rev}); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := s.RemoveKind(ctx, "things.example.com"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Next(ctx); !errors.Is(err, ErrNoKind) || !IsEnded(err) {
		t.Errorf("Next after RemoveKind: %v, want ErrNoKind", err)
	}
	mustCreate(t, s, "other", "red", "") // other kinds go on
	if err := s.AddKinds(ctx, added()); err != nil {
		t.Fatal(err)
	}
	if e, err := s.Get("things.example.com", "default/a"); err != nil || e.Rev != first.Rev {
		t.Errorf("what etcd held is %v, %v", e, err)
	}
	second, err := s.Update(ctx, "things.example.com", "default/a", first.Rev, configMap("a", "blue", "2"))
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if err := s.AddKinds(ctx, added()); !errors.Is(err, ErrClosed) {
		t.Errorf("AddKinds after the end: %v, want ErrClosed", err)
	}

	// After a restart the kind is added again, with its objects and their history.
	again, _ := start(t, Options{Dir: dir})
	if err := again.AddKinds(ctx, added()); err != nil {
		t.Fatal(err)
	}
	if e, err := again.Get("things.example.com", "default/a"); err != nil || e.Rev != second.Rev {
		t.Errorf("after a restart: %v, %v", e, err)
	}
	resumed, err := again.Watch(ctx, "things.example.com", WatchOptions{Since: first.Rev})
	if err != nil {
		t.Fatal(err)
	}
	defer resumed.Close()
	if events, _, err := resumed.Next(ctx); err != nil || len(events) != 1 || events[0].Type != Modified || events[0].Prev == nil {
		t.Errorf("resumed: %v, %v", events, err)
	}
}

// TestKindsAreAddedAmongWrites: a table that is added while others write misses nothing of its own.
func TestKindsAreAddedAmongWrites(t *testing.T) {
	s, _ := start(t, Options{Dir: t.TempDir()})
	ctx := t.Context()
	if err := s.AddKinds(ctx, added()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	const writes = 200
	go func() {
		for i := range writes {
			name := fmt.Sprintf("w%03d", i)
			_, err := s.Create(ctx, "things.example.com", "default/"+name, configMap(name, "red", ""))
			for errors.Is(err, ErrNoKind) { // removed at the moment: the write may have got through
				if _, err = s.Get("things.example.com", "default/"+name); errors.Is(err, ErrNotFound) {
					_, err = s.Create(ctx, "things.example.com", "default/"+name, configMap(name, "red", ""))
				}
			}
			if err != nil && !errors.Is(err, ErrExists) {
				done <- fmt.Errorf("write %d: %w", i, err)
				return
			}
		}
		done <- nil
	}()
	deadline := time.After(time.Minute)
	for {
		if err := s.RemoveKind(ctx, "things.example.com"); err != nil {
			t.Fatal(err)
		}
		if err := s.AddKinds(ctx, added()); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			if list, err := s.List(ctx, "things.example.com", ListOptions{}); err != nil || len(list.Entries) != writes {
				t.Errorf("%d objects, %v; want %d", len(list.Entries), err, writes)
			}
			return
		case <-deadline:
			t.Fatal("the writes do not end")
		default:
		}
	}
}
