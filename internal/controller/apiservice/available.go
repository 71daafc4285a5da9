package apiservice

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// behind is what is known of the service that an APIService names.
type behind struct {
	service    *corev1.Service
	serviceErr error
	slices     []discoveryv1.EndpointSlice
	slicesErr  error
}

// planAvailable returns the condition that can be told without asking the server; ok is true when only asking is
// left. The reasons and messages are upstream's (kube-aggregator, AvailableConditionController).
func planAvailable(ref *apiregistrationv1.ServiceReference, found *behind) (condition apiregistrationv1.APIServiceCondition, ok bool) {
	where := fmt.Sprintf("service/%s in %q", ref.Name, ref.Namespace)
	switch {
	case apierrors.IsNotFound(found.serviceErr):
		return notAvailable("ServiceNotFound", where+" is not present"), false
	case found.serviceErr != nil:
		return unknown("ServiceAccessError", fmt.Sprintf("%s cannot be checked due to: %v", where, found.serviceErr)), false
	case found.service.Spec.Type != corev1.ServiceTypeClusterIP:
		return condition, true
	}
	number := int32(443)
	if ref.Port != nil {
		number = *ref.Port
	}
	at := slices.IndexFunc(found.service.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == number })
	if at < 0 {
		return notAvailable("ServicePortError", fmt.Sprintf("%s is not listening on port %d", where, number)), false
	}
	port := found.service.Spec.Ports[at].Name
	switch {
	case found.slicesErr != nil:
		return unknown("EndpointsAccessError", fmt.Sprintf("%s cannot be checked due to: %v", where, found.slicesErr)), false
	case len(found.slices) == 0:
		return notAvailable("EndpointsNotFound", "cannot find endpointslices for "+where), false
	case !slices.ContainsFunc(found.slices, func(s discoveryv1.EndpointSlice) bool { return serves(&s, port) }):
		return notAvailable("MissingEndpoints", fmt.Sprintf("endpointslices for %s have no addresses with port name %q", where, port)), false
	}
	return condition, true
}

// serves reports whether slice has a ready endpoint and the named port.
func serves(slice *discoveryv1.EndpointSlice, port string) bool {
	return slices.ContainsFunc(slice.Endpoints, func(e discoveryv1.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready }) &&
		slices.ContainsFunc(slice.Ports, func(p discoveryv1.EndpointPort) bool { return p.Name != nil && *p.Name == port && p.Port != nil })
}

func condition(status apiregistrationv1.ConditionStatus, reason, message string) apiregistrationv1.APIServiceCondition {
	return apiregistrationv1.APIServiceCondition{Type: apiregistrationv1.Available, Status: status, Reason: reason, Message: message}
}

func notAvailable(reason, message string) apiregistrationv1.APIServiceCondition {
	return condition(apiregistrationv1.ConditionFalse, reason, message)
}

func unknown(reason, message string) apiregistrationv1.APIServiceCondition {
	return condition(apiregistrationv1.ConditionUnknown, reason, message)
}
