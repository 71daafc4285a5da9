package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/informer"
)

// Informers gives events of a kind. controller-runtime's cache.Cache satisfies it.
type Informers interface {
	GetInformer(ctx context.Context, obj client.Object, opts ...cache.InformerGetOption) (cache.Informer, error)
}

// Recorder writes Events. internal/events implements it.
type Recorder interface {
	Event(obj runtime.Object, eventtype, reason, note string)
}

// Key names the object that a reconcile is about; Namespace is empty for cluster-wide kinds.
type Key = types.NamespacedName

// KeyOf is the key of obj.
func KeyOf(obj client.Object) Key { return Key{Namespace: obj.GetNamespace(), Name: obj.GetName()} }

// LoopOptions tunes a Loop.
type LoopOptions struct {
	Name      string        // for logs and errors
	Workers   int           // keys reconciled at once; default 4
	BaseDelay time.Duration // wait after a key's first failure, doubled each time; default 5ms
	MaxDelay  time.Duration // longest wait after a failure; default 1m
	Log       *slog.Logger  // default: discard
	// Reconcile looks at one key. A positive result asks for another look after that time.
	Reconcile func(ctx context.Context, key Key) (time.Duration, error)
}

// Loop is a queue of keys and the workers that reconcile them. A worker that panics
// recovers, and its key is tried again later, so one bad object cannot stop the cluster.
type Loop struct {
	opts    LoopOptions
	watches []informer.Subscription

	reconciled atomic.Int64
	failures   atomic.Int64
	panics     atomic.Int64

	started chan struct{} // closed when Run takes keys

	mu    sync.Mutex // guards queue
	queue workqueue.TypedRateLimitingInterface[Key]
}

// LoopStats counts what a Loop has done since its start.
type LoopStats struct {
	Reconciled int64 // calls of Reconcile
	Failures   int64 // that returned an error or panicked
	Panics     int64 // that panicked
	Waiting    int   // keys in the queue now
}

// NewLoop checks opts and returns a Loop that has started nothing; call Watch, then Run.
func NewLoop(opts LoopOptions) (*Loop, error) {
	opts.Workers = cmp.Or(opts.Workers, 4)
	opts.BaseDelay = cmp.Or(opts.BaseDelay, 5*time.Millisecond)
	opts.MaxDelay = cmp.Or(opts.MaxDelay, time.Minute)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case opts.Name == "" || opts.Reconcile == nil:
		return nil, errors.New("controller: a loop needs a Name and a Reconcile function")
	case opts.Workers < 1 || opts.Workers > 256:
		return nil, fmt.Errorf("controller %s: Workers is %d, want 1 to 256", opts.Name, opts.Workers)
	}
	return &Loop{opts: opts, started: make(chan struct{})}, nil
}

// Watch calls onEvent for each event of obj's kind while Run runs. An added object has
// old nil, a deleted one current nil. Call it before Run; onEvent must be quick.
func (l *Loop) Watch(obj client.Object, onEvent func(old, current client.Object)) {
	l.watches = append(l.watches, informer.Subscription{Object: obj, OnEvent: onEvent})
}

// Started is closed when Run takes keys: whoever watches kinds besides Watch waits for it, or
// the first keys are lost.
func (l *Loop) Started() <-chan struct{} { return l.started }

// Add asks for a reconcile of key. Before and after Run it does nothing: Run starts
// with an event for every object there is.
func (l *Loop) Add(key Key) {
	if queue := l.current(); queue != nil {
		queue.Add(key)
	}
}

// AddAfter is Add after a while.
func (l *Loop) AddAfter(key Key, after time.Duration) {
	if queue := l.current(); queue != nil {
		queue.AddAfter(key, after)
	}
}

func (l *Loop) current() workqueue.TypedRateLimitingInterface[Key] {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.queue
}

// Stats returns the counts so far.
func (l *Loop) Stats() LoopStats {
	stats := LoopStats{Reconciled: l.reconciled.Load(), Failures: l.failures.Load(), Panics: l.panics.Load()}
	if queue := l.current(); queue != nil {
		stats.Waiting = queue.Len()
	}
	return stats
}

// Run reconciles keys until ctx ends and all workers have returned. It starts once the
// informers of all watched kinds have delivered what exists. It may be called once.
func (l *Loop) Run(ctx context.Context, informers Informers) error {
	queue := workqueue.NewTypedRateLimitingQueueWithConfig(
		workqueue.NewTypedItemExponentialFailureRateLimiter[Key](l.opts.BaseDelay, l.opts.MaxDelay),
		workqueue.TypedRateLimitingQueueConfig[Key]{},
	)
	l.mu.Lock()
	l.queue = queue
	l.mu.Unlock()
	close(l.started)
	defer queue.ShutDown()

	stop, err := informer.Subscribe(ctx, informers, l.watches...)
	if err != nil && ctx.Err() != nil {
		return nil // asked to stop before all was there
	}
	if err != nil {
		return fmt.Errorf("controller %s: %w", l.opts.Name, err)
	}
	defer stop()

	var workers sync.WaitGroup
	for range l.opts.Workers {
		workers.Go(func() {
			for l.next(ctx, queue) {
			}
		})
	}
	<-ctx.Done()
	queue.ShutDown()
	workers.Wait()
	return nil
}

// next reconciles one key and says whether to go on.
func (l *Loop) next(ctx context.Context, queue workqueue.TypedRateLimitingInterface[Key]) bool {
	key, quit := queue.Get()
	if quit {
		return false
	}
	defer queue.Done(key)
	if ctx.Err() != nil {
		return false
	}
	after, err := l.reconcile(ctx, key)
	switch {
	case err != nil && ctx.Err() != nil:
		return false
	case err != nil:
		l.failures.Add(1)
		level := slog.LevelWarn
		if apierrors.IsConflict(err) {
			level = slog.LevelDebug // somebody else wrote first; the retry will see it
		}
		l.opts.Log.Log(ctx, level, "reconcile will be retried", "controller", l.opts.Name,
			"namespace", key.Namespace, "name", key.Name, "error", err)
		queue.AddRateLimited(key)
	default:
		queue.Forget(key)
		if after > 0 {
			queue.AddAfter(key, after)
		}
	}
	return true
}

// reconcile calls Reconcile and turns a panic into an error.
func (l *Loop) reconcile(ctx context.Context, key Key) (after time.Duration, err error) {
	l.reconciled.Add(1)
	defer func() {
		if cause := recover(); cause != nil {
			l.panics.Add(1)
			l.opts.Log.Error("reconcile panicked", "controller", l.opts.Name, "namespace", key.Namespace,
				"name", key.Name, "panic", cause, "stack", string(debug.Stack()))
			err = fmt.Errorf("reconcile panicked: %v", cause)
		}
	}()
	return l.opts.Reconcile(ctx, key)
}

// Safely calls f and turns a panic into an error. A goroutine that a reconcile function
// starts calls it, because the loop can recover only its own.
func Safely(f func() error) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("panicked: %v\n%s", cause, debug.Stack())
		}
	}()
	return f()
}

// RunAll runs loops until ctx ends or one of them fails, and waits for all.
func RunAll(ctx context.Context, informers Informers, loops ...*Loop) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	errs := make([]error, len(loops))
	for i, loop := range loops {
		running.Go(func() {
			defer cancel()
			errs[i] = loop.Run(ctx, informers)
		})
	}
	running.Wait()
	return errors.Join(errs...)
}
