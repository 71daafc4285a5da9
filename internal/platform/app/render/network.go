package render

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/api/v1alpha1"
)

// The Gateway that applications are reached by.
const (
	GatewayName      = "gantry"
	GatewayNamespace = "gantry-system"
)

// ServicePort is the port of the Services of processes.
const ServicePort = 80

// service leads to the pods of one track of a process.
func (in Input) service(name string, version *Version, track string) *corev1.Service {
	objectName := v1alpha1.ObjectName(in.App.Name, name)
	if track == TrackCanary {
		objectName = CanaryName(in.App.Name)
	}
	meta := in.meta(objectName, name)
	meta.Labels[v1alpha1.LabelTrack] = track
	if track == TrackStable && in.Hold != "" && !in.Stopped && in.scale(name, version).Min == 0 {
		meta.Annotations = map[string]string{v1alpha1.AnnotationHold: in.Hold}
	}
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: meta,
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, Selector: in.selector(name, track),
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: ServicePort, TargetPort: intstr.FromInt32(Port(version, name))}},
		},
	}
}

// routes lead requests to the web process.
func (in Input) routes() []client.Object {
	version := in.Processes[v1alpha1.WebProcess]
	if version == nil || Port(version, v1alpha1.WebProcess) == 0 || Processes(version.Content)[v1alpha1.WebProcess].Schedule != "" {
		return nil
	}
	switch in.Routing {
	case RouteGateway:
		out := []client.Object{in.webRoute()}
		if in.Listener != "" {
			out = append(out, in.listenerRoute())
		}
		for _, domain := range in.Redirects {
			out = append(out, in.redirect(domain))
		}
		return out
	case RouteIngress:
		return []client.Object{in.ingress()}
	}
	return nil
}

func gatewayRef(section string) []gatewayv1.ParentReference {
	out := gatewayv1.ParentReference{Name: GatewayName, Namespace: new(gatewayv1.Namespace(GatewayNamespace))}
	if section != "" {
		out.SectionName = new(gatewayv1.SectionName(section))
	}
	return []gatewayv1.ParentReference{out}
}

func (in Input) httpRoute(name, section string, hosts []string, rule gatewayv1.HTTPRouteRule) *gatewayv1.HTTPRoute {
	out := &gatewayv1.HTTPRoute{
		TypeMeta:   metav1.TypeMeta{APIVersion: gatewayv1.GroupVersion.String(), Kind: "HTTPRoute"},
		ObjectMeta: in.meta(name, v1alpha1.WebProcess),
		Spec: gatewayv1.HTTPRouteSpec{
			CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: gatewayRef(section)}, Rules: []gatewayv1.HTTPRouteRule{rule},
		},
	}
	for _, host := range hosts {
		out.Spec.Hostnames = append(out.Spec.Hostnames, gatewayv1.Hostname(host))
	}
	return out
}

// webRoute is the way in by host name.
func (in Input) webRoute() *gatewayv1.HTTPRoute {
	return in.httpRoute(v1alpha1.ObjectName(in.App.Name, v1alpha1.WebProcess), "", in.Hosts, in.toWeb())
}

// listenerRoute is the way in by an address and port of the application's own.
func (in Input) listenerRoute() *gatewayv1.HTTPRoute {
	return in.httpRoute(in.App.Name+"-address", in.Listener, nil, in.toWeb())
}

// toWeb divides requests between the serving release and a canary.
func (in Input) toWeb() gatewayv1.HTTPRouteRule {
	backend := func(name string, weight int32) gatewayv1.HTTPBackendRef {
		return gatewayv1.HTTPBackendRef{BackendRef: gatewayv1.BackendRef{
			BackendObjectReference: gatewayv1.BackendObjectReference{
				Group: new(gatewayv1.Group("")), Kind: new(gatewayv1.Kind("Service")), Name: gatewayv1.ObjectName(name), Port: new(gatewayv1.PortNumber(ServicePort)),
			},
			Weight: &weight,
		}}
	}
	weight := int32(0)
	if in.Canary != nil {
		weight = in.Canary.Weight
	}
	rule := gatewayv1.HTTPRouteRule{
		Matches:     []gatewayv1.HTTPRouteMatch{{Path: &gatewayv1.HTTPPathMatch{Type: new(gatewayv1.PathMatchPathPrefix), Value: new("/")}}},
		BackendRefs: []gatewayv1.HTTPBackendRef{backend(v1alpha1.ObjectName(in.App.Name, v1alpha1.WebProcess), 100-weight)},
	}
	if in.Canary != nil {
		rule.BackendRefs = append(rule.BackendRefs, backend(CanaryName(in.App.Name), weight))
	}
	return rule
}

// redirect leads a host name to another.
func (in Input) redirect(domain v1alpha1.Domain) *gatewayv1.HTTPRoute {
	sum := sha256.Sum256([]byte(domain.Name))
	return in.httpRoute(in.App.Name+"-redirect-"+hex.EncodeToString(sum[:4]), "", []string{domain.Name}, gatewayv1.HTTPRouteRule{
		Matches: []gatewayv1.HTTPRouteMatch{{Path: &gatewayv1.HTTPPathMatch{Type: new(gatewayv1.PathMatchPathPrefix), Value: new("/")}}},
		Filters: []gatewayv1.HTTPRouteFilter{{
			Type: gatewayv1.HTTPRouteFilterRequestRedirect,
			RequestRedirect: &gatewayv1.HTTPRequestRedirectFilter{
				Scheme: new("https"), Hostname: new(gatewayv1.PreciseHostname(domain.Redirect)), StatusCode: new(301),
			},
		}},
	})
}

// ingress is the way in where the cluster has no Gateway API. Redirected host names are served, too.
func (in Input) ingress() *networkingv1.Ingress {
	meta := in.meta(v1alpha1.ObjectName(in.App.Name, v1alpha1.WebProcess), v1alpha1.WebProcess)
	out := &networkingv1.Ingress{TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "Ingress"}, ObjectMeta: meta}
	if in.IngressClass != "" {
		out.Spec.IngressClassName = new(in.IngressClass)
	}
	hosts := in.Hosts
	for _, domain := range in.Redirects {
		hosts = append(hosts[:len(hosts):len(hosts)], domain.Name)
	}
	for _, host := range hosts {
		out.Spec.Rules = append(out.Spec.Rules, networkingv1.IngressRule{Host: host, IngressRuleValue: networkingv1.IngressRuleValue{
			HTTP: &networkingv1.HTTPIngressRuleValue{Paths: []networkingv1.HTTPIngressPath{{
				Path: "/", PathType: new(networkingv1.PathTypePrefix),
				Backend: networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{
					Name: v1alpha1.ObjectName(in.App.Name, v1alpha1.WebProcess), Port: networkingv1.ServiceBackendPort{Number: ServicePort},
				}},
			}}},
		}})
	}
	if public := slices.DeleteFunc(slices.Clone(hosts), IsLocal); in.Issuer != "" && len(public) > 0 {
		out.Annotations = map[string]string{AnnotationIssuer: in.Issuer}
		out.Spec.TLS = []networkingv1.IngressTLS{{Hosts: public, SecretName: out.Name + "-tls"}}
	}
	return out
}

// AnnotationIssuer on an Ingress asks cert-manager for a certificate.
const AnnotationIssuer = "cert-manager.io/cluster-issuer"

// IsLocal reports whether a host name leads to the machine that asks, so that nobody gives a certificate for it.
func IsLocal(host string) bool { return strings.HasSuffix(host, ".localhost") }
