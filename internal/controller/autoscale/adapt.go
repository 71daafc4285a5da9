package autoscale

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	autoscalinglisters "k8s.io/client-go/listers/autoscaling/v2"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/scale"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// errUnused is the answer of what upstream's controller does not call.
func errUnused() error { return errors.New("autoscale: not supported") }

// handlers passes the events of autoscalers on to upstream's handler.
type handlers struct {
	toolscache.SharedIndexInformer // nil: upstream's controller calls only what is here

	to     atomic.Pointer[toolscache.ResourceEventHandler]
	synced atomic.Bool
}

// AddEventHandlerWithResyncPeriod implements SharedIndexInformer. Nothing is repeated: upstream's
// queue asks again by itself.
func (h *handlers) AddEventHandlerWithResyncPeriod(to toolscache.ResourceEventHandler, _ time.Duration) (toolscache.ResourceEventHandlerRegistration, error) {
	h.to.Store(&to)
	return nil, nil
}

// HasSynced implements SharedIndexInformer.
func (h *handlers) HasSynced() bool { return h.synced.Load() }

func (h *handlers) tell(old, current client.Object) {
	to := h.to.Load()
	switch {
	case to == nil:
	case current == nil:
		(*to).OnDelete(old)
	case old == nil:
		(*to).OnAdd(current, !h.synced.Load())
	default:
		(*to).OnUpdate(old, current)
	}
}

// ready is an informer of what is always up to date.
type ready struct{ toolscache.SharedIndexInformer }

// HasSynced implements SharedIndexInformer.
func (ready) HasSynced() bool { return true }

// view reads through the client for upstream's listers, which have no context.
type view struct {
	ctx       context.Context //nolint:containedctx // Run's own
	client    client.Client
	namespace string
}

// hpaView gives upstream's controller the autoscalers.
type hpaView struct {
	view
	events *handlers
}

// Informer implements HorizontalPodAutoscalerInformer.
func (v hpaView) Informer() toolscache.SharedIndexInformer { return v.events }

// Lister implements HorizontalPodAutoscalerInformer.
func (v hpaView) Lister() autoscalinglisters.HorizontalPodAutoscalerLister {
	return hpaLister{view: v.view}
}

type hpaLister struct {
	autoscalinglisters.HorizontalPodAutoscalerListerExpansion
	view
}

// HorizontalPodAutoscalers implements HorizontalPodAutoscalerLister.
func (l hpaLister) HorizontalPodAutoscalers(namespace string) autoscalinglisters.HorizontalPodAutoscalerNamespaceLister {
	l.namespace = namespace
	return hpaNamespaceLister{view: l.view}
}

// List implements HorizontalPodAutoscalerLister; nothing calls it.
func (hpaLister) List(labels.Selector) ([]*autoscalingv2.HorizontalPodAutoscaler, error) {
	return nil, errUnused()
}

type hpaNamespaceLister struct {
	autoscalinglisters.HorizontalPodAutoscalerNamespaceListerExpansion
	view
}

// Get implements HorizontalPodAutoscalerNamespaceLister.
func (l hpaNamespaceLister) Get(name string) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	obj := new(autoscalingv2.HorizontalPodAutoscaler)
	return obj, l.client.Get(l.ctx, client.ObjectKey{Namespace: l.namespace, Name: name}, obj)
}

// List implements HorizontalPodAutoscalerNamespaceLister; nothing calls it.
func (hpaNamespaceLister) List(labels.Selector) ([]*autoscalingv2.HorizontalPodAutoscaler, error) {
	return nil, errUnused()
}

// podView gives upstream's controller the pods.
type podView struct{ view }

// Informer implements PodInformer.
func (podView) Informer() toolscache.SharedIndexInformer { return ready{} }

// Lister implements PodInformer.
func (v podView) Lister() corelisters.PodLister { return podLister{view: v.view} }

type podLister struct {
	corelisters.PodListerExpansion
	view
}

// List implements PodLister and PodNamespaceLister. The pods are shared: read-only.
func (l podLister) List(selector labels.Selector) ([]*corev1.Pod, error) {
	var list corev1.PodList
	if err := l.client.List(l.ctx, &list, client.InNamespace(l.namespace), client.MatchingLabelsSelector{Selector: selector}); err != nil {
		return nil, err
	}
	pods := make([]*corev1.Pod, len(list.Items))
	for i := range list.Items {
		pods[i] = &list.Items[i]
	}
	return pods, nil
}

// Pods implements PodLister.
func (l podLister) Pods(namespace string) corelisters.PodNamespaceLister {
	l.namespace = namespace
	return l
}

// Get implements PodNamespaceLister; nothing calls it.
func (podLister) Get(string) (*corev1.Pod, error) { return nil, errUnused() }

// scales reads and writes the scale of whatever has one.
type scales struct{ client client.Client }

// Scales implements scale.ScalesGetter.
func (s scales) Scales(namespace string) scale.ScaleInterface { return scalesIn{s.client, namespace} }

type scalesIn struct {
	client    client.Client
	namespace string
}

// parent is an empty object of a resource with the name.
func (s scalesIn) parent(resource schema.GroupResource, name string) (client.Object, error) {
	kind, err := s.client.RESTMapper().KindFor(resource.WithVersion(""))
	if err != nil {
		return nil, err
	}
	obj, err := controller.NewObject(s.client.Scheme(), kind)
	if err != nil {
		return nil, err
	}
	obj.SetNamespace(s.namespace)
	obj.SetName(name)
	return obj, nil
}

// Get implements scale.ScaleInterface.
func (s scalesIn) Get(ctx context.Context, resource schema.GroupResource, name string, _ metav1.GetOptions) (*autoscalingv1.Scale, error) {
	parent, err := s.parent(resource, name)
	if err != nil {
		return nil, err
	}
	out := new(autoscalingv1.Scale)
	if err := s.client.SubResource("scale").Get(ctx, parent, out); err != nil {
		return nil, err
	}
	return out.DeepCopy(), nil // upstream's controller changes it
}

// Update implements scale.ScaleInterface.
func (s scalesIn) Update(ctx context.Context, resource schema.GroupResource, wanted *autoscalingv1.Scale, _ metav1.UpdateOptions) (*autoscalingv1.Scale, error) {
	parent, err := s.parent(resource, wanted.Name)
	if err != nil {
		return nil, err
	}
	out := wanted.DeepCopy()
	if err := s.client.SubResource("scale").Update(ctx, parent, client.WithSubResourceBody(out)); err != nil {
		return nil, err
	}
	return out, nil
}

// Patch implements scale.ScaleInterface; nothing calls it.
func (scalesIn) Patch(context.Context, schema.GroupVersionResource, string, types.PatchType, []byte, metav1.PatchOptions) (*autoscalingv1.Scale, error) {
	return nil, errUnused()
}
