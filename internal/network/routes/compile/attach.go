package compile

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// place is where a route is served: hosts at a listener.
type place struct {
	listener string
	hosts    []string
}

// attach joins a route to the listeners that its parents name. wrong is what all of its parents
// must know: nil if the route itself can be served.
func (c *compiler) attach(kind string, route Key, parents []gatewayv1.ParentReference, names []gatewayv1.Hostname, wrong, resolved, partly *problem) ([]gatewayv1.RouteParentStatus, []place) {
	var status []gatewayv1.RouteParentStatus
	var places []place
	for _, ref := range parents {
		if value(ref.Group, gatewayv1.GroupName) != gatewayv1.GroupName || value(ref.Kind, "Gateway") != "Gateway" {
			continue
		}
		key := Key{Namespace: string(value(ref.Namespace, gatewayv1.Namespace(route.Namespace))), Name: string(ref.Name)}
		all, ours := c.parents[key]
		if !ours {
			continue
		}
		found, p := c.join(all, kind, route, &ref, names)
		if p == nil {
			p = wrong
		}
		if p == nil {
			for _, f := range found {
				f.at.attached++
				places = append(places, f.place)
				c.need(f)
			}
		}
		s := gatewayv1.RouteParentStatus{ParentRef: ref, ControllerName: Controller, Conditions: []metav1.Condition{
			condition(string(gatewayv1.RouteConditionAccepted), p, string(gatewayv1.RouteReasonAccepted), "The route is served."),
			condition(string(gatewayv1.RouteConditionResolvedRefs), resolved, string(gatewayv1.RouteReasonResolvedRefs), "All that it refers to is there."),
		}}
		if partly != nil && p == nil {
			s.Conditions = append(s.Conditions, metav1.Condition{Type: string(gatewayv1.RouteConditionPartiallyInvalid),
				Status: metav1.ConditionTrue, Reason: partly.reason, Message: partly.message})
		}
		status = append(status, s)
	}
	return status, merge(places)
}

// joint is a listener that a route is joined to.
type joint struct {
	place
	at *listener
}

// need notes the hosts for which Gantry gets certificates.
func (c *compiler) need(j joint) {
	if !j.at.managed {
		return
	}
	for _, host := range j.hosts {
		if host != "localhost" { // every gateway has that
			c.hosts.Insert(host)
		}
	}
}

// join finds the listeners of a Gateway that take a route.
func (c *compiler) join(all []*listener, kind string, route Key, ref *gatewayv1.ParentReference, names []gatewayv1.Hostname) ([]joint, *problem) {
	var found []joint
	named, allowed := false, false
	for _, l := range all {
		if ref.SectionName != nil && *ref.SectionName != l.spec.Name || ref.Port != nil && *ref.Port != l.spec.Port {
			continue
		}
		named = true
		if !l.usable() || !c.allows(l, kind, route.Namespace) {
			continue
		}
		allowed = true
		if list, ok := hosts(l.host, names); ok {
			found = append(found, joint{place{l.id, list}, l})
		}
	}
	switch {
	case !named:
		return nil, problemf(gatewayv1.RouteReasonNoMatchingParent, "the Gateway has no such listener")
	case !allowed:
		return nil, problemf(gatewayv1.RouteReasonNotAllowedByListeners, "no listener takes a %s of namespace %s", kind, route.Namespace)
	case len(found) == 0:
		return nil, problemf(gatewayv1.RouteReasonNoMatchingListenerHostname, "no listener has a host in common with the route")
	}
	return found, nil
}

// merge makes one place of those that differ in nothing but the listener's name, which it joins
// by spaces, and forgets what comes twice.
func merge(places []place) []place {
	index := map[string]int{}
	seen := map[string]bool{}
	var out []place
	for _, p := range places {
		hosts := strings.Join(p.hosts, " ")
		if seen[p.listener+"|"+hosts] {
			continue
		}
		seen[p.listener+"|"+hosts] = true
		if i, ok := index[hosts]; ok {
			out[i].listener += " " + p.listener
			continue
		}
		index[hosts] = len(out)
		out = append(out, p)
	}
	return out
}
