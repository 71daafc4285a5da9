package compile

import (
	"crypto/tls"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/internal/network/gateway"
)

// Options are what Compile needs to know besides objects.
type Options struct {
	HTTPPort, HTTPSPort uint16 // of Ingress
	// Public are addresses under which the Internet reaches the nodes, besides the nodes' own.
	Public []netip.Addr
}

// Result is what Compile makes. Conditions have no times and no observed generation.
type Result struct {
	Table gateway.Table

	Classes     map[Key][]metav1.Condition
	Gateways    map[Key]gatewayv1.GatewayStatus
	HTTPRoutes  map[Key][]gatewayv1.RouteParentStatus
	GRPCRoutes  map[Key][]gatewayv1.RouteParentStatus
	Ingresses   sets.Set[Key] // that are served
	Addresses   []string      // of the nodes, as status shows them
	Hosts       []string      // names and addresses that need a certificate of Gantry's
	Secrets     sets.Set[Key] // that were looked at
	ServiceRefs sets.Set[Key] // that were looked at
	Wrong       []string      // annotations that cannot be read: one sentence each
	Trouble     []string      // ports that are wanted and cannot be listened on: one sentence each
}

// compiler is one run of Compile.
type compiler struct {
	in       *Objects
	opts     Options
	out      *Result
	services sets.Set[Key]
	hosts    sets.Set[string]
	parents  map[Key][]*listener // of our Gateways, in their order
	ports    map[uint16]string   // protocol by port: who came first
	managed  bool                // a listener or Ingress is served by managed certificates
	trouble  map[uint16]string   // why a port is not listened on
}

// Compile looks at everything.
func Compile(in *Objects, opts Options) *Result {
	c := &compiler{
		in: in, opts: opts, services: sets.New[Key](), hosts: sets.New[string](), parents: map[Key][]*listener{},
		ports: map[uint16]string{}, trouble: map[uint16]string{},
		out: &Result{
			Table: gateway.Table{Certificates: map[string]gateway.Certificate{}, Routes: map[string][]gateway.Route{},
				Services: map[string]gateway.Service{}, Challenges: map[string]string{}},
			Classes: map[Key][]metav1.Condition{}, Gateways: map[Key]gatewayv1.GatewayStatus{},
			HTTPRoutes: map[Key][]gatewayv1.RouteParentStatus{}, GRPCRoutes: map[Key][]gatewayv1.RouteParentStatus{},
			Ingresses: sets.New[Key](), Secrets: sets.New[Key](),
		},
	}
	c.readTrouble()
	c.out.Addresses = c.addresses()
	c.settings()
	c.classes()
	for _, key := range sorted(in.Gateways) {
		c.listeners(key, in.Gateways[key])
	}
	for _, key := range sorted(in.HTTPRoutes) {
		c.httpRoute(key, in.HTTPRoutes[key])
	}
	for _, key := range sorted(in.GRPCRoutes) {
		c.grpcRoute(key, in.GRPCRoutes[key])
	}
	c.ingresses()
	for key := range c.parents {
		c.gatewayStatus(key)
	}
	c.certificates()
	c.out.Hosts = sets.List(c.hosts)
	c.out.ServiceRefs = c.services
	return c.out
}

// readTrouble learns from the nodes which ports they could not take.
func (c *compiler) readTrouble() {
	for _, key := range sorted(c.in.Nodes) {
		for port, why := range ReadPorts(c.in.Nodes[key].Annotations[AnnotationPorts]) {
			c.trouble[port] = "node " + key.Name + ": " + why
		}
	}
}

// inTrouble returns why a port is not listened on, "" if it is.
func (c *compiler) inTrouble(port uint16) string {
	why := c.trouble[port]
	if why != "" && !slices.Contains(c.out.Trouble, why) {
		c.out.Trouble = append(c.out.Trouble, why)
	}
	return why
}

// ReadPorts reads AnnotationPorts.
func ReadPorts(text string) map[uint16]string {
	var out map[uint16]string
	if text == "" || json.Unmarshal([]byte(text), &out) != nil {
		return nil
	}
	return out
}

// WritePorts is the reverse of ReadPorts; none is "".
func WritePorts(ports map[uint16]string) string {
	if len(ports) == 0 {
		return ""
	}
	data, err := json.Marshal(ports)
	if err != nil {
		return ""
	}
	return string(data)
}

// addresses are those under which the nodes are reached: public ones if a node or a setting names
// any, else all of their own.
func (c *compiler) addresses() []string {
	external, internal := sets.New[string](), sets.New[string]()
	for _, addr := range c.opts.Public {
		external.Insert(addr.String())
	}
	for _, node := range c.in.Nodes {
		for _, a := range node.Status.Addresses {
			switch a.Type {
			case corev1.NodeExternalIP:
				external.Insert(a.Address)
			case corev1.NodeInternalIP:
				internal.Insert(a.Address)
			}
		}
	}
	if len(external) > 0 {
		return sets.List(external)
	}
	return sets.List(internal)
}

// settings come from annotations of the Gateway that every cluster has.
func (c *compiler) settings() {
	gw := c.in.Gateways[Key{Namespace: Namespace, Name: ClassName}]
	if gw == nil {
		return
	}
	for _, text := range strings.FieldsFunc(gw.Annotations[AnnotationTrustedProxies], func(r rune) bool { return r == ',' || r == ' ' }) {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				continue
			}
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		c.out.Table.Settings.TrustedProxies = append(c.out.Table.Settings.TrustedProxies, prefix.Masked())
	}
	c.out.Table.Settings.NoAccessLog = gw.Annotations[AnnotationAccessLog] == "off"
}

// classes are those of our controller.
func (c *compiler) classes() {
	for key, class := range c.in.Classes {
		if class.Spec.ControllerName != Controller {
			continue
		}
		accepted := condition(string(gatewayv1.GatewayClassConditionStatusAccepted), nil, string(gatewayv1.GatewayClassReasonAccepted), "Gantry serves Gateways of this class.")
		if class.Spec.ParametersRef != nil {
			accepted = condition(string(gatewayv1.GatewayClassConditionStatusAccepted),
				problemf(gatewayv1.GatewayClassReasonInvalidParameters, "this class takes no parameters"), "", "")
		}
		c.out.Classes[key] = []metav1.Condition{accepted}
	}
}

// certificates puts in those that Gantry keeps, and the answers to challenges.
func (c *compiler) certificates() {
	if len(c.out.Table.Listeners) == 0 {
		return
	}
	if c.managed {
		c.hosts.Insert("localhost")
		c.hosts.Insert(c.out.Addresses...)
	}
	for key, secret := range c.in.Secrets {
		if key.Namespace != Namespace {
			continue
		}
		if key.Name == ChallengeSecret {
			c.challenges(secret)
		}
		if secret.Labels[LabelCertificate] == "" || len(secret.Data[corev1.TLSCertKey]) == 0 || checkPair(secret) != nil {
			continue
		}
		cert := certificateOf(secret)
		cert.Default = slices.Contains(c.out.Addresses, secret.Annotations[AnnotationHost]) && secret.Annotations[AnnotationHost] == c.out.Addresses[0]
		c.out.Table.Certificates[key.String()] = cert
	}
}

// challenges puts in the answers to ACME's challenges.
func (c *compiler) challenges(secret *corev1.Secret) {
	for name, answer := range secret.Data {
		host, handshake := strings.CutPrefix(name, TLSChallengePrefix)
		if !handshake {
			c.out.Table.Challenges[name] = string(answer)
			continue
		}
		if _, err := tls.X509KeyPair(answer, answer); err == nil { // the gateway would refuse the whole table
			set(&c.out.Table.TLSChallenges, host, gateway.Certificate{Chain: answer, Key: answer})
		}
	}
}

// condition makes one that is true, or false for a problem.
func condition(kind string, p *problem, reason, message string) metav1.Condition {
	if p != nil {
		return metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: p.reason, Message: p.message}
	}
	return metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: reason, Message: message}
}
