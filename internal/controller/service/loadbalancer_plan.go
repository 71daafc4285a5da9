package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// wantsBalancer says whether a Service is to have the nodes' addresses.
func wantsBalancer(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.Spec.LoadBalancerClass == nil && svc.DeletionTimestamp == nil
}

// nodeAddresses is what a node brings to load balancing.
type nodeAddresses struct {
	Name      string
	Ready     bool
	Addresses []netip.Addr
}

func (n nodeAddresses) equal(other nodeAddresses) bool {
	return n.Name == other.Name && n.Ready == other.Ready && slices.Equal(n.Addresses, other.Addresses)
}

// balancingNode is the node as load balancing sees it; without addresses it takes no part.
func balancingNode(node *corev1.Node) nodeAddresses {
	out := nodeAddresses{Name: node.Name}
	if _, excluded := node.Labels[corev1.LabelNodeExcludeBalancers]; excluded || node.DeletionTimestamp != nil {
		return out
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			out.Ready = c.Status == corev1.ConditionTrue
		}
	}
	for _, kind := range []corev1.NodeAddressType{corev1.NodeExternalIP, corev1.NodeInternalIP} {
		for _, a := range node.Status.Addresses {
			if addr, err := netip.ParseAddr(a.Address); err == nil && a.Type == kind {
				out.Addresses = append(out.Addresses, addr)
			}
		}
		if len(out.Addresses) > 0 {
			return out
		}
	}
	return out
}

// balancingNodes are the nodes that take part, by name: the ready ones, or all if none is.
func balancingNodes(nodes []corev1.Node) []nodeAddresses {
	var all, ready []nodeAddresses
	for i := range nodes {
		n := balancingNode(&nodes[i])
		if len(n.Addresses) == 0 {
			continue
		}
		all = append(all, n)
		if n.Ready {
			ready = append(ready, n)
		}
	}
	if len(ready) == 0 {
		ready = all
	}
	slices.SortFunc(ready, func(a, b nodeAddresses) int { return cmp.Compare(a.Name, b.Name) })
	return ready
}

// balance is what the addresses of all Services depend on.
type balance struct {
	nodes    []nodeAddresses
	reserved map[int32]bool
	serving  map[*corev1.Service]map[string]bool // nodes with endpoints, of Services whose external traffic stays on a node
}

// decision is the addresses of one Service, and why it has none where that is its own fault.
type decision struct {
	service *corev1.Service
	ingress []corev1.LoadBalancerIngress
	problem string
}

// portKey is a port of all nodes.
type portKey struct {
	protocol corev1.Protocol
	port     int32
}

// plan decides for all Services at once: a port of the nodes belongs to the oldest that wants it.
func (b balance) plan(services []*corev1.Service) []decision {
	services = slices.Clone(services)
	slices.SortFunc(services, func(x, y *corev1.Service) int {
		return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	taken := map[portKey]*corev1.Service{}
	var out []decision
	for _, svc := range services {
		d := decision{service: svc}
		if wantsBalancer(svc) {
			if d.problem = b.problem(svc, taken); d.problem == "" {
				for _, p := range svc.Spec.Ports {
					taken[portKey{p.Protocol, p.Port}] = svc
				}
				d.ingress = b.ingress(svc)
			}
		} else if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			continue // another one's, or going
		}
		out = append(out, d)
	}
	return out
}

// problem says why a Service cannot have the nodes' addresses.
func (b balance) problem(svc *corev1.Service, taken map[portKey]*corev1.Service) string {
	if len(svc.Spec.LoadBalancerSourceRanges) > 0 {
		return "loadBalancerSourceRanges cannot be kept on the nodes' addresses; use a NetworkPolicy, or a load balancer of another class"
	}
	if svc.Spec.LoadBalancerIP != "" && !slices.ContainsFunc(b.nodes, func(n nodeAddresses) bool {
		return slices.ContainsFunc(n.Addresses, func(a netip.Addr) bool { return a.String() == svc.Spec.LoadBalancerIP })
	}) {
		return fmt.Sprintf("loadBalancerIP %s is no node's address", svc.Spec.LoadBalancerIP)
	}
	for _, p := range svc.Spec.Ports {
		if b.reserved[p.Port] && p.Protocol == corev1.ProtocolTCP {
			return fmt.Sprintf("port %d is used by the nodes themselves", p.Port)
		}
		if other := taken[portKey{p.Protocol, p.Port}]; other != nil {
			return fmt.Sprintf("port %d/%s of the nodes belongs to service %s/%s", p.Port, p.Protocol, other.Namespace, other.Name)
		}
	}
	return ""
}

// ingress lists the addresses of a Service: of all nodes or, where external traffic stays on a node,
// of those with endpoints, if there are any.
func (b balance) ingress(svc *corev1.Service) []corev1.LoadBalancerIngress {
	serving := b.serving[svc]
	someServe := slices.ContainsFunc(b.nodes, func(n nodeAddresses) bool { return serving[n.Name] })
	vip := corev1.LoadBalancerIPModeVIP
	var out []corev1.LoadBalancerIngress
	for _, family := range familiesOf(svc) {
		for _, n := range b.nodes {
			if someServe && !serving[n.Name] {
				continue
			}
			i := slices.IndexFunc(n.Addresses, func(a netip.Addr) bool { return a.Is4() == (family == corev1.IPv4Protocol) })
			if i < 0 || svc.Spec.LoadBalancerIP != "" && n.Addresses[i].String() != svc.Spec.LoadBalancerIP {
				continue
			}
			out = append(out, corev1.LoadBalancerIngress{IP: n.Addresses[i].String(), IPMode: &vip})
		}
	}
	return out
}

func familiesOf(svc *corev1.Service) []corev1.IPFamily {
	if len(svc.Spec.IPFamilies) == 0 {
		return []corev1.IPFamily{corev1.IPv4Protocol}
	}
	return svc.Spec.IPFamilies
}
