package compile

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/internal/network/gateway"
)

// httpRoute compiles one HTTPRoute.
func (c *compiler) httpRoute(key Key, route *gatewayv1.HTTPRoute) {
	before := c.mark()
	var rules []gateway.Route
	var dropped []string
	var resolved, wrong, partly *problem
	for i := range route.Spec.Rules {
		made, p, unresolved := c.httpRule(key, &route.Spec.Rules[i], i)
		if unresolved != nil && resolved == nil {
			resolved = unresolved
		}
		if p != nil {
			wrong = p
			dropped = append(dropped, fmt.Sprintf("rule %d: %s", i, p.message))
			continue
		}
		rules = append(rules, made...)
	}
	switch {
	case len(dropped) == 0:
	case len(rules) > 0:
		partly = problemf(gatewayv1.RouteReasonUnsupportedValue, "Dropped Rule: %s", strings.Join(dropped, "; "))
		wrong = nil
	default:
		wrong.message = strings.Join(dropped, "; ")
	}
	if err := checkRegexes(rules); err != nil {
		wrong = problemf(gatewayv1.RouteReasonUnsupportedValue, "%v", err)
	}
	status, places := c.attach(kindHTTPRoute, key, route.Spec.ParentRefs, route.Spec.Hostnames, wrong, resolved, partly)
	if len(status) > 0 {
		c.out.HTTPRoutes[key] = status
	}
	c.publish(kindHTTPRoute+"/"+key.String(), rules, places, route.CreationTimestamp.UnixNano(), route.Annotations)
	if len(places) == 0 {
		c.reset(before)
	}
}

// mark and reset forget services of a route that is served nowhere.
func (c *compiler) mark() map[string]bool {
	there := make(map[string]bool, len(c.out.Table.Services))
	for id := range c.out.Table.Services {
		there[id] = true
	}
	return there
}

func (c *compiler) reset(before map[string]bool) {
	for id := range c.out.Table.Services {
		if !before[id] {
			delete(c.out.Table.Services, id)
		}
	}
}

// publish puts rules into the table, once for each place.
func (c *compiler) publish(owner string, rules []gateway.Route, places []place, created int64, annotations map[string]string) {
	var out []gateway.Route
	limited, limitErr := limits(annotations)
	again, retryErr := retry(annotations)
	if err := errors.Join(limitErr, retryErr); err != nil && len(places) > 0 {
		c.out.Wrong = append(c.out.Wrong, owner+": "+err.Error())
	}
	for _, p := range places {
		for _, r := range rules {
			r.Limits = limited
			if r.Retry == nil {
				r.Retry = again
			}
			r.Listeners, r.Hosts = strings.Split(p.listener, " "), p.hosts
			r.Created, r.Index = created, len(out)
			r.NoAccessLog = annotations[AnnotationAccessLog] == "off"
			out = append(out, r)
		}
	}
	if len(out) > 0 {
		c.out.Table.Routes[owner] = out
	}
}

// httpRule compiles a rule into one route for each of its matches.
func (c *compiler) httpRule(key Key, rule *gatewayv1.HTTPRouteRule, index int) (out []gateway.Route, wrong, unresolved *problem) {
	base := gateway.Route{Name: fmt.Sprintf("rule %d", index)}
	if rule.Name != nil {
		base.Name = string(*rule.Name)
	}
	if base.Filters, wrong, unresolved = c.filters(kindHTTPRoute, key.Namespace, rule.Filters); wrong != nil {
		return nil, wrong, unresolved
	}
	if rule.SessionPersistence != nil {
		return nil, problemf(gatewayv1.RouteReasonUnsupportedValue, "sessionPersistence is not served"), unresolved
	}
	for _, ref := range rule.BackendRefs {
		b := gateway.Backend{Weight: int(value(ref.Weight, 1))}
		id, p := c.backend(kindHTTPRoute, key.Namespace, &ref.BackendObjectReference)
		if b.Service = id; p != nil {
			b.Status, unresolved = 500, p
		}
		filters, p, missing := c.filters(kindHTTPRoute, key.Namespace, ref.Filters)
		if p != nil {
			return nil, p, unresolved
		}
		if missing != nil {
			unresolved = missing
		}
		b.Filters = filters
		base.Backends = append(base.Backends, b)
	}
	if wrong = timeouts(&base, rule.Timeouts); wrong != nil {
		return nil, wrong, unresolved
	}
	if r := rule.Retry; r != nil {
		base.Retry = &gateway.Retry{Attempts: min(value(r.Attempts, 1), 10)}
		for _, code := range r.Codes {
			base.Retry.Codes = append(base.Retry.Codes, int(code))
		}
		if base.Retry.Backoff, wrong = duration(r.Backoff); wrong != nil {
			return nil, wrong, unresolved
		}
	}
	if len(rule.Matches) == 0 {
		return []gateway.Route{base}, nil, unresolved
	}
	for i := range rule.Matches {
		r, p := httpMatch(base, &rule.Matches[i])
		if p != nil {
			return nil, p, unresolved
		}
		out = append(out, r)
	}
	return out, nil, unresolved
}

// httpMatch adds a match to a route.
func httpMatch(r gateway.Route, match *gatewayv1.HTTPRouteMatch) (gateway.Route, *problem) {
	if p := match.Path; p != nil {
		r.Path.Value = value(p.Value, "/")
		switch value(p.Type, gatewayv1.PathMatchPathPrefix) {
		case gatewayv1.PathMatchExact:
			r.Path.Type = gateway.PathExact
		case gatewayv1.PathMatchPathPrefix:
			r.Path = prefix(r.Path.Value)
		case gatewayv1.PathMatchRegularExpression:
			r.Path.Type = gateway.PathRegex
		default:
			return r, problemf(gatewayv1.RouteReasonUnsupportedValue, "path match %s is not served", *p.Type)
		}
	}
	if match.Method != nil {
		r.Method = string(*match.Method)
	}
	r.Headers = make([]gateway.ValueMatch, 0, len(match.Headers))
	seen := map[string]bool{}
	for _, h := range match.Headers {
		name := strings.ToLower(string(h.Name))
		if seen[name] {
			continue // the first of a name counts, as its documentation says
		}
		seen[name] = true
		r.Headers = append(r.Headers, gateway.ValueMatch{Name: string(h.Name), Value: h.Value, Regex: value(h.Type, gatewayv1.HeaderMatchExact) == gatewayv1.HeaderMatchRegularExpression})
	}
	r.Query = make([]gateway.ValueMatch, 0, len(match.QueryParams))
	for _, q := range match.QueryParams {
		r.Query = append(r.Query, gateway.ValueMatch{Name: string(q.Name), Value: q.Value, Regex: value(q.Type, gatewayv1.QueryParamMatchExact) == gatewayv1.QueryParamMatchRegularExpression})
	}
	if len(r.Headers) == 0 {
		r.Headers = nil
	}
	if len(r.Query) == 0 {
		r.Query = nil
	}
	return r, nil
}

// prefix is a path match by elements. The prefix / is everything.
func prefix(path string) gateway.PathMatch {
	path = strings.TrimRight(path, "/")
	if path == "" {
		return gateway.PathMatch{}
	}
	return gateway.PathMatch{Type: gateway.PathPrefix, Value: path}
}

func timeouts(r *gateway.Route, t *gatewayv1.HTTPRouteTimeouts) (wrong *problem) {
	if t == nil {
		return nil
	}
	if r.RequestTimeout, wrong = duration(t.Request); wrong != nil {
		return wrong
	}
	r.BackendTimeout, wrong = duration(t.BackendRequest)
	return wrong
}

// duration reads a duration of the Gateway API (GEP-2257), which Go reads as well.
func duration(d *gatewayv1.Duration) (time.Duration, *problem) {
	if d == nil {
		return 0, nil
	}
	out, err := time.ParseDuration(string(*d))
	if err != nil || out < 0 {
		return 0, problemf(gatewayv1.RouteReasonUnsupportedValue, "%q is no duration", *d)
	}
	return out, nil
}

// checkRegexes compiles all regular expressions.
func checkRegexes(rules []gateway.Route) error {
	var texts []string
	for i := range rules {
		if rules[i].Path.Type == gateway.PathRegex {
			texts = append(texts, rules[i].Path.Value)
		}
		for _, m := range slices.Concat(rules[i].Headers, rules[i].Query) {
			if m.Regex {
				texts = append(texts, m.Value)
			}
		}
	}
	for _, text := range texts {
		if _, err := regexp.Compile(text); err != nil {
			return fmt.Errorf("%q is no regular expression (RE2): %w", text, err)
		}
	}
	return nil
}
