package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// Options tunes a Controller. The zero value suits production.
type Options struct {
	Workers int           // Services reconciled at once; default 4
	Batch   time.Duration // wait for more pod events before slices are written; default 5ms
	Log     *slog.Logger  // default: discard
}

// Controller keeps the EndpointSlices and Endpoints of all Services.
type Controller struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	opts      Options
	loop      *controller.Loop

	mu        sync.Mutex // guards the fields below
	selectors map[string]map[string]labels.Selector
	triggers  map[controller.Key]*trigger
}

// trigger remembers which changes a Service's endpoints show already.
type trigger struct{ pods map[string]time.Time }

// New checks opts and returns a controller that has started nothing; call Run.
func New(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*Controller, error) {
	opts.Batch = cmp.Or(opts.Batch, 5*time.Millisecond)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Batch < 0 {
		return nil, fmt.Errorf("service: Batch is %v, want at least 0", opts.Batch)
	}
	sc := &Controller{
		client: c, informers: informers, recorder: recorder, opts: opts,
		selectors: map[string]map[string]labels.Selector{}, triggers: map[controller.Key]*trigger{},
	}
	loop, err := controller.NewLoop(controller.LoopOptions{Name: "service", Workers: opts.Workers, Log: opts.Log, Reconcile: sc.reconcile})
	if err != nil {
		return nil, err
	}
	sc.loop = loop
	loop.Watch(&corev1.Service{}, sc.onService)
	loop.Watch(&corev1.Pod{}, sc.onPod)
	loop.Watch(&discoveryv1.EndpointSlice{}, sc.onSlice)
	loop.Watch(&corev1.Endpoints{}, func(old, current client.Object) {
		loop.Add(controller.KeyOf(either(old, current)))
	})
	loop.Watch(&corev1.Node{}, sc.onNode)
	return sc, nil
}

// Run reconciles until ctx ends.
func (sc *Controller) Run(ctx context.Context) error { return sc.loop.Run(ctx, sc.informers) }

// Stats returns the counts of the controller's loop.
func (sc *Controller) Stats() controller.LoopStats { return sc.loop.Stats() }

func either(old, current client.Object) client.Object {
	if current != nil {
		return current
	}
	return old
}

func (sc *Controller) onService(old, current client.Object) {
	obj := either(old, current)
	sc.mu.Lock()
	names := sc.selectors[obj.GetNamespace()]
	if svc, ok := current.(*corev1.Service); ok && svc.Spec.Selector != nil {
		if names == nil {
			names = map[string]labels.Selector{}
			sc.selectors[obj.GetNamespace()] = names
		}
		names[obj.GetName()] = labels.SelectorFromValidatedSet(svc.Spec.Selector)
	} else {
		delete(names, obj.GetName())
		if len(names) == 0 {
			delete(sc.selectors, obj.GetNamespace())
		}
	}
	sc.mu.Unlock()
	sc.loop.Add(controller.KeyOf(obj))
}

func (sc *Controller) onPod(old, current client.Object) {
	before, _ := old.(*corev1.Pod)
	after, _ := current.(*corev1.Pod)
	if before != nil && after != nil && samePod(before, after) {
		return
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	for name, selector := range sc.selectors[either(old, current).GetNamespace()] {
		if (before != nil && selector.Matches(labels.Set(before.Labels))) || (after != nil && selector.Matches(labels.Set(after.Labels))) {
			sc.loop.AddAfter(controller.Key{Namespace: either(old, current).GetNamespace(), Name: name}, sc.opts.Batch)
		}
	}
}

// samePod says whether two states of a pod are the same to a Service.
func samePod(a, b *corev1.Pod) bool {
	return maps.Equal(a.Labels, b.Labels) && a.UID == b.UID && controller.PodReady(a) == controller.PodReady(b) && published(a, true) == published(b, true) &&
		(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) && slices.Equal(a.Status.PodIPs, b.Status.PodIPs) &&
		a.Spec.NodeName == b.Spec.NodeName && a.Spec.Hostname == b.Spec.Hostname && a.Spec.Subdomain == b.Spec.Subdomain
}

func (sc *Controller) onSlice(old, current client.Object) {
	slice := either(old, current)
	if name := slice.GetLabels()[discoveryv1.LabelServiceName]; name != "" {
		sc.loop.AddAfter(controller.Key{Namespace: slice.GetNamespace(), Name: name}, sc.opts.Batch)
	}
	if old != nil && current != nil {
		if name := old.GetLabels()[discoveryv1.LabelServiceName]; name != "" && name != slice.GetLabels()[discoveryv1.LabelServiceName] {
			sc.loop.AddAfter(controller.Key{Namespace: old.GetNamespace(), Name: name}, sc.opts.Batch)
		}
	}
}

// onNode looks at all Services when a node appears or moves to another zone.
func (sc *Controller) onNode(old, current client.Object) {
	if current == nil || (old != nil && old.GetLabels()[corev1.LabelTopologyZone] == current.GetLabels()[corev1.LabelTopologyZone]) {
		return
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	for namespace, names := range sc.selectors {
		for name := range names {
			sc.loop.AddAfter(controller.Key{Namespace: namespace, Name: name}, sc.opts.Batch)
		}
	}
}

func (sc *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var svc corev1.Service
	err := sc.client.Get(ctx, key, &svc)
	if apierrors.IsNotFound(err) {
		return 0, sc.serviceGone(ctx, key)
	}
	if err != nil {
		return 0, fmt.Errorf("getting the service: %w", err)
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return 0, nil
	}
	if svc.Spec.Selector == nil {
		return 0, sc.mirror(ctx, &svc)
	}
	if svc.DeletionTimestamp != nil {
		return 0, nil // it waits for its finalizers; its slices go with it
	}
	var list corev1.PodList
	err = sc.client.List(ctx, &list, client.InNamespace(svc.Namespace),
		client.MatchingLabelsSelector{Selector: labels.SelectorFromValidatedSet(svc.Spec.Selector)})
	if err != nil {
		return 0, fmt.Errorf("listing pods: %w", err)
	}
	pods := make([]*corev1.Pod, len(list.Items))
	for i := range list.Items {
		pods[i] = &list.Items[i]
	}
	stamp, commit := sc.triggerTime(&svc, pods)
	err = errors.Join(sc.syncSlices(ctx, &svc, pods, stamp), sc.syncEndpoints(ctx, &svc, pods, stamp))
	if err == nil {
		commit()
	}
	return 0, err
}

// serviceGone deletes what only its Service kept. Slices have an owner reference and are
// left to the garbage collector, but for mirrored ones: their Endpoints may stay.
func (sc *Controller) serviceGone(ctx context.Context, key controller.Key) error {
	sc.mu.Lock()
	delete(sc.triggers, key)
	sc.mu.Unlock()
	mirrored, err := sc.slicesOf(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}, mirrorController)
	if err != nil {
		return err
	}
	if err := sc.applySlices(ctx, slicePlan{remove: mirrored}, ""); err != nil {
		return err
	}
	var endpoints corev1.Endpoints
	if err := sc.client.Get(ctx, key, &endpoints); err != nil {
		return client.IgnoreNotFound(err)
	}
	if endpoints.Labels[labelEndpointsManagedBy] != endpointsController {
		return nil
	}
	uid := endpoints.UID
	target := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	return client.IgnoreNotFound(sc.client.Delete(ctx, target, client.Preconditions{UID: &uid}))
}

// triggerTime is when the oldest change happened that the endpoints do not show yet, as
// an annotation's value; commit notes that they do.
func (sc *Controller) triggerTime(svc *corev1.Service, pods []*corev1.Pod) (stamp string, commit func()) {
	key := controller.KeyOf(svc)
	now := map[string]time.Time{}
	for _, pod := range pods {
		for i := range pod.Status.Conditions {
			if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady && !c.LastTransitionTime.IsZero() {
				now[pod.Name] = c.LastTransitionTime.Time
			}
		}
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	known := sc.triggers[key]
	var oldest time.Time
	if known == nil {
		oldest = svc.CreationTimestamp.Time
	} else {
		for name, at := range now {
			if at.After(known.pods[name]) && (oldest.IsZero() || at.Before(oldest)) {
				oldest = at
			}
		}
	}
	if !oldest.IsZero() {
		stamp = oldest.UTC().Format(time.RFC3339Nano)
	}
	return stamp, func() {
		sc.mu.Lock()
		defer sc.mu.Unlock()
		sc.triggers[key] = &trigger{pods: now}
	}
}

func (sc *Controller) slicesOf(ctx context.Context, svc *corev1.Service, manager string) ([]*discoveryv1.EndpointSlice, error) {
	var list discoveryv1.EndpointSliceList
	err := sc.client.List(ctx, &list, client.InNamespace(svc.Namespace),
		client.MatchingLabels{discoveryv1.LabelServiceName: svc.Name, discoveryv1.LabelManagedBy: manager})
	if err != nil {
		return nil, fmt.Errorf("listing endpoint slices: %w", err)
	}
	var found []*discoveryv1.EndpointSlice
	for i := range list.Items {
		if list.Items[i].DeletionTimestamp == nil {
			found = append(found, &list.Items[i])
		}
	}
	return found, nil
}

func (sc *Controller) syncSlices(ctx context.Context, svc *corev1.Service, pods []*corev1.Pod, stamp string) error {
	existing, err := sc.slicesOf(ctx, svc, sliceController)
	if err != nil {
		return err
	}
	groups, missing := endpointsOf(svc, pods, func(name string) (string, bool) {
		var node corev1.Node
		if err := sc.client.Get(ctx, types.NamespacedName{Name: name}, &node); err != nil {
			return "", false
		}
		return node.Labels[corev1.LabelTopologyZone], true
	})
	if len(missing) > 0 {
		sc.opts.Log.Debug("pods on unknown nodes are not published", "namespace", svc.Namespace, "name", svc.Name, "nodeName", missing[0])
	}
	owner := sliceOwner{
		namespace: svc.Namespace, name: svc.Name, labels: sliceLabels(svc), limit: maxPerSlice, placeholders: families(svc),
		reference: *metav1.NewControllerRef(svc, corev1.SchemeGroupVersion.WithKind("Service")),
	}
	err = sc.applySlices(ctx, planSlices(owner, existing, groups), stamp)
	if err != nil {
		sc.recorder.Event(svc, corev1.EventTypeWarning, "FailedToUpdateEndpointSlices",
			fmt.Sprintf("Error updating Endpoint Slices for Service %s/%s: %v", svc.Namespace, svc.Name, err))
	}
	return err
}

func (sc *Controller) applySlices(ctx context.Context, plan slicePlan, stamp string) error {
	for _, slice := range plan.create {
		if stamp != "" {
			slice.Annotations = maps.Clone(slice.Annotations)
			if slice.Annotations == nil {
				slice.Annotations = map[string]string{}
			}
			slice.Annotations[triggerLabel] = stamp
		}
		err := sc.client.Create(ctx, slice)
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("creating an endpoint slice: %w", err)
		}
	}
	for _, slice := range plan.update {
		slice.Annotations = maps.Clone(slice.Annotations)
		if slice.Annotations == nil {
			slice.Annotations = map[string]string{}
		}
		setOrDelete(slice.Annotations, triggerLabel, stamp)
		if err := sc.client.Update(ctx, slice); err != nil {
			return fmt.Errorf("updating endpoint slice %s: %w", slice.Name, err)
		}
	}
	for _, slice := range plan.remove {
		uid := slice.UID
		target := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: slice.Namespace, Name: slice.Name}}
		err := sc.client.Delete(ctx, target, client.Preconditions{UID: &uid})
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("deleting endpoint slice %s: %w", slice.Name, err)
		}
	}
	return nil
}

func (sc *Controller) syncEndpoints(ctx context.Context, svc *corev1.Service, pods []*corev1.Pod, stamp string) error {
	var current *corev1.Endpoints
	var stored corev1.Endpoints
	err := sc.client.Get(ctx, client.ObjectKeyFromObject(svc), &stored)
	switch {
	case err == nil:
		current = &stored
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("getting the endpoints: %w", err)
	}
	next := planEndpoints(svc, current, subsetsOf(svc, pods), stamp)
	if next == nil {
		return nil
	}
	reason, text := "FailedToCreateEndpoint", "Failed to create endpoint for service %s/%s: %v"
	if current == nil {
		err = sc.client.Create(ctx, next)
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil
		}
	} else {
		reason, text = "FailedToUpdateEndpoint", "Failed to update endpoint %s/%s: %v"
		err = sc.client.Update(ctx, next)
	}
	if err != nil && !apierrors.IsConflict(err) {
		sc.recorder.Event(next, corev1.EventTypeWarning, reason, fmt.Sprintf(text, svc.Namespace, svc.Name, err))
	}
	return err
}

// mirror publishes Endpoints made by hand for a Service without a selector as slices.
func (sc *Controller) mirror(ctx context.Context, svc *corev1.Service) error {
	existing, err := sc.slicesOf(ctx, svc, mirrorController)
	if err != nil {
		return err
	}
	var endpoints corev1.Endpoints
	err = sc.client.Get(ctx, client.ObjectKeyFromObject(svc), &endpoints)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("getting the endpoints: %w", err)
	}
	if err != nil || !mirrored(&endpoints) {
		return sc.applySlices(ctx, slicePlan{remove: existing}, "")
	}
	own := maps.Clone(endpoints.Labels)
	if own == nil {
		own = map[string]string{}
	}
	delete(own, corev1.IsHeadlessService)
	if headless(svc) {
		own[corev1.IsHeadlessService] = ""
	}
	own[discoveryv1.LabelServiceName], own[discoveryv1.LabelManagedBy] = svc.Name, mirrorController
	owner := sliceOwner{
		namespace: svc.Namespace, name: svc.Name, labels: own, limit: maxMirrored,
		reference: *metav1.NewControllerRef(&endpoints, corev1.SchemeGroupVersion.WithKind("Endpoints")),
	}
	groups, skipped := mirrorGroups(&endpoints)
	if skipped > 0 {
		sc.recorder.Event(&endpoints, corev1.EventTypeWarning, "TooManyAddressesToMirror",
			fmt.Sprintf("A max of %d addresses can be mirrored to EndpointSlices per Endpoints subset. %d addresses were skipped", maxMirrored, skipped))
	}
	plan := planSlices(owner, existing, groups)
	for _, slice := range plan.create {
		if slice.Ports == nil {
			slice.Ports = []discoveryv1.EndpointPort{}
		}
	}
	plan.annotate(existing, mirroredAnnotations(&endpoints))
	return sc.applySlices(ctx, plan, endpoints.Annotations[corev1.EndpointsLastChangeTriggerTime])
}

// mirrored says whether Endpoints want to be mirrored: those that a controller keeps,
// leader election's, and those that say so do not.
func mirrored(endpoints *corev1.Endpoints) bool {
	if endpoints.Labels[discoveryv1.LabelSkipMirror] == "true" || endpoints.Labels[labelEndpointsManagedBy] == endpointsController {
		return false
	}
	_, leader := endpoints.Annotations["control-plane.alpha.kubernetes.io/leader"]
	return !leader
}
