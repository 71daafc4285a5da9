package view

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	clientcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	clientnodev1 "k8s.io/client-go/kubernetes/typed/node/v1"
	clientschedulingv1 "k8s.io/client-go/kubernetes/typed/scheduling/v1"
)

// Clientset is what upstream's plugins ask when a lister knows nothing, lest the lister be
// late. Ours never is, so the answers are the same. Only the calls that those plugins make
// are there.
func (v *View) Clientset() kubernetes.Interface { return clientset{view: v} }

// clientset covers the store with the few calls that admission needs; the embedded
// interfaces are nil.
type clientset struct {
	kubernetes.Interface
	view *View
}

// CoreV1 implements kubernetes.Interface.
func (c clientset) CoreV1() clientcorev1.CoreV1Interface { return coreClient{view: c.view} }

// NodeV1 implements kubernetes.Interface.
func (c clientset) NodeV1() clientnodev1.NodeV1Interface { return nodeClient{view: c.view} }

// SchedulingV1 implements kubernetes.Interface.
func (c clientset) SchedulingV1() clientschedulingv1.SchedulingV1Interface {
	return schedulingClient{view: c.view}
}

type coreClient struct {
	clientcorev1.CoreV1Interface
	view *View
}

// Namespaces implements clientcorev1.CoreV1Interface.
func (c coreClient) Namespaces() clientcorev1.NamespaceInterface {
	return namespaceClient{getter: getter[*corev1.Namespace]{c.view, corev1.SchemeGroupVersion.WithResource("namespaces"), ""}}
}

// ServiceAccounts implements clientcorev1.CoreV1Interface.
func (c coreClient) ServiceAccounts(namespace string) clientcorev1.ServiceAccountInterface {
	return accountClient{getter: getter[*corev1.ServiceAccount]{c.view, corev1.SchemeGroupVersion.WithResource("serviceaccounts"), namespace}}
}

// LimitRanges implements clientcorev1.CoreV1Interface.
func (c coreClient) LimitRanges(namespace string) clientcorev1.LimitRangeInterface {
	return limitRangeClient{view: c.view, namespace: namespace}
}

type nodeClient struct {
	clientnodev1.NodeV1Interface
	view *View
}

// RuntimeClasses implements clientnodev1.NodeV1Interface.
func (c nodeClient) RuntimeClasses() clientnodev1.RuntimeClassInterface {
	return runtimeClassClient{getter: getter[*nodev1.RuntimeClass]{c.view, nodev1.SchemeGroupVersion.WithResource("runtimeclasses"), ""}}
}

type schedulingClient struct {
	clientschedulingv1.SchedulingV1Interface
	view *View
}

// PriorityClasses implements clientschedulingv1.SchedulingV1Interface.
func (c schedulingClient) PriorityClasses() clientschedulingv1.PriorityClassInterface {
	return priorityClassClient{getter: getter[*schedulingv1.PriorityClass]{c.view, schedulingv1.SchemeGroupVersion.WithResource("priorityclasses"), ""}}
}

// getter reads objects of Go type T in a namespace.
type getter[T any] struct {
	view      *View
	resource  schema.GroupVersionResource
	namespace string
}

// read returns the object, shared and read-only.
func (g getter[T]) read(name string) (T, error) {
	item, exists, err := g.view.informer(g.resource).get(g.namespace, name)
	obj, ok := item.(T)
	if err == nil && (!exists || !ok) {
		err = apierrors.NewNotFound(g.resource.GroupResource(), name)
	}
	return obj, err
}

type namespaceClient struct {
	clientcorev1.NamespaceInterface
	getter[*corev1.Namespace]
}

// Get implements clientcorev1.NamespaceInterface.
func (c namespaceClient) Get(_ context.Context, name string, _ metav1.GetOptions) (*corev1.Namespace, error) {
	return c.read(name)
}

type accountClient struct {
	clientcorev1.ServiceAccountInterface
	getter[*corev1.ServiceAccount]
}

// Get implements clientcorev1.ServiceAccountInterface.
func (c accountClient) Get(_ context.Context, name string, _ metav1.GetOptions) (*corev1.ServiceAccount, error) {
	return c.read(name)
}

type runtimeClassClient struct {
	clientnodev1.RuntimeClassInterface
	getter[*nodev1.RuntimeClass]
}

// Get implements clientnodev1.RuntimeClassInterface.
func (c runtimeClassClient) Get(_ context.Context, name string, _ metav1.GetOptions) (*nodev1.RuntimeClass, error) {
	return c.read(name)
}

type priorityClassClient struct {
	clientschedulingv1.PriorityClassInterface
	getter[*schedulingv1.PriorityClass]
}

// Get implements clientschedulingv1.PriorityClassInterface.
func (c priorityClassClient) Get(_ context.Context, name string, _ metav1.GetOptions) (*schedulingv1.PriorityClass, error) {
	return c.read(name)
}

type limitRangeClient struct {
	clientcorev1.LimitRangeInterface
	view      *View
	namespace string
}

// List implements clientcorev1.LimitRangeInterface. Nothing is there when it is called: the
// lister, which is asked first, would have known.
func (c limitRangeClient) List(context.Context, metav1.ListOptions) (*corev1.LimitRangeList, error) {
	return &corev1.LimitRangeList{}, nil
}
