package workload

import (
	"context"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// paceShare bounds the part of the time that passes over one owner may take while its pods
// keep changing, and paceLimit how long a status may lag behind them for that.
const (
	paceShare = 10
	paceLimit = time.Second
)

// pacer decides how long to wait for more events of an owner's pods before the next pass
// over it: a pass looks at all of them, so that of a large owner is not worth a single one.
type pacer struct {
	batch time.Duration // the least

	mu   sync.Mutex // guards slow
	slow map[controller.Key]time.Duration
}

// reconcile is a function to reconcile one key, as controller.Loop takes it.
type reconcile func(ctx context.Context, key controller.Key) (time.Duration, error)

// timed is next, and notes how long it takes.
func (p *pacer) timed(next reconcile) reconcile {
	return func(ctx context.Context, key controller.Key) (time.Duration, error) {
		begun := time.Now()
		again, err := next(ctx, key)
		p.note(key, time.Since(begun))
		return again, err
	}
}

func (p *pacer) note(key controller.Key, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if wait := took * paceShare; wait > p.batch {
		if p.slow == nil {
			p.slow = map[controller.Key]time.Duration{}
		}
		p.slow[key] = min(wait, paceLimit)
		return
	}
	delete(p.slow, key)
}

func (p *pacer) wait(key controller.Key) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(p.batch, p.slow[key])
}

// wakes leads events of pods to a loop: at once when a replacement may be due, else after a
// moment in which more may come.
func (p *pacer) wakes(loop *controller.Loop) func(controller.Key, client.Object, client.Object) {
	return func(owner controller.Key, _, current client.Object) {
		if current == nil || current.GetDeletionTimestamp() != nil {
			loop.Add(owner)
			return
		}
		loop.AddAfter(owner, p.wait(owner))
	}
}
