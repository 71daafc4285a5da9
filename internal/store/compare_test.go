package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/schema"
)

func TestJudge(t *testing.T) {
	for name, tc := range map[string]struct {
		sums []sum
		want string
	}{
		"all the same":       {[]sum{{"a", true, 1, 5}, {"b", true, 1, 5}, {"c", true, 1, 5}}, "same [a b c] differ [] missed [] unsure false"},
		"one differs":        {[]sum{{"a", true, 1, 5}, {"c", true, 2, 5}, {"b", true, 1, 5}}, "same [a b] differ [c] missed [] unsure false"},
		"it is who asks":     {[]sum{{"a", true, 2, 5}, {"b", true, 1, 5}, {"c", true, 1, 5}}, "same [b c] differ [a] missed [] unsure false"},
		"one is not reached": {[]sum{{"a", true, 1, 5}, {"b", true, 1, 5}, {"c", false, 0, 0}}, "same [a b] differ [] missed [c] unsure false"},
		"two of two":         {[]sum{{"a", true, 1, 5}, {"b", true, 2, 5}}, "same [] differ [a b] missed [] unsure true"},
		"two of three":       {[]sum{{"a", true, 1, 5}, {"b", true, 2, 5}, {"c", false, 0, 0}}, "same [] differ [a b] missed [c] unsure true"},
		"other compaction":   {[]sum{{"a", true, 1, 5}, {"b", true, 2, 4}, {"c", true, 1, 5}}, "same [a c] differ [] missed [b] unsure false"},
	} {
		c := judge(tc.sums)
		if got := fmt.Sprintf("same %v differ %v missed %v unsure %v", c.Same, c.Differ, c.Missed, c.Unsure); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// TestCompareFindsCorruption changes a byte in the database of one of three members.
func TestCompareFindsCorruption(t *testing.T) {
	_, members := three(t)
	for i := range 20 {
		mustCreate(t, members[i%3].Store, fmt.Sprint("n-", i), "red", "1")
	}
	leader := leaderOf(t, members...)
	compare := func() Comparison {
		t.Helper()
		got, err := leader.Compare(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := compare(); len(got.Same) != 3 || len(got.Differ) > 0 || len(got.Missed) > 0 {
		t.Fatalf("healthy members: %+v", got)
	}
	bad := members[slices.IndexFunc(members, func(m *testMember) bool { return m != leader })]
	tx := bad.member.server.Backend().BatchTx()
	tx.LockOutsideApply()
	var key, value []byte
	err := tx.UnsafeForEach(schema.Key, func(k, v []byte) error {
		key, value = bytes.Clone(k), bytes.Clone(v)
		return nil
	})
	value[len(value)-2] ^= 1
	tx.UnsafePut(schema.Key, key, value)
	tx.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if got := compare(); !slices.Equal(got.Differ, []string{bad.opts.Name}) || len(got.Same) != 2 || got.Unsure {
		t.Errorf("a byte of %s differs: %+v", bad.opts.Name, got)
	}
}

// TestTurns: one member at a time, and after a loss the next.
func TestTurns(t *testing.T) {
	_, members := three(t)
	release, err := members[0].takeTurn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := members[1].takeTurn(t.Context()); !errors.Is(err, errNotOurTurn) {
		t.Errorf("a second turn: %v, want %v", err, errNotOurTurn)
	}
	release()
	if release, err = members[1].takeTurn(t.Context()); err != nil {
		t.Fatalf("the next turn: %v", err)
	}
	release()
	leader := leaderOf(t, members...)
	if err := leader.handOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another leader", func() bool {
		leading, _ := leader.Leading()
		return !leading && leaderOf(t, members...) != leader
	})
}

// TestWatchThroughCompaction: a watch hears everything in order while history is compacted, files are made smaller and the
// leader hands over; one that begins before what is kept is told so.
func TestWatchThroughCompaction(t *testing.T) {
	_, members := three(t)
	first := mustCreate(t, members[0].Store, "first", "red", "1")
	type watched struct {
		name string
		err  chan error
	}
	const writes = 150
	var all []watched
	for _, m := range members {
		if err := m.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		w, err := m.Watch(t.Context(), "configmaps", WatchOptions{Since: first.Rev})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			defer w.Close()
			done <- followWrites(t.Context(), w, writes, first.Rev)
		}()
		all = append(all, watched{m.opts.Name, done})
	}
	value := strings.Repeat("x", 64<<10)
	for i := range writes {
		at := members[i%3]
		name := fmt.Sprint("n-", i)
		_, err := at.Create(t.Context(), "configmaps", "default/"+name, configMap(name, "red", value))
		if errors.Is(err, ErrTimeout) { // the leader handed over meanwhile
			eventually(t, name, func() bool {
				_, err = at.Create(t.Context(), "configmaps", "default/"+name, configMap(name, "red", value))
				return err == nil || errors.Is(err, ErrExists) || errors.As(err, new(*ConflictError))
			})
		} else if err != nil {
			t.Fatal(err)
		}
		e := mustRead(t, at.Store, name)
		if i%30 == 29 {
			leader := leaderOf(t, members...)
			if err := leader.member.compact(t.Context(), e.Rev); err != nil {
				t.Fatal(err)
			}
			for _, m := range members {
				if err := m.member.server.Defragment(); err != nil {
					t.Fatal(err)
				}
			}
			if err := leader.handOver(t.Context()); err != nil {
				t.Logf("the leader stays: %v", err)
			}
		}
	}
	for _, w := range all {
		select {
		case err := <-w.err:
			if err != nil {
				t.Errorf("watch at %s: %v", w.name, err)
			}
		case <-time.After(patience):
			t.Errorf("watch at %s does not hear everything", w.name)
		}
	}
}

// followWrites hears n objects, whose names count up, in order.
func followWrites(ctx context.Context, w *Watch, n int, rev int64) error {
	for i := 0; i < n; {
		events, _, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for _, e := range events {
			if got, want := e.Entry.Key, fmt.Sprint("default/n-", i); got != want {
				return fmt.Errorf("heard %s, want %s", got, want)
			}
			if e.Rev <= rev {
				return fmt.Errorf("revision %d after %d", e.Rev, rev)
			}
			rev, i = e.Rev, i+1
		}
	}
	return nil
}
