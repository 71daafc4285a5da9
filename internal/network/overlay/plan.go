package overlay

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// vxlanOverhead is what VXLAN over IPv4 adds to a packet: Ethernet, VXLAN, UDP and IP headers
// (RFC 7348).
const vxlanOverhead = 50

// defaultMTU is that of a link nobody knows better of.
const defaultMTU = 1500

// kind is how packets to a machine's pods travel.
type kind string

const (
	direct kind = "direct" // a route by the machine's own address
	tunnel kind = "tunnel" // VXLAN
)

// uplink is the link that has the node's address. The zero value: no link has it.
type uplink struct {
	Index int
	Name  string
	MTU   int
	Link  netip.Prefix // who can be reached without a router; invalid for an address of its own
}

// path is the way to the pods of one machine.
type path struct {
	Node string
	Pods netip.Prefix
	Addr netip.Addr // of the machine
	Kind kind
	MTU  int // largest packet, before anything is added to it
}

// problem is a machine whose pods cannot be reached, and why.
type problem struct{ Node, Reason string }

// paths is a whole plan.
type paths struct {
	Self      machine
	Uplink    uplink
	List      []path // ordered by node
	TunnelMTU int    // of the tunnel's link; 0 where none is needed
	Problems  []problem
}

// planPaths decides how this machine reaches the pods of the others. cluster is the range of
// all pods. A range that two machines claim belongs to the older one.
func planPaths(self machine, up uplink, others []machine, cluster netip.Prefix) paths {
	out := paths{Self: self, Uplink: up}
	if !self.Pods.IsValid() || !self.Addr.IsValid() {
		return out
	}
	others = slices.DeleteFunc(slices.Clone(others), func(m machine) bool { return m.Name == self.Name || !m.Pods.IsValid() })
	slices.SortFunc(others, func(a, b machine) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	taken := []machine{self}
	for _, other := range others {
		if reason := obstacle(other, taken, cluster); reason != "" {
			out.Problems = append(out.Problems, problem{other.Name, reason})
			continue
		}
		taken = append(taken, other)
		out.List = append(out.List, planPath(self, up, other))
	}
	slices.SortFunc(out.List, func(a, b path) int { return cmp.Compare(a.Node, b.Node) })
	slices.SortFunc(out.Problems, func(a, b problem) int { return cmp.Compare(a.Node, b.Node) })
	if slices.ContainsFunc(out.List, func(p path) bool { return p.Kind == tunnel }) {
		out.TunnelMTU = linkMTU(up) - vxlanOverhead
	}
	return out
}

// obstacle says why a machine's pods cannot be reached, or nothing.
func obstacle(other machine, taken []machine, cluster netip.Prefix) string {
	if !other.Addr.IsValid() {
		return "it has no InternalIP of IPv4"
	}
	if !cluster.Contains(other.Pods.Addr()) || other.Pods.Bits() < cluster.Bits() {
		return fmt.Sprintf("its pod range %s is outside of the cluster's, %s", other.Pods, cluster)
	}
	for _, m := range taken {
		if m.Pods.Overlaps(other.Pods) {
			return fmt.Sprintf("its pod range %s overlaps %s of node %s", other.Pods, m.Pods, m.Name)
		}
	}
	if other.Addr == taken[0].Addr {
		return fmt.Sprintf("it has the address of this node, %s", other.Addr)
	}
	return ""
}

func planPath(self machine, up uplink, other machine) path {
	p := path{Node: other.Name, Pods: other.Pods, Addr: other.Addr, Kind: tunnel, MTU: linkMTU(up)}
	if other.MTU > 0 {
		p.MTU = min(p.MTU, other.MTU)
	}
	if self.Link.IsValid() && self.Link == other.Link && self.Link.Contains(other.Addr) {
		p.Kind = direct
	} else {
		p.MTU -= vxlanOverhead
	}
	return p
}

func linkMTU(up uplink) int { return cmp.Or(up.MTU, defaultMTU) }
