package store

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// A revision that etcd has dropped is gone though the history in memory reaches back to it.
func TestListOfACompactedRevisionThatIsInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stop := start(t, Options{Dir: t.TempDir(), Tick: 100 * time.Millisecond})
		defer stop()
		first := mustCreate(t, s, "a", "red", "1")
		next := first
		for i := range 3 {
			next, _ = s.Update(t.Context(), "configmaps", "default/a", next.Rev, configMap("a", "red", fmt.Sprint(i)))
		}
		if list, err := s.List(t.Context(), "configmaps", ListOptions{Rev: first.Rev}); err != nil || list.Entries[0].Rev != first.Rev {
			t.Fatalf("List of an old revision = %v, %v; want the first object", list, err)
		}
		time.Sleep(11 * time.Minute) // virtual
		if _, err := s.List(t.Context(), "configmaps", ListOptions{Rev: first.Rev}); !errors.Is(err, ErrGone) {
			t.Errorf("List after compaction = %v, want ErrGone", err)
		}
		if list, err := s.List(t.Context(), "configmaps", ListOptions{Rev: next.Rev}); err != nil || len(list.Entries) != 1 {
			t.Errorf("List of the last revision = %v, %v; want the object", list, err)
		}
	})
}
