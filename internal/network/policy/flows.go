package policy

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetFlows removes tracked connections that match says are to go. Their next packet is held against the rules.
func forgetFlows(match func(flow *netlink.ConntrackFlow) bool) (int, error) {
	n, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, flowFilter(match))
	if err != nil {
		return 0, fmt.Errorf("deleting tracked connections: %w", err)
	}
	return int(n), nil
}

type flowFilter func(flow *netlink.ConntrackFlow) bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool { return f(flow) }

// ofAddrs matches the connections of addresses.
func ofAddrs(addrs []netip.Addr) func(*netlink.ConntrackFlow) bool {
	return func(flow *netlink.ConntrackFlow) bool {
		return slices.Contains(addrs, toAddr(flow.Forward.SrcIP)) || slices.Contains(addrs, toAddr(flow.Reverse.SrcIP))
	}
}

// forbidden matches connections of this node's pods that the rules do not allow. Those of the node itself, which has the
// addresses own, are not theirs to judge.
func (s *state) forbidden(own map[netip.Addr]bool) func(*netlink.ConntrackFlow) bool {
	return func(flow *netlink.ConntrackFlow) bool {
		// The forward chains see the sender's own address, and where the connection went after translation.
		src, dst := toAddr(flow.Forward.SrcIP), toAddr(flow.Reverse.SrcIP)
		return !own[src] && !own[dst] && !s.allows(src, dst, flow.Forward.Protocol, flow.Reverse.SrcPort)
	}
}

// ownAddrs returns this node's addresses.
func ownAddrs() (map[netip.Addr]bool, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("listing this node's addresses: %w", err)
	}
	out := make(map[netip.Addr]bool, len(list))
	for _, a := range list {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			out[prefix.Addr().Unmap()] = true
		}
	}
	return out, nil
}

func toAddr(ip net.IP) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}
