package controller_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/controller/controllertest"
)

func TestLoop(t *testing.T) {
	for name, tc := range map[string]struct {
		reconcile func(call int) (time.Duration, error)
		wait      time.Duration
		want      controller.LoopStats
	}{
		"once":          {func(int) (time.Duration, error) { return 0, nil }, time.Hour, controller.LoopStats{Reconciled: 1}},
		"asks for more": {func(call int) (time.Duration, error) { return time.Duration(2-call) * time.Minute, nil }, time.Hour, controller.LoopStats{Reconciled: 2}},
		"fails twice": {func(call int) (time.Duration, error) {
			if call < 3 {
				return 0, errors.New("not yet")
			}
			return 0, nil
		}, time.Second, controller.LoopStats{Reconciled: 3, Failures: 2}},
		"panics once": {func(call int) (time.Duration, error) {
			if call == 1 {
				panic("bad object")
			}
			return 0, nil
		}, time.Second, controller.LoopStats{Reconciled: 2, Failures: 1, Panics: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := controllertest.New(t, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}})
				calls := 0
				loop, err := controller.NewLoop(controller.LoopOptions{
					Name: "test", Workers: 1,
					Reconcile: func(_ context.Context, key controller.Key) (time.Duration, error) {
						if key.String() != "default/a" {
							t.Errorf("key %s", key)
						}
						calls++
						return tc.reconcile(calls)
					},
				})
				if err != nil {
					t.Fatal(err)
				}
				loop.Watch(&corev1.ConfigMap{}, func(_, current client.Object) { loop.Add(controller.KeyOf(current)) })
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- loop.Run(ctx, c) }()
				time.Sleep(tc.wait)
				synctest.Wait()
				cancel()
				if err := <-done; err != nil {
					t.Errorf("Run = %v", err)
				}
				if got := loop.Stats(); got != tc.want {
					t.Errorf("stats %+v, want %+v", got, tc.want)
				}
			})
		})
	}
}

func TestLoopOptions(t *testing.T) {
	reconcile := func(context.Context, controller.Key) (time.Duration, error) { return 0, nil }
	for name, opts := range map[string]controller.LoopOptions{
		"no name":      {Reconcile: reconcile},
		"no function":  {Name: "x"},
		"many workers": {Name: "x", Reconcile: reconcile, Workers: 1000},
	} {
		if _, err := controller.NewLoop(opts); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
