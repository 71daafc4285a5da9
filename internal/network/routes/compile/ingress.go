package compile

import (
	"errors"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"gantry.dev/gantry/internal/network/gateway"
)

// annotationClass is how Ingresses named their class before there was a field for it.
const annotationClass = "kubernetes.io/ingress.class"

// annotationDefault marks the class of Ingresses that name none.
const annotationDefault = "ingressclass.kubernetes.io/is-default-class"

// ingresses compiles all that are ours.
func (c *compiler) ingresses() {
	for _, key := range sorted(c.in.Ingresses) {
		in := c.in.Ingresses[key]
		if !c.ours(in) {
			continue
		}
		c.out.Ingresses.Insert(key)
		c.ingress(key, in)
	}
	if len(c.out.Ingresses) == 0 {
		return
	}
	c.managed = true
	for _, l := range []gateway.Listener{
		{Name: IngressHTTP, Port: c.opts.HTTPPort, Protocol: gateway.ProtocolHTTP},
		{Name: IngressHTTPS, Port: c.opts.HTTPSPort, Protocol: gateway.ProtocolHTTPS},
	} {
		if first, taken := c.ports[l.Port]; l.Port != 0 && (!taken || first == l.Protocol) {
			c.ports[l.Port] = l.Protocol
			c.out.Table.Listeners = append(c.out.Table.Listeners, l)
			c.inTrouble(l.Port)
		}
	}
}

// ours reports whether an Ingress is of our class.
func (c *compiler) ours(in *networkingv1.Ingress) bool {
	name := value(in.Spec.IngressClassName, in.Annotations[annotationClass])
	if name != "" {
		class := c.in.IngressClasses[Key{Name: name}]
		return class != nil && class.Spec.Controller == IngressController
	}
	for _, class := range c.in.IngressClasses {
		if class.Spec.Controller == IngressController && class.Annotations[annotationDefault] == "true" {
			return true
		}
	}
	return false
}

func (c *compiler) ingress(key Key, in *networkingv1.Ingress) {
	var out []gateway.Route
	limited, limitErr := limits(in.Annotations)
	again, retryErr := retry(in.Annotations)
	if err := errors.Join(limitErr, retryErr); err != nil {
		c.out.Wrong = append(c.out.Wrong, "Ingress/"+key.String()+": "+err.Error())
	}
	add := func(r gateway.Route) {
		r.Limits, r.Retry = limited, again
		r.Created, r.Index = in.CreationTimestamp.UnixNano(), len(out)
		r.NoAccessLog = in.Annotations[AnnotationAccessLog] == "off"
		if in.Annotations[AnnotationRedirect] == "https" {
			r.Listeners = []string{IngressHTTPS}
			out = append(out, r)
			r.Listeners, r.Backends, r.Index = []string{IngressHTTP}, nil, len(out)
			to := &gateway.Redirect{Scheme: "https", Status: 308}
			if c.opts.HTTPSPort != 443 {
				to.Port = c.opts.HTTPSPort
			}
			r.Filters = []gateway.Filter{{Redirect: to}}
			out = append(out, r)
			return
		}
		r.Listeners = []string{IngressHTTP, IngressHTTPS}
		out = append(out, r)
	}
	for _, rule := range in.Spec.Rules {
		if rule.HTTP == nil {
			continue
		}
		for i := range rule.HTTP.Paths {
			p := &rule.HTTP.Paths[i]
			r := gateway.Route{Name: rule.Host + p.Path, Backends: c.ingressBackend(key.Namespace, &p.Backend)}
			if rule.Host != "" {
				r.Hosts = []string{strings.ToLower(rule.Host)}
			}
			if value(p.PathType, networkingv1.PathTypeImplementationSpecific) == networkingv1.PathTypeExact {
				r.Path = gateway.PathMatch{Type: gateway.PathExact, Value: p.Path}
			} else {
				r.Path = prefix(p.Path)
			}
			add(r)
		}
	}
	if in.Spec.DefaultBackend != nil {
		add(gateway.Route{Name: "default backend", Fallback: true, Backends: c.ingressBackend(key.Namespace, in.Spec.DefaultBackend)})
	}
	if len(out) > 0 {
		c.out.Table.Routes["Ingress/"+key.String()] = out
	}
	for _, t := range in.Spec.TLS {
		c.ingressTLS(key, in, &t)
	}
}

// ingressTLS takes the Secret that is named. Without one, or with one that is empty where the
// Ingress asks for it, Gantry gets certificates for the hosts.
func (c *compiler) ingressTLS(key Key, in *networkingv1.Ingress, t *networkingv1.IngressTLS) {
	if t.SecretName != "" && c.useSecret(Key{Namespace: key.Namespace, Name: t.SecretName}) == nil {
		return
	}
	if t.SecretName != "" && in.Annotations[OptionCertificate] != Auto {
		return
	}
	names := t.Hosts
	if len(names) == 0 {
		for _, rule := range in.Spec.Rules {
			names = append(names, rule.Host)
		}
	}
	for _, host := range names {
		if host != "" && host != "localhost" {
			c.hosts.Insert(strings.ToLower(host))
		}
	}
}

// ingressBackend finds a Service's port by number or name. What is not there answers 503, as most
// Ingress controllers do.
func (c *compiler) ingressBackend(namespace string, b *networkingv1.IngressBackend) []gateway.Backend {
	missing := []gateway.Backend{{Weight: 1, Status: 503}}
	if b.Service == nil {
		return missing
	}
	id, p := c.port(Key{Namespace: namespace, Name: b.Service.Name}, func(p *corev1.ServicePort) bool {
		if b.Service.Port.Name != "" {
			return p.Name == b.Service.Port.Name
		}
		return p.Port == b.Service.Port.Number
	}, false)
	if p != nil {
		return missing
	}
	return []gateway.Backend{{Service: id, Weight: 1}}
}
