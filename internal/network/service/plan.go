package service

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"gantry.dev/gantry/internal/network/nft"
)

// frontend is where clients connect to. The zero IP means a node port: every local address.
type frontend struct {
	IP    netip.Addr
	Proto uint8
	Port  uint16
}

// endpoint is a pod's address and port.
type endpoint struct {
	Addr netip.Addr
	Port uint16
}

// span is a run of a frontend's slots to choose from.
type span struct{ Offset, Count int }

// frontendPlan says what happens to connections to one frontend.
//
// Slots holds the endpoints of this node first, so that one list serves two policies: All is
// for every client; Inside, when it has slots, is for pods and the node itself, who are not
// bound by the policy Local for external traffic.
type frontendPlan struct {
	frontend
	Slots       []endpoint
	All, Inside span
	Masquerade  bool          // replies must come back through this node
	Affinity    time.Duration // a client stays with its endpoint this long; 0 is off
	Drop        bool          // without an endpoint: drop, not reject
}

// servicePlan is what one Service needs of the kernel.
type servicePlan struct {
	Frontends []frontendPlan
	Hairpin   []netip.Addr // endpoints on this node, which may reach themselves through the service
}

// nodeView is what a plan depends on besides the objects.
type nodeView struct {
	Name string
	Skip map[netip.Addr]bool // service addresses that a process on the node answers itself
}

// endpointState is an endpoint with what the choice among endpoints depends on.
type endpointState struct {
	endpoint
	local, ready, terminating bool
}

// planService compiles one Service. Services that other proxies serve, headless ones and
// aliases give an empty plan. IPv6 is left out.
func planService(svc *corev1.Service, endpointSlices []discoveryv1.EndpointSlice, node nodeView) servicePlan {
	var plan servicePlan
	if !proxied(svc) {
		return plan
	}
	var affinity time.Duration
	if svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		affinity = 3 * time.Hour // the API's default
		if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			affinity = time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
		}
	}
	cluster, external := addresses(svc, node.Skip)
	hairpin := map[netip.Addr]bool{}
	for _, port := range svc.Spec.Ports {
		states := endpointStates(endpointSlices, port, node.Name)
		inside := frontendPlan{Affinity: affinity}
		inside.spread(states, svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal, false)
		outside := frontendPlan{Affinity: affinity}
		localOnly := svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
		outside.spread(states, localOnly, localOnly)
		outside.Masquerade = !localOnly
		outside.Drop = localOnly && outside.All.Count == 0 && outside.Inside.Count > 0
		for _, state := range states {
			if state.local {
				hairpin[state.Addr] = true
			}
		}
		at := frontend{Proto: nft.ProtocolNumber(port.Protocol), Port: uint16(port.Port)}
		for _, ip := range cluster {
			at.IP = ip
			plan.Frontends = append(plan.Frontends, inside.at(at))
		}
		for _, ip := range external {
			at.IP = ip
			plan.Frontends = append(plan.Frontends, outside.at(at))
		}
		if port.NodePort != 0 {
			at = frontend{Proto: at.Proto, Port: uint16(port.NodePort)}
			plan.Frontends = append(plan.Frontends, outside.at(at))
		}
	}
	for addr := range hairpin {
		plan.Hairpin = append(plan.Hairpin, addr)
	}
	slices.SortFunc(plan.Hairpin, netip.Addr.Compare)
	return plan
}

// at returns the plan for one frontend.
func (p frontendPlan) at(f frontend) frontendPlan {
	p.frontend = f
	return p
}

// spread chooses the slots: endpoints of this node only, or all; with both, clients inside of
// the cluster get all of them.
func (p *frontendPlan) spread(states []endpointState, localOnly, both bool) {
	all := usable(states)
	if !localOnly {
		p.Slots, p.All = all, span{0, len(all)}
		return
	}
	local := usable(slices.DeleteFunc(slices.Clone(states), func(s endpointState) bool { return !s.local }))
	p.Slots, p.All = local, span{0, len(local)}
	if !both {
		return
	}
	if len(local) <= len(all) && slices.Equal(local, all[:len(local)]) {
		p.Slots, p.Inside = all, span{0, len(all)}
		return
	}
	// The local ones are all shutting down, those elsewhere are ready: the lists differ.
	p.Slots, p.Inside = slices.Concat(local, all), span{len(local), len(all)}
}

// usable returns the ready endpoints, or when there are none those that still serve while
// they shut down.
func usable(states []endpointState) []endpoint {
	var ready, last []endpoint
	for _, s := range states {
		if s.ready {
			ready = append(ready, s.endpoint)
		} else if s.terminating {
			last = append(last, s.endpoint)
		}
	}
	if len(ready) == 0 {
		return last
	}
	return ready
}

// endpointStates lists the endpoints of one service port, this node's first, then by address.
// An address that several slices hold counts once, ready if one says so.
func endpointStates(endpointSlices []discoveryv1.EndpointSlice, port corev1.ServicePort, node string) []endpointState {
	found := map[endpoint]endpointState{}
	for i := range endpointSlices {
		slice := &endpointSlices[i]
		if slice.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		for _, number := range portNumbers(slice, port) {
			for j := range slice.Endpoints {
				e := &slice.Endpoints[j]
				if len(e.Addresses) == 0 {
					continue
				}
				addr, err := netip.ParseAddr(e.Addresses[0])
				if err != nil || !addr.Is4() {
					continue
				}
				at := endpoint{addr, number}
				s := found[at]
				s.endpoint = at
				s.local = s.local || e.NodeName != nil && *e.NodeName == node
				s.ready = s.ready || e.Conditions.Ready == nil || *e.Conditions.Ready
				s.terminating = s.terminating || is(e.Conditions.Serving) && is(e.Conditions.Terminating)
				found[at] = s
			}
		}
	}
	out := make([]endpointState, 0, len(found))
	for _, s := range found {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b endpointState) int {
		if a.local != b.local {
			if a.local {
				return -1
			}
			return 1
		}
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
	})
	return out
}

func is(b *bool) bool { return b != nil && *b }

// portNumbers returns the slice's port numbers that belong to the service port.
func portNumbers(slice *discoveryv1.EndpointSlice, want corev1.ServicePort) []uint16 {
	var out []uint16
	for _, p := range slice.Ports {
		name, proto := "", corev1.ProtocolTCP
		if p.Name != nil {
			name = *p.Name
		}
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		if p.Port != nil && name == want.Name && proto == cmp.Or(want.Protocol, corev1.ProtocolTCP) {
			out = append(out, uint16(*p.Port))
		}
	}
	return out
}

// proxied reports whether the service has addresses that this proxy serves.
func proxied(svc *corev1.Service) bool {
	if svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return false
	}
	return svc.Labels["service.kubernetes.io/service-proxy-name"] == ""
}

// addresses returns the IPv4 addresses of a service: its own, and those the outside uses.
func addresses(svc *corev1.Service, skip map[netip.Addr]bool) (cluster, external []netip.Addr) {
	add := func(list []netip.Addr, text string) []netip.Addr {
		addr, err := netip.ParseAddr(text)
		if err != nil || !addr.Is4() || skip[addr] || slices.Contains(list, addr) {
			return list
		}
		return append(list, addr)
	}
	for _, ip := range append([]string{svc.Spec.ClusterIP}, svc.Spec.ClusterIPs...) {
		cluster = add(cluster, ip)
	}
	for _, ip := range svc.Spec.ExternalIPs {
		external = add(external, ip)
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, ingress := range svc.Status.LoadBalancer.Ingress {
			if ingress.IPMode == nil || *ingress.IPMode == corev1.LoadBalancerIPModeVIP {
				external = add(external, ingress.IP)
			}
		}
	}
	return cluster, external
}
