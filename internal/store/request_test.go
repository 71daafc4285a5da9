package store

import (
	"context"
	"errors"
	"testing"
)

// TestLostProposal: what was sent to a leader that is gone is proposed again, unless it makes a key: the first proposal may
// come to the next leader late, when the key was made by the second and deleted.
func TestLostProposal(t *testing.T) {
	for name, tc := range map[string]struct {
		once  bool
		calls int
		err   error
	}{
		"with a revision": {false, 2, nil},
		"a new key":       {true, 1, ErrTimeout},
	} {
		s, err := New(Options{Dir: t.TempDir(), Kinds: testKinds()})
		if err != nil {
			t.Fatal(err)
		}
		s.company.Store(true)
		calls := 0
		_, _, again, err := s.request(t.Context(), tc.once, func(ctx context.Context, _ *member) (int64, bool, error) {
			if calls++; calls > 1 {
				return 7, true, nil
			}
			s.epoch.Swap(newEpoch()).end() // another leads
			<-ctx.Done()
			return 0, false, context.Canceled
		})
		if calls != tc.calls || !errors.Is(err, tc.err) || again != (tc.calls > 1) {
			t.Errorf("%s: %d calls, again %t, %v; want %d and %v", name, calls, again, err, tc.calls, tc.err)
		}
	}
}
