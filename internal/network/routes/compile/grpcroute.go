package compile

import (
	"fmt"
	"regexp"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/internal/network/gateway"
)

// grpcRoute compiles one GRPCRoute: gRPC's methods are paths of HTTP/2.
func (c *compiler) grpcRoute(key Key, route *gatewayv1.GRPCRoute) {
	before := c.mark()
	var rules []gateway.Route
	var resolved, wrong *problem
	for i := range route.Spec.Rules {
		made, p, unresolved := c.grpcRule(key, &route.Spec.Rules[i], i)
		if unresolved != nil {
			resolved = unresolved
		}
		if p != nil {
			wrong = p
			continue
		}
		rules = append(rules, made...)
	}
	var partly *problem
	if wrong != nil && len(rules) > 0 {
		partly, wrong = problemf(gatewayv1.RouteReasonUnsupportedValue, "Dropped Rule: %s", wrong.message), nil
	}
	if err := checkRegexes(rules); err != nil {
		wrong = problemf(gatewayv1.RouteReasonUnsupportedValue, "%v", err)
	}
	status, places := c.attach(kindGRPCRoute, key, route.Spec.ParentRefs, route.Spec.Hostnames, wrong, resolved, partly)
	if len(status) > 0 {
		c.out.GRPCRoutes[key] = status
	}
	c.publish(kindGRPCRoute+"/"+key.String(), rules, places, route.CreationTimestamp.UnixNano(), route.Annotations)
	if len(places) == 0 {
		c.reset(before)
	}
}

func (c *compiler) grpcRule(key Key, rule *gatewayv1.GRPCRouteRule, index int) (out []gateway.Route, wrong, unresolved *problem) {
	base := gateway.Route{Name: fmt.Sprintf("rule %d", index)}
	if base.Filters, wrong, unresolved = c.grpcFilters(key.Namespace, rule.Filters); wrong != nil {
		return nil, wrong, unresolved
	}
	for _, ref := range rule.BackendRefs {
		b := gateway.Backend{Weight: int(value(ref.Weight, 1))}
		id, p := c.backend(kindGRPCRoute, key.Namespace, &ref.BackendObjectReference)
		if b.Service = id; p != nil {
			b.Status, unresolved = 500, p
		}
		filters, p, missing := c.grpcFilters(key.Namespace, ref.Filters)
		if p != nil {
			return nil, p, unresolved
		}
		if missing != nil {
			unresolved = missing
		}
		b.Filters = filters
		base.Backends = append(base.Backends, b)
	}
	if len(rule.Matches) == 0 {
		return []gateway.Route{base}, nil, unresolved
	}
	for i := range rule.Matches {
		out = append(out, grpcMatch(base, &rule.Matches[i]))
	}
	return out, nil, unresolved
}

func (c *compiler) grpcFilters(namespace string, in []gatewayv1.GRPCRouteFilter) ([]gateway.Filter, *problem, *problem) {
	same := make([]gatewayv1.HTTPRouteFilter, len(in))
	for i := range in {
		same[i] = gatewayv1.HTTPRouteFilter{Type: gatewayv1.HTTPRouteFilterType(in[i].Type), RequestHeaderModifier: in[i].RequestHeaderModifier,
			ResponseHeaderModifier: in[i].ResponseHeaderModifier, RequestMirror: in[i].RequestMirror, ExtensionRef: in[i].ExtensionRef}
	}
	return c.filters(kindGRPCRoute, namespace, same)
}

func grpcMatch(r gateway.Route, match *gatewayv1.GRPCRouteMatch) gateway.Route {
	if m := match.Method; m != nil {
		service, method := value(m.Service, ""), value(m.Method, "")
		switch {
		case value(m.Type, gatewayv1.GRPCMethodMatchExact) == gatewayv1.GRPCMethodMatchRegularExpression:
			r.Path = gateway.PathMatch{Type: gateway.PathRegex, Value: "/" + orAny(service) + "/" + orAny(method)}
		case service != "" && method != "":
			r.Path = gateway.PathMatch{Type: gateway.PathExact, Value: "/" + service + "/" + method}
		case service != "":
			r.Path = gateway.PathMatch{Type: gateway.PathPrefix, Value: "/" + service}
		case method != "":
			r.Path = gateway.PathMatch{Type: gateway.PathRegex, Value: "/[^/]+/" + regexp.QuoteMeta(method)}
		}
	}
	seen := map[string]bool{}
	for _, h := range match.Headers {
		if name := strings.ToLower(string(h.Name)); !seen[name] {
			seen[name] = true
			r.Headers = append(r.Headers, gateway.ValueMatch{Name: string(h.Name), Value: h.Value,
				Regex: value(h.Type, gatewayv1.GRPCHeaderMatchExact) == gatewayv1.GRPCHeaderMatchRegularExpression})
		}
	}
	return r
}

func orAny(expression string) string {
	if expression == "" {
		return "[^/]+"
	}
	return "(?:" + expression + ")"
}
