package config

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// probeAddr is TEST-NET-1 (RFC 5737): no machine has it, so the kernel answers with the default route.
const probeAddr = "192.0.2.1:9"

// HostNodeIP finds the address of this machine: the source the default route gives, else the first
// global IPv4 address of an interface that is up. Addresses inside pods are ours and do not count,
// nor do those of other programs' container bridges. It returns an invalid address if there is none.
func HostNodeIP(pods netip.Prefix) (netip.Addr, error) {
	// Connecting a UDP socket sends nothing; it asks the kernel for the route and its source.
	if conn, err := net.Dial("udp4", probeAddr); err == nil {
		local := conn.LocalAddr().String()
		_ = conn.Close()
		if ap, err := netip.ParseAddrPort(local); err == nil && usable(ap.Addr(), pods) {
			return ap.Addr(), nil
		}
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list network interfaces: %w", err)
	}
	for _, iface := range interfaces {
		if iface.Flags&net.FlagUp == 0 || isBridgeOfOthers(iface.Name) {
			continue
		}
		addrs, err := iface.Addrs()
		if err != nil {
			continue // the interface has just gone
		}
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil && usable(prefix.Addr(), pods) {
				return prefix.Addr(), nil
			}
		}
	}
	return netip.Addr{}, nil
}

func usable(addr netip.Addr, pods netip.Prefix) bool {
	return addr.Is4() && addr.IsGlobalUnicast() && !pods.Contains(addr)
}

func isBridgeOfOthers(name string) bool {
	for _, prefix := range []string{"docker", "br-", "cni", "veth", "virbr"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
