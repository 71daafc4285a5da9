package scheduler

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/informer"
)

// selectorSubscriptions are the kinds whose selectors say which pods are of one kind, for
// the default spread constraints.
func (s *Scheduler) selectorSubscriptions() []informer.Subscription {
	return []informer.Subscription{
		{Object: &corev1.Service{}, OnEvent: s.onService},
		{Object: &appsv1.ReplicaSet{}, OnEvent: s.onOwner},
		{Object: &appsv1.StatefulSet{}, OnEvent: s.onOwner},
		{Object: &corev1.ReplicationController{}, OnEvent: s.onOwner},
	}
}

func (s *Scheduler) onService(old, current client.Object) {
	if service, ok := current.(*corev1.Service); ok {
		before, known := old.(*corev1.Service)
		if known && before.UID == service.UID && mapsEqual(before.Spec.Selector, service.Spec.Selector) {
			return // most changes of a service are not about its selector
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		defer s.selectorsChanged(s.state.freed, PodTopologySpread)
		s.state.SetService(service.Namespace, service.Name, service.Spec.Selector)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.selectorsChanged(s.state.freed, PodTopologySpread)
	s.state.RemoveService(old.GetNamespace(), old.GetName())
}

// onOwner takes over a controller's selector, which does not change while it lives: its
// many changes of status cost nothing here.
func (s *Scheduler) onOwner(old, current client.Object) {
	if current == nil {
		apiVersion, kind, _ := ownerSelector(old)
		s.mu.Lock()
		defer s.mu.Unlock()
		defer s.selectorsChanged(s.state.freed, PodTopologySpread)
		s.state.RemoveOwner(apiVersion, kind, old.GetNamespace(), old.GetName())
		return
	}
	if old != nil && old.GetUID() == current.GetUID() && old.GetGeneration() == current.GetGeneration() {
		return
	}
	apiVersion, kind, selector := ownerSelector(current)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.selectorsChanged(s.state.freed, PodTopologySpread)
	s.state.SetOwner(apiVersion, kind, current.GetNamespace(), current.GetName(), selector)
}

func ownerSelector(obj client.Object) (apiVersion, kind string, selector *metav1.LabelSelector) {
	switch of := obj.(type) {
	case *appsv1.ReplicaSet:
		return "apps/v1", "ReplicaSet", of.Spec.Selector
	case *appsv1.StatefulSet:
		return "apps/v1", "StatefulSet", of.Spec.Selector
	case *corev1.ReplicationController:
		return "v1", "ReplicationController", &metav1.LabelSelector{MatchLabels: of.Spec.Selector}
	}
	return "", "", nil
}

// namespaceWatch follows the labels of namespaces once a term needs them.
type namespaceWatch struct{ stop func() }

// begin returns when the labels are known, or none are needed. A watch that is refused is
// tried again before the next pod.
func (w *namespaceWatch) begin(ctx context.Context, s *Scheduler) {
	if w.stop != nil {
		return
	}
	s.mu.Lock()
	needed := s.state.wantsNamespaces
	s.mu.Unlock()
	if !needed {
		return
	}
	stop, err := informer.Subscribe(ctx, s.informers, informer.Subscription{Object: &corev1.Namespace{}, OnEvent: s.onNamespace})
	if err != nil {
		if ctx.Err() == nil {
			s.opts.Log.Warn("namespaces are not watched; terms with a namespaceSelector match none", "error", err)
		}
		return
	}
	w.stop = stop
}

func (w *namespaceWatch) end() {
	if w.stop != nil {
		w.stop()
	}
}

// onNamespace takes over the labels of a namespace. Namespaces are watched from the first
// term on that selects some by their labels.
func (s *Scheduler) onNamespace(old, current client.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.selectorsChanged(s.state.freed, InterPodAffinity)
	if current != nil {
		s.state.SetNamespace(current.GetName(), current.GetLabels())
		return
	}
	s.state.RemoveNamespace(old.GetName())
}

// selectorsChanged has the pods retried that a plugin has rejected, if what has happened since freed was read
// may help any.
func (s *Scheduler) selectorsChanged(freed uint64, plugin Plugin) {
	if s.state.freed != freed {
		s.retryRejectedBy(PluginsOf(plugin), nil)
	}
}
