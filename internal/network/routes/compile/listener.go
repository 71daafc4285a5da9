package compile

import (
	"crypto/tls"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/internal/network/gateway"
)

// Kinds of routes.
const (
	kindHTTPRoute = "HTTPRoute"
	kindGRPCRoute = "GRPCRoute"
)

// listener is one of a Gateway of ours, with what is wrong with it.
type listener struct {
	gateway  Key
	spec     *gatewayv1.Listener
	id       string // its name in the tables
	host     string
	kinds    []gatewayv1.RouteGroupKind
	managed  bool // Gantry gets its certificates
	certs    []string
	attached int32

	accepted, resolved, conflicted, programmed *problem
}

// usable reports whether routes can attach.
func (l *listener) usable() bool { return l.accepted == nil && l.conflicted == nil }

// serving reports whether it goes into the tables.
func (l *listener) serving() bool {
	return l.usable() && (l.resolved == nil || !l.tls() || len(l.certs) > 0 || l.managed)
}

func (l *listener) tls() bool { return l.spec.Protocol == gatewayv1.HTTPSProtocolType }

func (l *listener) protocol() string {
	if l.tls() {
		return gateway.ProtocolHTTPS
	}
	return gateway.ProtocolHTTP
}

// listeners compiles those of a Gateway, if it is of a class of ours.
func (c *compiler) listeners(key Key, gw *gatewayv1.Gateway) {
	class := c.in.Classes[Key{Name: string(gw.Spec.GatewayClassName)}]
	if class == nil || class.Spec.ControllerName != Controller || class.Spec.ParametersRef != nil {
		return
	}
	addresses, wrongAddress := c.gatewayAddresses(gw)
	var all []*listener
	for i := range gw.Spec.Listeners {
		spec := &gw.Spec.Listeners[i]
		l := &listener{gateway: key, spec: spec, id: key.String() + "/" + string(spec.Name), host: strings.ToLower(string(value(spec.Hostname, "")))}
		all = append(all, l)
		c.supported(l)
		if l.accepted == nil && l.tls() {
			c.listenerCertificates(l)
		}
	}
	conflicts(all)
	for _, l := range all {
		port := uint16(l.spec.Port) //nolint:gosec // validated by the API
		if l.usable() {
			if first, ok := c.ports[port]; ok && first != l.protocol() {
				l.accepted = problemf(gatewayv1.ListenerReasonPortUnavailable, "port %d is %s for an older Gateway or Ingress", port, strings.ToUpper(first))
			} else {
				c.ports[port] = l.protocol()
			}
		}
		if l.accepted == nil {
			if why := c.inTrouble(port); why != "" {
				l.programmed = problemf(gatewayv1.ListenerReasonInvalid, "%s", why)
			}
		}
		if !l.serving() || wrongAddress != nil {
			continue
		}
		c.managed = c.managed || l.managed
		c.out.Table.Listeners = append(c.out.Table.Listeners, gateway.Listener{Name: l.id, Port: port, Protocol: l.protocol(),
			Hostname: l.host, Certificates: l.certs, Addresses: addresses})
	}
	c.parents[key] = all
}

// supported checks protocol, TLS mode and kinds of a listener.
func (c *compiler) supported(l *listener) {
	switch l.spec.Protocol {
	case gatewayv1.HTTPProtocolType:
	case gatewayv1.HTTPSProtocolType:
		if t := l.spec.TLS; t != nil && value(t.Mode, gatewayv1.TLSModeTerminate) != gatewayv1.TLSModeTerminate {
			l.accepted = problemf(gatewayv1.ListenerReasonUnsupportedValue, "an HTTPS listener ends TLS: mode %s is not for it", *t.Mode)
		}
	default:
		l.kinds = []gatewayv1.RouteGroupKind{}
		l.accepted = problemf(gatewayv1.ListenerReasonUnsupportedProtocol, "protocol %s is not served: HTTP and HTTPS are", l.spec.Protocol)
		return
	}
	group := gatewayv1.Group(gatewayv1.GroupName)
	if l.spec.AllowedRoutes == nil || len(l.spec.AllowedRoutes.Kinds) == 0 {
		for _, kind := range []gatewayv1.Kind{kindHTTPRoute, kindGRPCRoute} {
			l.kinds = append(l.kinds, gatewayv1.RouteGroupKind{Group: &group, Kind: kind})
		}
		return
	}
	l.kinds = []gatewayv1.RouteGroupKind{}
	for _, k := range l.spec.AllowedRoutes.Kinds {
		if value(k.Group, group) == group && (k.Kind == kindHTTPRoute || k.Kind == kindGRPCRoute) {
			l.kinds = append(l.kinds, gatewayv1.RouteGroupKind{Group: &group, Kind: k.Kind})
			continue
		}
		l.resolved = problemf(gatewayv1.ListenerReasonInvalidRouteKinds, "routes of kind %s are not served", k.Kind)
	}
}

// listenerCertificates looks at the Secrets that an HTTPS listener refers to.
func (c *compiler) listenerCertificates(l *listener) {
	if l.spec.TLS == nil {
		l.resolved = problemf(gatewayv1.ListenerReasonInvalidCertificateRef, "an HTTPS listener needs a certificate")
		return
	}
	l.managed = l.spec.TLS.Options[OptionCertificate] == Auto && len(l.spec.TLS.CertificateRefs) == 0
	if !l.managed && len(l.spec.TLS.CertificateRefs) == 0 {
		l.resolved = problemf(gatewayv1.ListenerReasonInvalidCertificateRef, "the listener refers to no certificate; give certificateRefs, or the option %s: %s", OptionCertificate, Auto)
	}
	for _, ref := range l.spec.TLS.CertificateRefs {
		if value(ref.Group, "") != "" || value(ref.Kind, "Secret") != "Secret" {
			l.resolved = problemf(gatewayv1.ListenerReasonInvalidCertificateRef, "a certificate is in a Secret, not in a %s", value(ref.Kind, ""))
			continue
		}
		key := Key{Namespace: string(value(ref.Namespace, gatewayv1.Namespace(l.gateway.Namespace))), Name: string(ref.Name)}
		c.out.Secrets.Insert(key)
		if !c.in.granted("Gateway", l.gateway.Namespace, "Secret", key) {
			l.resolved = problemf(gatewayv1.ListenerReasonRefNotPermitted, "no ReferenceGrant in namespace %s lets a Gateway of namespace %s refer to Secret %s", key.Namespace, l.gateway.Namespace, key.Name)
			continue
		}
		if p := c.useSecret(key); p != nil {
			l.resolved = p
			continue
		}
		l.certs = append(l.certs, key.String())
	}
}

// useSecret puts a Secret's certificate into the table.
func (c *compiler) useSecret(key Key) *problem {
	c.out.Secrets.Insert(key)
	secret := c.in.Secrets[key]
	if secret == nil {
		return problemf(gatewayv1.ListenerReasonInvalidCertificateRef, "there is no Secret %s", key)
	}
	if err := checkPair(secret); err != nil {
		return problemf(gatewayv1.ListenerReasonInvalidCertificateRef, "Secret %s holds no certificate and key that belong together: %v", key, err)
	}
	c.out.Table.Certificates[key.String()] = certificateOf(secret)
	return nil
}

func checkPair(secret *corev1.Secret) error {
	_, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	return err
}

func certificateOf(secret *corev1.Secret) gateway.Certificate {
	return gateway.Certificate{Chain: secret.Data[corev1.TLSCertKey], Key: secret.Data[corev1.TLSPrivateKeyKey]}
}

// conflicts finds listeners of one Gateway that cannot be told apart.
func conflicts(all []*listener) {
	for i, a := range all {
		for _, b := range all[:i] {
			if a.spec.Port != b.spec.Port || a.accepted != nil || b.accepted != nil {
				continue
			}
			var p *problem
			switch {
			case a.spec.Protocol != b.spec.Protocol:
				p = problemf(gatewayv1.ListenerReasonProtocolConflict, "listeners %s and %s share port %d but not the protocol", b.spec.Name, a.spec.Name, a.spec.Port)
			case a.host == b.host:
				p = problemf(gatewayv1.ListenerReasonHostnameConflict, "listeners %s and %s share port %d and host %q", b.spec.Name, a.spec.Name, a.spec.Port, a.host)
			default:
				continue
			}
			a.conflicted, b.conflicted = p, p
		}
	}
}

// gatewayAddresses are those that a Gateway asks for; none is all.
func (c *compiler) gatewayAddresses(gw *gatewayv1.Gateway) ([]netip.Addr, *problem) {
	var out []netip.Addr
	for _, a := range gw.Spec.Addresses {
		if value(a.Type, gatewayv1.IPAddressType) != gatewayv1.IPAddressType {
			return nil, problemf(gatewayv1.GatewayReasonUnsupportedAddress, "addresses of type %s are not served", *a.Type)
		}
		if a.Value == "" {
			continue
		}
		addr, err := netip.ParseAddr(a.Value)
		if err != nil || !slices.Contains(c.out.Addresses, a.Value) {
			return nil, problemf(gatewayv1.GatewayReasonAddressNotUsable, "%s is no address of a node", a.Value)
		}
		out = append(out, addr)
	}
	return out, nil
}

// gatewayStatus sums the listeners up.
func (c *compiler) gatewayStatus(key Key) {
	gw, all := c.in.Gateways[key], c.parents[key]
	status := gatewayv1.GatewayStatus{Conditions: []metav1.Condition{}}
	ip := gatewayv1.IPAddressType
	_, wrongAddress := c.gatewayAddresses(gw)
	wanted := slices.DeleteFunc(slices.Clone(gw.Spec.Addresses), func(a gatewayv1.GatewaySpecAddress) bool { return a.Value == "" })
	for _, addr := range c.out.Addresses {
		if len(wanted) == 0 || slices.ContainsFunc(wanted, func(a gatewayv1.GatewaySpecAddress) bool { return a.Value == addr }) {
			status.Addresses = append(status.Addresses, gatewayv1.GatewayStatusAddress{Type: &ip, Value: addr})
		}
	}
	invalid, down := 0, 0
	var why string
	for _, l := range all {
		status.Listeners = append(status.Listeners, l.status())
		if !l.usable() || l.resolved != nil {
			invalid++
		}
		if !l.serving() || l.programmed != nil {
			down++
		}
		if l.programmed != nil {
			why = l.programmed.message
		}
	}
	accepted := condition(string(gatewayv1.GatewayConditionAccepted), nil, string(gatewayv1.GatewayReasonAccepted), "Gantry serves this Gateway.")
	programmed := condition(string(gatewayv1.GatewayConditionProgrammed), nil, string(gatewayv1.GatewayReasonProgrammed), "Every node serves this Gateway.")
	switch {
	case gw.Spec.Infrastructure != nil && gw.Spec.Infrastructure.ParametersRef != nil:
		const why = "this class of Gateways takes no parameters"
		accepted = condition(accepted.Type, problemf(gatewayv1.GatewayReasonInvalidParameters, why), "", "")
		programmed = condition(programmed.Type, problemf(gatewayv1.GatewayReasonInvalid, why), "", "")
	case wrongAddress != nil && wrongAddress.reason == string(gatewayv1.GatewayReasonUnsupportedAddress):
		accepted = condition(accepted.Type, wrongAddress, "", "")
		programmed = condition(programmed.Type, problemf(gatewayv1.GatewayReasonInvalid, "%s", wrongAddress.message), "", "")
	case wrongAddress != nil:
		programmed = condition(programmed.Type, wrongAddress, "", "")
	case invalid == len(all):
		accepted = condition(accepted.Type, problemf(gatewayv1.GatewayReasonListenersNotValid, "no listener is valid"), "", "")
		programmed = condition(programmed.Type, problemf(gatewayv1.GatewayReasonInvalid, "no listener is valid"), "", "")
	case invalid > 0:
		accepted.Reason, accepted.Message = string(gatewayv1.GatewayReasonListenersNotValid), "Some listeners are not valid; their status says why."
	}
	if programmed.Status == metav1.ConditionTrue {
		switch {
		case len(status.Addresses) == 0:
			programmed = condition(programmed.Type, problemf(gatewayv1.GatewayReasonAddressNotAssigned, "no node has an address yet"), "", "")
		case why != "":
			programmed = condition(programmed.Type, problemf(gatewayv1.GatewayReasonInvalid, "%s", why), "", "")
		case down == len(all):
			programmed = condition(programmed.Type, problemf(gatewayv1.GatewayReasonInvalid, "no listener is served; their status says why"), "", "")
		}
	}
	status.Conditions = append(status.Conditions, accepted, programmed)
	c.out.Gateways[key] = status
}

// status is what a listener's should be.
func (l *listener) status() gatewayv1.ListenerStatus {
	s := gatewayv1.ListenerStatus{Name: l.spec.Name, SupportedKinds: l.kinds, AttachedRoutes: l.attached}
	conflicted := metav1.Condition{Type: string(gatewayv1.ListenerConditionConflicted), Status: metav1.ConditionFalse, Reason: string(gatewayv1.ListenerReasonNoConflicts), Message: "No other listener is the same."}
	if l.conflicted != nil {
		conflicted.Status, conflicted.Reason, conflicted.Message = metav1.ConditionTrue, l.conflicted.reason, l.conflicted.message
	}
	accepted := l.accepted
	if accepted == nil {
		accepted = l.conflicted
	}
	programmed := l.programmed
	if programmed == nil && !l.serving() {
		programmed = problemf(gatewayv1.ListenerReasonInvalid, "the listener is not valid; its other conditions say why")
	}
	s.Conditions = []metav1.Condition{
		condition(string(gatewayv1.ListenerConditionAccepted), accepted, string(gatewayv1.ListenerReasonAccepted), "The listener is valid."),
		condition(string(gatewayv1.ListenerConditionProgrammed), programmed, string(gatewayv1.ListenerReasonProgrammed), "Every node listens."),
		condition(string(gatewayv1.ListenerConditionResolvedRefs), l.resolved, string(gatewayv1.ListenerReasonResolvedRefs), "All that it refers to is there."),
		conflicted,
	}
	return s
}

// allows reports whether a listener takes routes of a kind from a namespace.
func (c *compiler) allows(l *listener, kind, namespace string) bool {
	if !slices.ContainsFunc(l.kinds, func(k gatewayv1.RouteGroupKind) bool { return string(k.Kind) == kind }) {
		return false
	}
	from, selector := gatewayv1.NamespacesFromSame, (*metav1.LabelSelector)(nil)
	if a := l.spec.AllowedRoutes; a != nil && a.Namespaces != nil {
		from, selector = value(a.Namespaces.From, from), a.Namespaces.Selector
	}
	switch from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return namespace == l.gateway.Namespace
	case gatewayv1.NamespacesFromSelector:
		s, err := metav1.LabelSelectorAsSelector(selector)
		ns := c.in.Namespaces[Key{Name: namespace}]
		return err == nil && selector != nil && ns != nil && s.Matches(labels.Set(maps.Clone(ns.Labels)))
	}
	return false
}
