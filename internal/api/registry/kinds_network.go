package registry

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	coordinationv1alpha2 "k8s.io/api/coordination/v1alpha2"
	coordinationv1beta1 "k8s.io/api/coordination/v1beta1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	networkingv1beta1 "k8s.io/api/networking/v1beta1"
	"k8s.io/kubernetes/pkg/registry/coordination/lease"
	"k8s.io/kubernetes/pkg/registry/coordination/leasecandidate"
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
		define[coordinationv1beta1.LeaseCandidate](coordinationv1beta1.SchemeGroupVersion, "leasecandidates", leasecandidate.Strategy).
			selects(leaseCandidateFields).
			alsoServedAs(define[coordinationv1alpha2.LeaseCandidate](coordinationv1alpha2.SchemeGroupVersion, "leasecandidates", leasecandidate.Strategy)),
		define[discoveryv1.EndpointSlice](discoveryv1.SchemeGroupVersion, "endpointslices", endpointslice.Strategy),
		define[networkingv1.Ingress](networking, "ingresses", ingress.Strategy).short("ing").at("/registry/ingress/").
			withStatus(ingress.StatusStrategy),
		define[networkingv1.IngressClass](networking, "ingressclasses", ingressclass.Strategy),
		define[networkingv1.IPAddress](networking, "ipaddresses", ipaddress.Strategy).short("ip").
			alsoServedAs(define[networkingv1beta1.IPAddress](networkingv1beta1.SchemeGroupVersion, "ipaddresses", ipaddress.Strategy)),
		define[networkingv1.NetworkPolicy](networking, "networkpolicies", networkpolicy.Strategy).short("netpol"),
		define[networkingv1.ServiceCIDR](networking, "servicecidrs", servicecidr.Strategy).
			withStatus(servicecidr.StatusStrategy).
			alsoServedAs(define[networkingv1beta1.ServiceCIDR](networkingv1beta1.SchemeGroupVersion, "servicecidrs", servicecidr.Strategy)),
	}
}
