package gc

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/informer"
)

// Options tunes a Collector.
type Options struct {
	// Kinds returns the kinds that can be watched and deleted. Required. It is asked again
	// every Refresh, so that custom resources are collected too.
	Kinds func() []controller.Kind
	// Changed gives a channel that is closed when Kinds returns something else; nil: that is seen at the
	// next Refresh.
	Changed func() <-chan struct{}
	Refresh time.Duration // default 5s
	Workers int           // objects looked at once; default 8
	// Sync brings what the client reads up to every write that was acknowledged, by whichever server. It is called before
	// an owner is held to be gone. nil: the client is never behind.
	Sync func(context.Context) error
	Log  *slog.Logger // default: discard
}

// Collector is the garbage collector.
type Collector struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	opts      Options
	loop      *controller.Loop
	graph     *graph

	mu    sync.Mutex // guards kinds
	kinds map[schema.GroupKind]controller.Kind
}

// unknownRetry is when an object whose owner's kind is not served is looked at again.
const unknownRetry = 30 * time.Second

// New checks opts and returns a collector that has started nothing; call Run.
func New(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*Collector, error) {
	opts.Refresh = cmp.Or(opts.Refresh, 5*time.Second)
	opts.Workers = cmp.Or(opts.Workers, 8)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Kinds == nil || opts.Refresh < 0 {
		return nil, errors.New("gc: Options.Kinds is missing or Refresh is negative")
	}
	gc := &Collector{client: c, informers: informers, recorder: recorder, opts: opts, graph: newGraph(), kinds: map[schema.GroupKind]controller.Kind{}}
	loop, err := controller.NewLoop(controller.LoopOptions{Name: "gc", Workers: opts.Workers, Log: opts.Log, Reconcile: gc.reconcile})
	if err != nil {
		return nil, err
	}
	gc.loop = loop
	return gc, nil
}

// Stats returns the counts of the collector's loop.
func (gc *Collector) Stats() controller.LoopStats { return gc.loop.Stats() }

// Run collects until ctx ends.
func (gc *Collector) Run(ctx context.Context) error {
	var watching sync.WaitGroup
	defer watching.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watching.Go(func() { gc.watchKinds(ctx) })
	return gc.loop.Run(ctx, gc.informers)
}

// watchKinds keeps a handler on the informer of each kind that is served.
func (gc *Collector) watchKinds(ctx context.Context) {
	stops := map[schema.GroupVersionKind]func(){}
	defer func() {
		for _, stop := range stops {
			stop()
		}
	}()
	select {
	case <-gc.loop.Started(): // or what the first events ask for would be lost
	case <-ctx.Done():
		return
	}
	ticker := time.NewTicker(gc.opts.Refresh)
	defer ticker.Stop()
	for {
		var changed <-chan struct{}
		if gc.opts.Changed != nil {
			changed = gc.opts.Changed() // before the kinds are asked for: no change is missed
		}
		gc.refresh(ctx, stops)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-changed:
		}
	}
}

func (gc *Collector) refresh(ctx context.Context, stops map[schema.GroupVersionKind]func()) {
	served := map[schema.GroupKind]controller.Kind{}
	for _, kind := range gc.opts.Kinds() {
		if kind.GVK.Kind != "Event" { // events own nothing and are too many
			served[kind.GVK.GroupKind()] = kind
		}
	}
	gc.mu.Lock()
	gc.kinds = served
	gc.mu.Unlock()
	for gvk, stop := range stops {
		if served[gvk.GroupKind()].GVK != gvk {
			stop()
			delete(stops, gvk)
		}
	}
	for _, kind := range served {
		if stops[kind.GVK] != nil {
			continue
		}
		obj, err := controller.NewObject(gc.client.Scheme(), kind.GVK)
		if err != nil {
			gc.opts.Log.Warn("kind is not collected", "kind", kind.GVK.String(), "error", err)
			continue
		}
		stop, err := informer.Subscribe(ctx, gc.informers, informer.Subscription{Object: obj, OnEvent: gc.onEvent(kind.GVK)})
		if err != nil {
			if ctx.Err() == nil {
				gc.opts.Log.Warn("kind is not watched, trying again", "kind", kind.GVK.String(), "error", err)
			}
			continue
		}
		stops[kind.GVK] = stop
	}
}

func (gc *Collector) onEvent(gvk schema.GroupVersionKind) func(old, current client.Object) {
	return func(old, current client.Object) {
		if old != nil && (current == nil || current.GetUID() != old.GetUID()) {
			gc.look(gc.graph.forget(old.GetUID()))
		}
		if current != nil {
			gc.look(gc.graph.observe(gvk, current))
		}
	}
}

func (gc *Collector) look(uids []types.UID) {
	for _, uid := range uids {
		gc.loop.Add(controller.Key{Name: string(uid)})
	}
}

// get reads an object afresh. It returns nil if it is gone or has another UID now.
func (gc *Collector) get(ctx context.Context, gvk schema.GroupVersionKind, namespace, name string, uid types.UID) (client.Object, error) {
	obj, err := controller.NewObject(gc.client.Scheme(), gvk)
	if err != nil {
		return nil, err
	}
	err = gc.client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, obj)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("getting %s %s: %w", gvk.Kind, name, err)
	case obj.GetUID() != uid:
		return nil, nil
	}
	return obj, nil
}

// confirm reads once more an owner that seems to be gone: its dependents would be deleted for that. It returns what get does.
func (gc *Collector) confirm(ctx context.Context, gvk schema.GroupVersionKind, namespace, name string, uid types.UID) (client.Object, error) {
	if gc.opts.Sync != nil {
		if err := gc.opts.Sync(ctx); err != nil {
			return nil, fmt.Errorf("catching up before %s %s is held to be gone: %w", gvk.Kind, name, err)
		}
	}
	owner := &metav1.PartialObjectMetadata{}
	owner.SetGroupVersionKind(gvk)
	err := gc.client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, owner)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("getting %s %s: %w", gvk.Kind, name, err)
	case owner.GetUID() != uid:
		return nil, nil
	}
	return owner, nil
}

func (gc *Collector) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	it, dependents, ok := gc.graph.item(types.UID(key.Name))
	if !ok {
		return 0, nil
	}
	obj, err := gc.get(ctx, it.gvk, it.namespace, it.name, it.uid)
	if err != nil {
		return 0, err
	}
	if obj == nil {
		return 0, nil // its deletion event is on the way
	}
	switch {
	case waitsFor(obj, metav1.FinalizerOrphanDependents):
		return 0, gc.orphan(ctx, it, obj, dependents)
	case waitsFor(obj, metav1.FinalizerDeleteDependents):
		return 0, gc.foreground(ctx, obj, dependents)
	case obj.GetDeletionTimestamp() != nil:
		return 0, nil // it waits for others
	}
	states, err := gc.classify(ctx, it, obj)
	if err != nil {
		return 0, err
	}
	next, drop := decide(obj, states, dependents)
	if next == keep && slices.Contains(states, unreadable) {
		return unknownRetry, nil
	}
	return 0, gc.carryOut(ctx, it, obj, next, drop)
}

// orphan releases the dependents of an object, then lets it go.
func (gc *Collector) orphan(ctx context.Context, it item, obj client.Object, dependents []item) error {
	for _, dependent := range dependents {
		fresh, err := gc.get(ctx, dependent.gvk, dependent.namespace, dependent.name, dependent.uid)
		if err != nil {
			return err
		}
		if fresh == nil {
			continue
		}
		if err := gc.drop(ctx, fresh, []types.UID{it.uid}); err != nil {
			return fmt.Errorf("orphaning %s: %w", dependent.name, err)
		}
	}
	return gc.unfinalize(ctx, obj, metav1.FinalizerOrphanDependents)
}

// foreground lets an object go when no dependent blocks it, else makes them go.
func (gc *Collector) foreground(ctx context.Context, obj client.Object, dependents []item) error {
	block := blocking(obj.GetUID(), dependents)
	if len(block) == 0 {
		return gc.unfinalize(ctx, obj, metav1.FinalizerDeleteDependents)
	}
	for _, dependent := range block {
		if !dependent.foreground {
			gc.look([]types.UID{dependent.uid})
		}
	}
	return nil
}

// classify reads each owner of an object.
func (gc *Collector) classify(ctx context.Context, it item, obj client.Object) ([]ownerState, error) {
	var states []ownerState
	for _, ref := range obj.GetOwnerReferences() {
		state, err := gc.ownerState(ctx, it, obj, ref)
		if err != nil {
			return nil, err
		}
		states = append(states, state)
	}
	return states, nil
}

func (gc *Collector) ownerState(ctx context.Context, it item, obj client.Object, ref metav1.OwnerReference) (ownerState, error) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return unreadable, nil
	}
	gc.mu.Lock()
	kind, ok := gc.kinds[gv.WithKind(ref.Kind).GroupKind()]
	gc.mu.Unlock()
	namespace := ""
	switch {
	case !ok:
		return unreadable, nil
	case kind.Namespaced && it.namespace == "":
		gc.report(it, ref, "")
		return unreadable, nil // such a reference means nothing, and nothing is deleted for it
	case kind.Namespaced:
		namespace = it.namespace
	}
	owner, err := gc.get(ctx, kind.GVK, namespace, ref.Name, ref.UID)
	if owner == nil && err == nil {
		owner, err = gc.confirm(ctx, kind.GVK, namespace, ref.Name, ref.UID)
	}
	switch {
	case meta.IsNoMatchError(err):
		return unreadable, nil
	case err != nil:
		return unreadable, err
	case owner == nil:
		if it.fresh && kind.Namespaced {
			gc.reportElsewhere(ctx, it, kind, ref)
		}
		return dangling, nil
	case waitsFor(owner, metav1.FinalizerDeleteDependents):
		return waiting, nil
	}
	return solid, nil
}

// reportElsewhere tells when an owner that is missing is in another namespace: owners
// and dependents must share one. It looks only at objects that have just appeared.
func (gc *Collector) reportElsewhere(ctx context.Context, it item, kind controller.Kind, ref metav1.OwnerReference) {
	list, err := controller.NewList(gc.client.Scheme(), kind.GVK)
	if err != nil || gc.client.List(ctx, list) != nil {
		return // only an event would be lost
	}
	_ = meta.EachListItem(list, func(obj runtime.Object) error {
		accessor, err := meta.Accessor(obj)
		if err == nil && accessor.GetUID() == ref.UID {
			gc.report(it, ref, accessor.GetNamespace())
		}
		return nil
	})
}

func (gc *Collector) report(it item, ref metav1.OwnerReference, namespace string) {
	gc.recorder.Event(&corev1.ObjectReference{
		APIVersion: it.gvk.GroupVersion().String(), Kind: it.gvk.Kind, Namespace: it.namespace, Name: it.name, UID: it.uid,
	}, corev1.EventTypeWarning, "OwnerRefInvalidNamespace", fmt.Sprintf("ownerRef [%s/%s, namespace: %s, name: %s, uid: %s] does not exist in namespace %q",
		ref.APIVersion, ref.Kind, namespace, ref.Name, ref.UID, it.namespace))
}

func (gc *Collector) carryOut(ctx context.Context, it item, obj client.Object, next step, drop []types.UID) error {
	switch next {
	case dropReferences:
		return gc.drop(ctx, obj, drop)
	case deleteBackground:
		return gc.delete(ctx, obj, metav1.DeletePropagationBackground)
	case deleteOrphan:
		return gc.delete(ctx, obj, metav1.DeletePropagationOrphan)
	case deleteForeground:
		return gc.delete(ctx, obj, metav1.DeletePropagationForeground)
	case unblockThenForeground:
		refs := slices.Clone(obj.GetOwnerReferences())
		for i := range refs {
			no := false
			refs[i].BlockOwnerDeletion = &no
		}
		if err := gc.patch(ctx, obj, map[string]any{"ownerReferences": refs}); err != nil {
			return err
		}
		gc.loop.Add(controller.Key{Name: string(it.uid)})
		fresh, err := gc.get(ctx, it.gvk, it.namespace, it.name, it.uid)
		if err != nil || fresh == nil {
			return err
		}
		return gc.delete(ctx, fresh, metav1.DeletePropagationForeground)
	}
	return nil
}

// delete deletes the very state of an object that was decided on.
func (gc *Collector) delete(ctx context.Context, obj client.Object, policy metav1.DeletionPropagation) error {
	uid, version := obj.GetUID(), obj.GetResourceVersion()
	err := gc.client.Delete(ctx, obj, client.PropagationPolicy(policy), client.Preconditions{UID: &uid, ResourceVersion: &version})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("deleting %s: %w", obj.GetName(), err)
	}
	return nil
}

// drop removes owner references from an object.
func (gc *Collector) drop(ctx context.Context, obj client.Object, owners []types.UID) error {
	refs := slices.DeleteFunc(slices.Clone(obj.GetOwnerReferences()), func(ref metav1.OwnerReference) bool { return slices.Contains(owners, ref.UID) })
	if len(refs) == len(obj.GetOwnerReferences()) {
		return nil
	}
	return gc.patch(ctx, obj, map[string]any{"ownerReferences": refs})
}

func (gc *Collector) unfinalize(ctx context.Context, obj client.Object, finalizer string) error {
	left := slices.DeleteFunc(slices.Clone(obj.GetFinalizers()), func(f string) bool { return f == finalizer })
	return gc.patch(ctx, obj, map[string]any{"finalizers": left})
}

// patch changes metadata of the very state of an object that was decided on.
func (gc *Collector) patch(ctx context.Context, obj client.Object, metadata map[string]any) error {
	metadata["uid"], metadata["resourceVersion"] = obj.GetUID(), obj.GetResourceVersion()
	body, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return fmt.Errorf("encoding a patch: %w", err)
	}
	target := obj.DeepCopyObject().(client.Object)
	err = gc.client.Patch(ctx, target, client.RawPatch(types.MergePatchType, body))
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
