package webhook

import (
	"net/url"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/apiserver/pkg/util/webhook"

	"gantry.dev/gantry/internal/api/admission/view"
)

// Services finds where the service of any webhook is called.
func Services(v *view.View) webhook.ServiceResolver { return resolver{v} }

// resolver finds where a service's webhook is called: at one of its endpoints, as with
// upstream's --enable-aggregator-routing, because a cluster IP need not be reachable from the
// server's own process.
type resolver struct{ view *view.View }

// ResolveEndpoint implements upstream's ServiceResolver.
func (r resolver) ResolveEndpoint(namespace, name string, port int32) (*url.URL, error) {
	return proxy.ResolveEndpoint(r.view.Informers().Core().V1().Services().Lister(), r, namespace, name, port)
}

// GetEndpointSlices implements upstream's EndpointSliceGetter.
func (r resolver) GetEndpointSlices(namespace, service string) ([]*discoveryv1.EndpointSlice, error) {
	selector := labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: service})
	return r.view.Informers().Discovery().V1().EndpointSlices().Lister().EndpointSlices(namespace).List(selector)
}
