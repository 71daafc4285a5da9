package namespace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// Options tunes a Controller.
type Options struct {
	// Kinds returns the namespaced kinds that can be listed and deleted. Required. An error
	// (some are not known) keeps namespaces from being finalized.
	Kinds   func() ([]controller.Kind, error)
	Workers int          // namespaces emptied at once; default 4
	Log     *slog.Logger // default: discard
}

// Controller empties and finalizes namespaces that are being deleted.
type Controller struct {
	client    client.Client
	informers controller.Informers
	opts      Options
	loop      *controller.Loop
}

// New checks opts and returns a controller that has started nothing; call Run.
func New(c client.Client, informers controller.Informers, opts Options) (*Controller, error) {
	if opts.Kinds == nil {
		return nil, errors.New("namespace: Options.Kinds is missing")
	}
	nc := &Controller{client: c, informers: informers, opts: opts}
	loop, err := controller.NewLoop(controller.LoopOptions{Name: "namespace", Workers: opts.Workers, Log: opts.Log, Reconcile: nc.reconcile})
	if err != nil {
		return nil, err
	}
	loop.Watch(&corev1.Namespace{}, func(_, current client.Object) {
		if current != nil && current.GetDeletionTimestamp() != nil {
			loop.Add(controller.KeyOf(current))
		}
	})
	nc.loop = loop
	return nc, nil
}

// Run reconciles until ctx ends.
func (nc *Controller) Run(ctx context.Context) error { return nc.loop.Run(ctx, nc.informers) }

// Stats returns the counts of the controller's loop.
func (nc *Controller) Stats() controller.LoopStats { return nc.loop.Stats() }

func (nc *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var stored corev1.Namespace
	if err := nc.client.Get(ctx, key, &stored); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if stored.DeletionTimestamp == nil || !slices.Contains(stored.Spec.Finalizers, corev1.FinalizerKubernetes) {
		return 0, nil
	}
	left := nc.empty(ctx, stored.Name)
	ns := stored.DeepCopy()
	changed := setConditions(&ns.Status, conditionsFor(left, time.Now()))
	if ns.Status.Phase != corev1.NamespaceTerminating {
		ns.Status.Phase = corev1.NamespaceTerminating
		changed = true
	}
	if changed {
		if err := nc.client.Status().Update(ctx, ns); err != nil {
			return 0, client.IgnoreNotFound(fmt.Errorf("updating the status: %w", err))
		}
	}
	if !left.empty() {
		return pause(time.Since(stored.DeletionTimestamp.Time)), nil
	}
	ns.Spec.Finalizers = slices.DeleteFunc(ns.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
	if err := nc.client.SubResource("finalize").Update(ctx, ns); err != nil {
		return 0, client.IgnoreNotFound(fmt.Errorf("finalizing: %w", err))
	}
	return 0, nil
}

// pause is how long to wait before looking again: what goes quickly is seen quickly, and
// what waits for a finalizer is not asked for all the time.
func pause(since time.Duration) time.Duration {
	return min(max(since/8, 50*time.Millisecond), 5*time.Second)
}

// empty deletes what is in a namespace and tells what remains.
func (nc *Controller) empty(ctx context.Context, name string) *remains {
	left := &remains{resources: map[string]int{}, finalizers: map[string]int{}}
	kinds, err := nc.opts.Kinds()
	left.discovery = err
	pods := func(k controller.Kind) bool { return k.GVK.Group == "" && k.Resource == "pods" }
	for _, kind := range kinds {
		if pods(kind) {
			nc.emptyKind(ctx, name, kind, left)
		}
	}
	if len(left.resources) > 0 {
		return left
	}
	for _, kind := range kinds {
		if kind.Namespaced && !pods(kind) {
			nc.emptyKind(ctx, name, kind, left)
		}
	}
	return left
}

func (nc *Controller) emptyKind(ctx context.Context, name string, kind controller.Kind, left *remains) {
	resource := kind.Resource + "." + kind.GVK.Group
	failed := func(err error) { left.failures = append(left.failures, fmt.Sprintf("%s: %v", resource, err)) }
	items, err := nc.list(ctx, name, kind)
	if err != nil {
		failed(err)
		return
	}
	if len(items) == 0 {
		return
	}
	obj, err := controller.NewObject(nc.client.Scheme(), kind.GVK)
	if err != nil {
		failed(err)
		return
	}
	// In the background: dependents are in this namespace and go anyway.
	background := client.PropagationPolicy(metav1.DeletePropagationBackground)
	err = nc.client.DeleteAllOf(ctx, obj, client.InNamespace(name), background)
	if apierrors.IsMethodNotSupported(err) || apierrors.IsNotFound(err) {
		err = nc.deleteEach(ctx, kind, items, background)
	}
	if err != nil {
		failed(err)
	}
	items, err = nc.list(ctx, name, kind)
	if err != nil {
		failed(err)
		return
	}
	if len(items) > 0 {
		left.resources[resource] = len(items)
	}
	for _, item := range items {
		accessor, err := meta.Accessor(item)
		if err != nil {
			continue
		}
		for _, finalizer := range accessor.GetFinalizers() {
			left.finalizers[finalizer]++
		}
	}
}

func (nc *Controller) list(ctx context.Context, name string, kind controller.Kind) ([]runtime.Object, error) {
	list, err := controller.NewList(nc.client.Scheme(), kind.GVK)
	if err != nil {
		return nil, err
	}
	if err := nc.client.List(ctx, list, client.InNamespace(name)); err != nil {
		if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
			return nil, nil // the kind went meanwhile, or cannot be listed
		}
		return nil, fmt.Errorf("listing: %w", err)
	}
	items, err := meta.ExtractList(list)
	if err != nil {
		return nil, fmt.Errorf("reading a list: %w", err)
	}
	return items, nil
}

func (nc *Controller) deleteEach(ctx context.Context, kind controller.Kind, items []runtime.Object, policy client.DeleteOption) error {
	for _, item := range items {
		accessor, err := meta.Accessor(item)
		if err != nil {
			return fmt.Errorf("reading metadata: %w", err)
		}
		obj, err := controller.NewObject(nc.client.Scheme(), kind.GVK)
		if err != nil {
			return err
		}
		obj.SetNamespace(accessor.GetNamespace())
		obj.SetName(accessor.GetName())
		uid := accessor.GetUID()
		err = nc.client.Delete(ctx, obj, policy, client.Preconditions{UID: &uid})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && !apierrors.IsMethodNotSupported(err) {
			return fmt.Errorf("deleting %s: %w", accessor.GetName(), err)
		}
	}
	return nil
}
