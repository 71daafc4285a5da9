package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/internal/network/routes/compile"
)

// writeStatus writes every status that is not as it should be.
func (c *Controller) writeStatus(ctx context.Context, r *compile.Result) error {
	c.mu.Lock()
	changes := slices.Concat(c.classChanges(r), c.gatewayChanges(r), c.httpRouteChanges(r), c.grpcRouteChanges(r), c.ingressChanges(r))
	c.mu.Unlock()
	var errs []error
	for _, next := range changes {
		if err := client.IgnoreNotFound(c.client.Status().Update(ctx, next)); err != nil {
			errs = append(errs, fmt.Errorf("writing the status of %T %s: %w", next, client.ObjectKeyFromObject(next), err))
		}
	}
	return errors.Join(errs...)
}

// merged are conditions as they should be: unchanged ones keep their time.
func merged(there, want []metav1.Condition, generation int64) []metav1.Condition {
	out := slices.Clone(there)
	for _, w := range want {
		w.ObservedGeneration = generation
		meta.SetStatusCondition(&out, w)
	}
	return slices.DeleteFunc(out, func(c metav1.Condition) bool {
		// Ours that no longer hold; conditions that others add stay.
		return c.Type == string(gatewayv1.RouteConditionPartiallyInvalid) && meta.FindStatusCondition(want, c.Type) == nil
	})
}

func (c *Controller) classChanges(r *compile.Result) (out []client.Object) {
	for key, want := range r.Classes {
		there := c.objects.Classes[key]
		if there == nil { // gone meanwhile
			continue
		}
		next := there.DeepCopy()
		next.Status.Conditions = merged(there.Status.Conditions, want, there.Generation)
		next.Status.SupportedFeatures = features()
		if !equality.Semantic.DeepEqual(there.Status, next.Status) {
			out = append(out, next)
		}
	}
	return out
}

// features are those that the conformance suite of the Gateway API knows by these names.
func features() []gatewayv1.SupportedFeature {
	var out []gatewayv1.SupportedFeature
	for _, name := range []gatewayv1.FeatureName{
		"GRPCRoute", "Gateway", "GatewayPort8080", "HTTPRoute", "HTTPRouteBackendProtocolH2C", "HTTPRouteBackendProtocolWebSocket",
		"HTTPRouteBackendRequestHeaderModification", "HTTPRouteBackendTimeout", "HTTPRouteHostRewrite", "HTTPRouteMethodMatching",
		"HTTPRouteParentRefPort", "HTTPRoutePathRedirect", "HTTPRoutePathRewrite", "HTTPRoutePortRedirect", "HTTPRouteQueryParamMatching",
		"HTTPRouteRequestMirror", "HTTPRouteRequestTimeout", "HTTPRouteResponseHeaderModification", "HTTPRouteSchemeRedirect", "ReferenceGrant",
	} {
		out = append(out, gatewayv1.SupportedFeature{Name: name})
	}
	return out
}

func (c *Controller) gatewayChanges(r *compile.Result) (out []client.Object) {
	for key, want := range r.Gateways {
		there := c.objects.Gateways[key]
		if there == nil { // gone meanwhile
			continue
		}
		next := there.DeepCopy()
		next.Status.Addresses = want.Addresses
		next.Status.Conditions = merged(there.Status.Conditions, want.Conditions, there.Generation)
		next.Status.Listeners = nil
		for _, l := range want.Listeners {
			i := slices.IndexFunc(there.Status.Listeners, func(s gatewayv1.ListenerStatus) bool { return s.Name == l.Name })
			var before []metav1.Condition
			if i >= 0 {
				before = there.Status.Listeners[i].Conditions
			}
			l.Conditions = merged(before, l.Conditions, there.Generation)
			next.Status.Listeners = append(next.Status.Listeners, l)
		}
		if !equality.Semantic.DeepEqual(there.Status, next.Status) {
			out = append(out, next)
		}
	}
	return out
}

// parents replaces our part of a route's status.
func parents(there, want []gatewayv1.RouteParentStatus, generation int64) []gatewayv1.RouteParentStatus {
	out := []gatewayv1.RouteParentStatus{}
	for _, s := range there {
		if s.ControllerName != compile.Controller {
			out = append(out, s)
		}
	}
	for _, w := range want {
		i := slices.IndexFunc(there, func(s gatewayv1.RouteParentStatus) bool {
			return s.ControllerName == compile.Controller && equality.Semantic.DeepEqual(s.ParentRef, w.ParentRef)
		})
		var before []metav1.Condition
		if i >= 0 {
			before = there[i].Conditions
		}
		w.Conditions = merged(before, w.Conditions, generation)
		out = append(out, w)
	}
	return out
}

func (c *Controller) httpRouteChanges(r *compile.Result) (out []client.Object) {
	for key, there := range c.objects.HTTPRoutes {
		want := parents(there.Status.Parents, r.HTTPRoutes[key], there.Generation)
		if !equality.Semantic.DeepEqual(there.Status.Parents, want) {
			next := there.DeepCopy()
			next.Status.Parents = want
			out = append(out, next)
		}
	}
	return out
}

func (c *Controller) grpcRouteChanges(r *compile.Result) (out []client.Object) {
	for key, there := range c.objects.GRPCRoutes {
		want := parents(there.Status.Parents, r.GRPCRoutes[key], there.Generation)
		if !equality.Semantic.DeepEqual(there.Status.Parents, want) {
			next := there.DeepCopy()
			next.Status.Parents = want
			out = append(out, next)
		}
	}
	return out
}

func (c *Controller) ingressChanges(r *compile.Result) (out []client.Object) {
	var want []networkingv1.IngressLoadBalancerIngress
	for _, addr := range r.Addresses {
		one := networkingv1.IngressLoadBalancerIngress{IP: addr}
		if _, err := netip.ParseAddr(addr); err != nil {
			one = networkingv1.IngressLoadBalancerIngress{Hostname: addr}
		}
		want = append(want, one)
	}
	for key := range r.Ingresses {
		there := c.objects.Ingresses[key]
		if there == nil { // gone meanwhile
			continue
		}
		if !equality.Semantic.DeepEqual(there.Status.LoadBalancer.Ingress, want) {
			next := there.DeepCopy()
			next.Status.LoadBalancer.Ingress = want
			out = append(out, next)
		}
	}
	return out
}
