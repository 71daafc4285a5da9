package server

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestPassing(t *testing.T) {
	name := schema.GroupResource{Resource: "configmaps"}
	for what, tc := range map[string]struct {
		err  error
		want bool
	}{
		"etcd is slow":           {apierrors.NewTimeoutError("etcd is slow", 0), true},
		"another was faster":     {apierrors.NewConflict(name, "cluster-info", errors.New("modified")), true},
		"wrapped":                {fmt.Errorf("telling: %w", apierrors.NewConflict(name, "cluster-info", errors.New("modified"))), true},
		"no leader":              {apierrors.NewServiceUnavailable("no leader"), true},
		"refused by somebody":    {apierrors.NewForbidden(name, "cluster-info", errors.New("policy")), false},
		"not one of the API's":   {errors.New("etcd is full"), false},
		"broken on the way here": {apierrors.NewInternalError(errors.New("x")), false},
	} {
		if got := passing(tc.err); got != tc.want {
			t.Errorf("%s: passing = %t", what, got)
		}
	}
}

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
