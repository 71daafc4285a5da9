package compile

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// problem is why something is not as a condition wants it.
type problem struct {
	reason  string
	message string
}

func problemf[R ~string](reason R, format string, args ...any) *problem {
	return &problem{string(reason), fmt.Sprintf(format, args...)}
}

// granted reports whether an object of a kind in a namespace may refer to another namespace's.
func (o *Objects) granted(fromKind, fromNamespace, toKind string, to Key) bool {
	if fromNamespace == to.Namespace {
		return true
	}
	for key, grant := range o.Grants {
		if key.Namespace != to.Namespace {
			continue
		}
		from := false
		for _, f := range grant.Spec.From {
			from = from || string(f.Group) == gatewayv1.GroupName && string(f.Kind) == fromKind && string(f.Namespace) == fromNamespace
		}
		if !from {
			continue
		}
		for _, t := range grant.Spec.To {
			if t.Group == "" && string(t.Kind) == toKind && (t.Name == nil || *t.Name == "" || string(*t.Name) == to.Name) {
				return true
			}
		}
	}
	return false
}

func value[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// backend finds what a route of a kind refers to and puts it into the table. It returns the
// service's id.
func (c *compiler) backend(kind, namespace string, ref *gatewayv1.BackendObjectReference) (string, *problem) {
	group, refKind := string(value(ref.Group, "")), string(value(ref.Kind, "Service"))
	if group != "" || refKind != "Service" {
		return "", problemf(gatewayv1.RouteReasonInvalidKind, "a backend may be a Service, not a %s", strings.TrimPrefix(group+"/"+refKind, "/"))
	}
	key := Key{Namespace: string(value(ref.Namespace, gatewayv1.Namespace(namespace))), Name: string(ref.Name)}
	if !c.in.granted(kind, namespace, "Service", key) {
		return "", problemf(gatewayv1.RouteReasonRefNotPermitted, "no ReferenceGrant in namespace %s lets a %s of namespace %s refer to Service %s", key.Namespace, kind, namespace, key.Name)
	}
	if ref.Port == nil {
		return "", problemf(gatewayv1.RouteReasonBackendNotFound, "the reference to Service %s names no port", key)
	}
	id, found := c.port(key, func(p *corev1.ServicePort) bool { return p.Port == *ref.Port }, kind == kindGRPCRoute)
	if found != nil {
		if found.reason == string(gatewayv1.RouteReasonBackendNotFound) && c.in.Services[key] != nil {
			found.message = fmt.Sprintf("Service %s has no port %d", key, *ref.Port)
		}
		return "", found
	}
	return id, nil
}

// port puts the first fitting port of a service into the table.
func (c *compiler) port(key Key, fits func(*corev1.ServicePort) bool, grpc bool) (string, *problem) {
	svc := c.in.Services[key]
	c.services.Insert(key)
	if svc == nil {
		return "", problemf(gatewayv1.RouteReasonBackendNotFound, "there is no Service %s", key)
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return "", problemf(gatewayv1.RouteReasonInvalidKind, "Service %s is of type ExternalName, to which nothing is sent", key)
	}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if !fits(p) {
			continue
		}
		protocol, ok := protocolOf(p)
		if !ok {
			return "", problemf(gatewayv1.RouteReasonUnsupportedProtocol, "port %d of Service %s does not speak HTTP", p.Port, key)
		}
		id := serviceID(key, p.Port)
		if grpc && protocol == "" {
			id, protocol = id+h2cSuffix, "h2c"
		}
		if _, there := c.out.Table.Services[id]; !there {
			c.out.Table.Services[id] = c.in.service(key, p, protocol)
		}
		return id, nil
	}
	return "", problemf(gatewayv1.RouteReasonBackendNotFound, "Service %s has no such port", key)
}

// hosts intersects the hosts of a listener, "" is all, with those of a route, none is all.
func hosts(listener string, route []gatewayv1.Hostname) (out []string, ok bool) {
	if len(route) == 0 {
		if listener == "" {
			return nil, true
		}
		return []string{listener}, true
	}
	seen := sets.New[string]()
	for _, r := range route {
		if host, ok := intersect(listener, strings.ToLower(string(r))); ok && !seen.Has(host) {
			seen.Insert(host)
			out = append(out, host)
		}
	}
	return out, len(out) > 0
}

// intersect returns the more specific of two hosts of which one includes the other.
func intersect(a, b string) (string, bool) {
	switch {
	case a == "" || a == b:
		return b, true
	case b == "":
		return a, true
	case includes(a, b):
		return b, true
	case includes(b, a):
		return a, true
	}
	return "", false
}

// includes reports whether a wildcard includes a host or a narrower wildcard.
func includes(wildcard, host string) bool {
	suffix, ok := strings.CutPrefix(wildcard, "*")
	if !ok {
		return false
	}
	return strings.HasSuffix(strings.TrimPrefix(host, "*"), suffix) && len(host) > len(suffix) && host != wildcard
}
