package aggregate

import (
	"context"
	"fmt"
	"net/url"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/util/proxy"
	listersv1 "k8s.io/client-go/listers/core/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// portOf is the port of a reference; 443 is its default.
func portOf(service *apiregistrationv1.ServiceReference) int32 {
	if service.Port == nil {
		return 443
	}
	return *service.Port
}

// resolve returns the address of one endpoint of a service, as upstream chooses it; for a service that is a name
// elsewhere, that name.
func resolve(ctx context.Context, reader client.Reader, ref *apiregistrationv1.ServiceReference) (*url.URL, error) {
	from := objects{ctx, reader}
	service, err := from.Services(ref.Namespace).Get(ref.Name)
	if err != nil {
		return nil, err
	}
	var location *url.URL
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		location, err = proxy.ResolveCluster(from, ref.Namespace, ref.Name, portOf(ref))
	} else {
		location, err = proxy.ResolveEndpoint(from, from, ref.Namespace, ref.Name, portOf(ref))
	}
	if err != nil {
		return nil, fmt.Errorf("finding an endpoint of service %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	return location, nil
}

// objects gives upstream's resolver our objects, as its listers would.
type objects struct {
	ctx    context.Context //nolint:containedctx // lives for one call; the listers' interface has none
	reader client.Reader
}

// List implements ServiceLister; nothing calls it.
func (o objects) List(labels.Selector) ([]*corev1.Service, error) { return nil, nil }

// Services implements ServiceLister.
func (o objects) Services(namespace string) listersv1.ServiceNamespaceLister {
	return namespaced{o, namespace}
}

// GetEndpointSlices implements proxy.EndpointSliceGetter.
func (o objects) GetEndpointSlices(namespace, service string) ([]*discoveryv1.EndpointSlice, error) {
	var list discoveryv1.EndpointSliceList
	err := o.reader.List(o.ctx, &list, client.InNamespace(namespace), client.MatchingLabels{discoveryv1.LabelServiceName: service})
	out := make([]*discoveryv1.EndpointSlice, len(list.Items))
	for i := range list.Items {
		out[i] = &list.Items[i]
	}
	return out, err
}

type namespaced struct {
	objects
	namespace string
}

// List implements ServiceNamespaceLister; nothing calls it.
func (n namespaced) List(labels.Selector) ([]*corev1.Service, error) { return nil, nil }

// Get implements ServiceNamespaceLister.
func (n namespaced) Get(name string) (*corev1.Service, error) {
	service := new(corev1.Service)
	if err := n.reader.Get(n.ctx, client.ObjectKey{Namespace: n.namespace, Name: name}, service); err != nil {
		return nil, err
	}
	return service, nil
}
