package registry

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/kubernetes/pkg/registry/coordination/lease"
	"k8s.io/kubernetes/pkg/registry/discovery/endpointslice"
	"k8s.io/kubernetes/pkg/registry/networking/ingress"
	"k8s.io/kubernetes/pkg/registry/networking/ingressclass"
	"k8s.io/kubernetes/pkg/registry/networking/ipaddress"
	"k8s.io/kubernetes/pkg/registry/networking/networkpolicy"
	"k8s.io/kubernetes/pkg/registry/networking/servicecidr"
)

// networkKinds say how traffic finds pods, and who leads.
func networkKinds() []*definition {
	networking := networkingv1.SchemeGroupVersion
	return []*definition{
		define[coordinationv1.Lease](coordinationv1.SchemeGroupVersion, "leases", lease.Strategy),
		define[discoveryv1.EndpointSlice](discoveryv1.SchemeGroupVersion, "endpointslices", endpointslice.Strategy),
		define[networkingv1.Ingress](networking, "ingresses", ingress.Strategy).short("ing").at("/registry/ingress/").
			withStatus(ingress.StatusStrategy),
		define[networkingv1.IngressClass](networking, "ingressclasses", ingressclass.Strategy),
		define[networkingv1.IPAddress](networking, "ipaddresses", ipaddress.Strategy).short("ip"),
		define[networkingv1.NetworkPolicy](networking, "networkpolicies", networkpolicy.Strategy).short("netpol"),
		define[networkingv1.ServiceCIDR](networking, "servicecidrs", servicecidr.Strategy).
			withStatus(servicecidr.StatusStrategy),
	}
}
