package server

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

func TestPersist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slow error = apierrors.NewTimeoutError("etcd is slow", 0)
		calls := 0
		full := errors.New("etcd is full")
		if err := persist(t.Context(), time.Minute, func() error { calls++; return full }); !errors.Is(err, full) || calls != 1 {
			t.Errorf("persist = %v after %d calls, want the error after one", err, calls)
		}
		calls = 0
		err := persist(t.Context(), time.Minute, func() error {
			if calls++; calls < 4 {
				return slow
			}
			return nil
		})
		if err != nil || calls != 4 {
			t.Errorf("persist = %v after %d calls, want nil after 4", err, calls)
		}
		begun := time.Now()
		if err := persist(t.Context(), time.Minute, func() error { return slow }); !errors.Is(err, slow) || time.Since(begun) != time.Minute {
			t.Errorf("persist = %v after %v, want the last error after a minute", err, time.Since(begun))
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		begun = time.Now()
		if err := persist(ctx, time.Minute, func() error { return slow }); !errors.Is(err, slow) || time.Since(begun) != time.Second {
			t.Errorf("persist = %v after %v, want the last error when ctx ends", err, time.Since(begun))
		}
	})
}
