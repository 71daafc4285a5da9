package quota

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/informer"
)

// Counter counts what quotas limit.
type Counter interface {
	// Count is what the objects in the quota's namespace use. With an error it holds what could be counted.
	Count(q *corev1.ResourceQuota) (corev1.ResourceList, error)
	// Kinds lists the kinds whose objects count for the quota.
	Kinds(q *corev1.ResourceQuota) ([]schema.GroupVersionKind, error)
}

const (
	settle = 50 * time.Millisecond // so that objects which go together are counted once
	// An object that admission has counted is not stored yet: a count between the two misses it.
	verify = 2 * time.Second
)

// Options tunes a Controller. Counter is required.
type Options struct {
	Counter Counter
	Resync  time.Duration // between counts without a cause, default 5m
	Log     *slog.Logger  // default: discard
}

// Controller keeps the status of quotas.
type Controller struct {
	client    client.Client
	informers controller.Informers
	opts      Options
	loop      *controller.Loop

	mu      sync.Mutex // guards the field below
	watched map[schema.GroupVersionKind]func()
}

// New checks opts and returns a controller that has started nothing; call Run.
func New(c client.Client, informers controller.Informers, opts Options) (*Controller, error) {
	if opts.Counter == nil {
		return nil, errors.New("quota: Options.Counter is missing")
	}
	opts.Resync = cmp.Or(opts.Resync, 5*time.Minute)
	qc := &Controller{client: c, informers: informers, opts: opts, watched: make(map[schema.GroupVersionKind]func())}
	loop, err := controller.NewLoop(controller.LoopOptions{Name: "quota", Log: opts.Log, Reconcile: qc.reconcile})
	if err != nil {
		return nil, err
	}
	loop.Watch(&corev1.ResourceQuota{}, func(old, current client.Object) {
		switch key := keyOf(current); {
		case limitsChanged(old, current):
			loop.Add(key)
		case limitsDiffer(current):
			loop.AddAfter(key, verify)
		}
	})
	qc.loop = loop
	return qc, nil
}

func keyOf(obj client.Object) controller.Key {
	if obj == nil {
		return controller.Key{}
	}
	return controller.Key{Namespace: obj.GetNamespace(), Name: obj.GetName()}
}

// Run reconciles until ctx ends.
func (qc *Controller) Run(ctx context.Context) error {
	defer qc.unwatch()
	return qc.loop.Run(ctx, qc.informers)
}

func (qc *Controller) unwatch() {
	qc.mu.Lock()
	defer qc.mu.Unlock()
	for _, stop := range qc.watched {
		stop()
	}
	clear(qc.watched)
}

func (qc *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var q corev1.ResourceQuota
	if err := qc.client.Get(ctx, key, &q); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if q.DeletionTimestamp != nil {
		return 0, nil
	}
	if err := qc.watch(ctx, &q); err != nil {
		return 0, err
	}
	counted, countErr := qc.opts.Counter.Count(&q)
	status, changed := planStatus(&q, counted)
	if !changed {
		return qc.opts.Resync, countErr
	}
	next := q.DeepCopy()
	next.Status = status
	if err := qc.client.Status().Update(ctx, next); err != nil {
		return 0, errors.Join(countErr, client.IgnoreNotFound(err))
	}
	return verify, countErr
}

// watch subscribes to the kinds that count for q, the first time that any quota limits them.
func (qc *Controller) watch(ctx context.Context, q *corev1.ResourceQuota) error {
	kinds, err := qc.opts.Counter.Kinds(q)
	if err != nil {
		return fmt.Errorf("finding what counts for %s/%s: %w", q.Namespace, q.Name, err)
	}
	qc.mu.Lock()
	defer qc.mu.Unlock()
	for _, kind := range kinds {
		if qc.watched[kind] != nil {
			continue
		}
		obj := &metav1.PartialObjectMetadata{}
		obj.SetGroupVersionKind(kind)
		stop, err := informer.Listen(ctx, qc.informers, informer.Subscription{Object: obj, OnEvent: qc.onEvent(ctx)})
		if err != nil {
			return err
		}
		qc.watched[kind] = stop
	}
	return nil
}

// onEvent counts again in the namespace of an object that may have freed something.
func (qc *Controller) onEvent(ctx context.Context) func(old, current client.Object) {
	return func(old, current client.Object) {
		if !frees(old, current) {
			return
		}
		var quotas corev1.ResourceQuotaList
		if err := qc.client.List(ctx, &quotas, client.InNamespace(old.GetNamespace())); err != nil {
			return // the next count is due anyway
		}
		for i := range quotas.Items {
			qc.loop.AddAfter(controller.Key{Namespace: quotas.Items[i].Namespace, Name: quotas.Items[i].Name}, settle)
		}
	}
}
