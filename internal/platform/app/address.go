package app

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/informer"
	"gantry.dev/gantry/internal/platform/app/render"
)

const (
	listenerHTTP  = "http"
	listenerHTTPS = "https"

	// annotationPort is on Apps that are reached by an address instead of a name: the port that is theirs.
	annotationPort = "gantry.dev/port"
	// annotationPublic on the platform's Gateway lists the addresses that were said with --public-address.
	annotationPublic = "gateway.gantry.dev/public-address"

	firstOwnPort = 8443
	lastOwnPort  = 8543

	lookupTimeout = 5 * time.Second
	recheckBad    = time.Minute
	recheckGood   = time.Hour
	domainsKept   = 1024
)

// platform is how the cluster is reached, as far as it matters for one application.
type platform struct {
	routing   string
	class     string // of Ingresses; empty is the cluster's default
	issuer    string // of their certificates; empty is none
	domain    string
	address   string   // by which the world reaches it, if that is said
	reached   []string // addresses that a domain may point to
	httpPort  int32
	httpsPort int32
	hosts     []string
	redirects []v1alpha1.Domain
	listener  string
	urls      []string
}

// readPlatform finds out how an application is reached.
func (c *Controller) readPlatform(ctx context.Context, app *v1alpha1.App) (platform, error) {
	p := platform{httpPort: 80, httpsPort: 443}
	var config corev1.ConfigMap
	err := c.client.Get(ctx, client.ObjectKey{Namespace: v1alpha1.PlatformNamespace, Name: v1alpha1.PlatformConfig}, &config)
	if client.IgnoreNotFound(err) != nil {
		return p, fmt.Errorf("reading the platform's configuration: %w", err)
	}
	p.domain = strings.Trim(strings.ToLower(config.Data[v1alpha1.PlatformKeyDomain]), ".* ")
	p.address = strings.TrimSpace(config.Data[v1alpha1.PlatformKeyAddress])
	gateway, err := c.gateway(ctx)
	if err != nil {
		return p, err
	}
	if gateway == nil {
		p.class, p.issuer = config.Data[v1alpha1.PlatformKeyIngressClass], config.Data[v1alpha1.PlatformKeyIssuer]
		if err := c.otherRouting(ctx, app, &p); err != nil {
			return p, err
		}
	} else {
		c.watchRoutes(ctx)
		p.useGateway(gateway)
		p.address = cmp.Or(p.address, publicAddress(gateway))
	}
	if p.address != "" && !slices.Contains(p.reached, p.address) {
		p.reached = append(p.reached, p.address)
	}
	if _, web := render.Processes(&app.Spec)[v1alpha1.WebProcess]; !web || p.routing == render.RouteNone {
		return p, nil
	}
	p.name(app)
	if gateway != nil && p.bare(app) {
		return p, c.ownListener(ctx, app, gateway, &p)
	}
	return p, nil
}

// gateway is the platform's Gateway, nil where there is none.
func (c *Controller) gateway(ctx context.Context) (*gatewayv1.Gateway, error) {
	kind := schema.GroupKind{Group: gatewayv1.GroupName, Kind: "HTTPRoute"}
	if _, err := c.client.RESTMapper().RESTMapping(kind, gatewayv1.GroupVersion.Version); err != nil {
		if meta.IsNoMatchError(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("asking whether there is a Gateway API: %w", err)
	}
	out := &gatewayv1.Gateway{}
	err := c.client.Get(ctx, client.ObjectKey{Namespace: render.GatewayNamespace, Name: render.GatewayName}, out)
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the platform's Gateway: %w", err)
	}
	return out, nil
}

// otherRouting is by Ingress, if somebody serves those.
func (c *Controller) otherRouting(ctx context.Context, app *v1alpha1.App, p *platform) error {
	var classes networkingv1.IngressClassList
	if err := c.client.List(ctx, &classes); err != nil {
		return fmt.Errorf("listing classes of Ingresses: %w", err)
	}
	if len(classes.Items) == 0 && p.class == "" {
		return nil // render.RouteNone
	}
	p.routing = render.RouteIngress
	if p.class == "" {
		p.class = classOf(classes.Items)
	}
	ingress := &networkingv1.Ingress{}
	err := c.client.Get(ctx, client.ObjectKey{Namespace: app.Namespace, Name: v1alpha1.ObjectName(app.Name, v1alpha1.WebProcess)}, ingress)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("reading the application's Ingress: %w", err)
	}
	for _, at := range ingress.Status.LoadBalancer.Ingress {
		if reached := cmp.Or(at.IP, at.Hostname); reached != "" {
			p.reached = append(p.reached, reached)
		}
	}
	return nil
}

// classOf is the class that has to be said: none where one is the default, else the first by name.
func classOf(classes []networkingv1.IngressClass) string {
	out := ""
	for i := range classes {
		if classes[i].Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" {
			return ""
		}
		if out == "" || classes[i].Name < out {
			out = classes[i].Name
		}
	}
	return out
}

// watchRoutes follows HTTPRoutes from when there are any.
func (c *Controller) watchRoutes(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.routed {
		return
	}
	_, err := informer.Listen(ctx, c.informers,
		informer.Subscription{Object: &gatewayv1.HTTPRoute{}, OnEvent: c.belongs},
		informer.Subscription{Object: &gatewayv1.Gateway{}, OnEvent: func(old, current client.Object) {
			if g, ok := current.(*gatewayv1.Gateway); ok && g.Name == render.GatewayName && reachedOtherwise(old, g) {
				c.lookAtAll()
			}
		}})
	if err != nil {
		c.opts.Log.Warn("following HTTPRoutes", "error", err)
		return
	}
	c.routed = true
}

// reachedOtherwise reports whether a Gateway's ports or addresses are not what they were.
func reachedOtherwise(old client.Object, current *gatewayv1.Gateway) bool {
	before, ok := old.(*gatewayv1.Gateway)
	return !ok || before == nil || before.Generation != current.Generation || publicAddress(before) != publicAddress(current)
}

// publicAddress is by which address the world reaches a Gateway: what somebody said, else the first one that is public.
func publicAddress(gateway *gatewayv1.Gateway) string {
	said, _, _ := strings.Cut(gateway.Annotations[annotationPublic], ",")
	if said != "" {
		return said
	}
	shared := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10) // between providers and their customers (RFC 6598)
	for _, at := range gateway.Status.Addresses {
		addr, err := netip.ParseAddr(at.Value)
		if err == nil && addr.IsGlobalUnicast() && !addr.IsPrivate() && !shared.Contains(addr) {
			return at.Value
		}
	}
	return ""
}

// useGateway takes ports and addresses from the Gateway.
func (p *platform) useGateway(gateway *gatewayv1.Gateway) {
	p.routing = render.RouteGateway
	for i := range gateway.Spec.Listeners {
		switch l := &gateway.Spec.Listeners[i]; string(l.Name) {
		case listenerHTTP:
			p.httpPort = l.Port
		case listenerHTTPS:
			p.httpsPort = l.Port
		}
	}
	for _, at := range gateway.Status.Addresses {
		p.reached = append(p.reached, at.Value)
	}
}

// name gives an application its host names and the addresses made of them, the best one first.
func (p *platform) name(app *v1alpha1.App) {
	label := app.Name
	if app.Namespace != metav1.NamespaceDefault {
		label += "-" + app.Namespace
	}
	for _, domain := range app.Spec.Domains {
		if domain.Redirect != "" {
			p.redirects = append(p.redirects, domain)
			continue
		}
		p.add(domain.Name, true)
	}
	if p.domain != "" {
		p.add(label+"."+p.domain, true)
	}
	local := label + ".localhost"
	p.hosts = append(p.hosts, local)
	if p.domain == "" {
		p.urls = append(p.urls, address("http", local, p.httpPort, 80))
	}
}

func (p *platform) add(host string, secure bool) {
	if slices.Contains(p.hosts, host) {
		return
	}
	p.hosts = append(p.hosts, host)
	if secure && (p.routing == render.RouteGateway || p.issuer != "") {
		p.urls = append(p.urls, address("https", host, p.httpsPort, 443))
	} else {
		p.urls = append(p.urls, address("http", host, p.httpPort, 80))
	}
}

func address(scheme, host string, port, usual int32) string {
	if port == usual {
		return scheme + "://" + host
	}
	return scheme + "://" + net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// bare says whether an application is reached by the cluster's address, for want of a name.
func (p *platform) bare(app *v1alpha1.App) bool {
	addr, err := netip.ParseAddr(p.address)
	return err == nil && addr.IsValid() && p.domain == "" && len(app.Spec.Domains) == 0 && app.Annotations[v1alpha1.AnnotationRemoved] == ""
}

// ownListener gives an application a port of the cluster's address: the first one that of HTTPS, others one of their own.
func (c *Controller) ownListener(ctx context.Context, app *v1alpha1.App, gateway *gatewayv1.Gateway, p *platform) error {
	port, err := c.ownPort(ctx, app, p.httpsPort)
	if err != nil || port == 0 {
		return err
	}
	p.listener = listenerHTTPS
	if port != p.httpsPort {
		p.listener = "port-" + strconv.Itoa(int(port))
	}
	p.urls = slices.Insert(p.urls, 0, address("https", p.address, port, 443))
	var like *gatewayv1.Listener
	for i := range gateway.Spec.Listeners {
		switch string(gateway.Spec.Listeners[i].Name) {
		case p.listener:
			return nil
		case listenerHTTPS:
			like = &gateway.Spec.Listeners[i]
		}
	}
	if like == nil {
		return nil
	}
	next := gateway.DeepCopy()
	added := like.DeepCopy()
	added.Name, added.Port, added.Hostname = gatewayv1.SectionName(p.listener), port, nil
	next.Spec.Listeners = append(next.Spec.Listeners, *added)
	if err := c.client.Update(ctx, next); err != nil {
		return fmt.Errorf("adding the port %d to the Gateway: %w", port, err)
	}
	return nil
}

// ownPort is the port of an application, given to it for good when it is asked for first. 0 if all are taken.
func (c *Controller) ownPort(ctx context.Context, app *v1alpha1.App, first int32) (int32, error) {
	if port, err := strconv.ParseUint(app.Annotations[annotationPort], 10, 16); err == nil {
		return int32(port), nil
	}
	c.mu.Lock() // two applications must not take one port
	defer c.mu.Unlock()
	var apps v1alpha1.AppList
	if err := c.client.List(ctx, &apps); err != nil {
		return 0, fmt.Errorf("listing applications: %w", err)
	}
	taken := map[string]bool{}
	for i := range apps.Items {
		taken[apps.Items[i].Annotations[annotationPort]] = true
	}
	port := first
	for next := int32(firstOwnPort); taken[strconv.Itoa(int(port))]; next++ {
		if next > lastOwnPort {
			return 0, nil
		}
		port = next
	}
	next := app.DeepCopy()
	metav1.SetMetaDataAnnotation(&next.ObjectMeta, annotationPort, strconv.Itoa(int(port)))
	if err := c.client.Patch(ctx, next, client.MergeFrom(app.DeepCopy())); err != nil {
		return 0, fmt.Errorf("giving the application the port %d: %w", port, err)
	}
	app.Annotations, app.ResourceVersion = next.Annotations, next.ResourceVersion
	return port, nil
}

// domainCheck is what was found when a domain was looked up.
type domainCheck struct {
	at      time.Time
	good    bool
	message string
}

// checkDomain says whether a domain points here, and what to do if not. It looks a name up once in a while.
func (c *Controller) checkDomain(ctx context.Context, name string, reached []string, now time.Time) domainCheck {
	if len(reached) == 0 {
		return domainCheck{message: "where this cluster is reached is not known; tell it with --public-address"}
	}
	c.mu.Lock()
	known, ok := c.domains[name]
	c.mu.Unlock()
	age := now.Sub(known.at)
	if ok && (known.good && age < recheckGood || !known.good && age < recheckBad) {
		return known
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found, err := c.opts.Resolver.LookupHost(ctx, name)
	out := judgeDomain(name, found, err, reached)
	out.at = now
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.domains) >= domainsKept {
		clear(c.domains)
	}
	c.domains[name] = out
	return out
}

// judgeDomain compares where a domain points with where the cluster is.
func judgeDomain(name string, found []string, err error, reached []string) domainCheck {
	record, kind := reached[0], "A"
	if addr, parseErr := netip.ParseAddr(record); parseErr != nil {
		kind = "CNAME"
	} else if addr.Is6() {
		kind = "AAAA"
	}
	todo := fmt.Sprintf("make a DNS record: %s %s %s", name, kind, record)
	switch {
	case err != nil || len(found) == 0:
		return domainCheck{message: "the name is not known; " + todo}
	case !slices.ContainsFunc(found, func(at string) bool { return slices.Contains(reached, at) }):
		return domainCheck{message: fmt.Sprintf("it points to %s; %s", strings.Join(found, ", "), todo)}
	}
	return domainCheck{good: true}
}
