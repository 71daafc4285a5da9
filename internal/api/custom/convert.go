package custom

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/util/webhook"

	"gantry.dev/gantry/internal/api/registry"
)

// newConverters makes converters; webhooks at services are found by resolver.
func newConverters(resolver webhook.ServiceResolver) (converters, error) {
	factory, err := conversion.NewCRConverterFactory(resolver, webhook.NewDefaultAuthenticationInfoResolverWrapper(nil, nil, nil, nil))
	if err != nil {
		return nil, fmt.Errorf("preparing conversion webhooks: %w", err)
	}
	return func(crd *apiextensionsv1.CustomResourceDefinition) (runtime.ObjectConvertor, error) {
		if crd.Spec.Conversion == nil {
			crd = crd.DeepCopy()
			crd.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.NoneConverter}
		}
		safe, _, err := factory.NewConverter(crd)
		return safe, err
	}, nil
}

// clusterIPs finds a service by its cluster IP, as upstream does where the API server takes part in
// the service network. It implements webhook.ServiceResolver.
type clusterIPs struct{ registry *registry.Registry }

// ResolveEndpoint implements webhook.ServiceResolver.
func (c clusterIPs) ResolveEndpoint(namespace, name string, port int32) (*url.URL, error) {
	services := c.registry.Resource(corev1.SchemeGroupVersion.WithResource("services"))
	entry, err := services.Get(context.Background(), namespace, name, "0")
	if err != nil {
		return nil, err
	}
	svc, ok := entry.Object.(*corev1.Service)
	if !ok {
		return nil, fmt.Errorf("service %s/%s is a %T", namespace, name, entry.Object)
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return &url.URL{Scheme: "https", Host: net.JoinHostPort(svc.Spec.ExternalName, strconv.Itoa(int(port)))}, nil
	}
	if svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil, fmt.Errorf("service %s/%s has no cluster IP", namespace, name)
	}
	for _, p := range svc.Spec.Ports {
		if p.Port == port {
			return &url.URL{Scheme: "https", Host: net.JoinHostPort(svc.Spec.ClusterIP, strconv.Itoa(int(port)))}, nil
		}
	}
	return nil, fmt.Errorf("no service port %d found for service %q", port, name)
}
