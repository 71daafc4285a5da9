package podnet

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// linkPrefix begins the name of every pod's link on the node's side.
const linkPrefix = "gtp"

// podLink is the name of a pod's own link.
const podLink = "eth0"

// linkName is the node's side of a pod's veth: a hash, for link names hold 15 bytes.
func linkName(uid string) string {
	sum := sha256.Sum256([]byte(uid))
	return linkPrefix + hex.EncodeToString(sum[:6])
}

// hardwareAddr is a local MAC made of the address, so that an address that moves to another
// pod never meets a stale neighbour entry.
func hardwareAddr(addr netip.Addr) net.HardwareAddr {
	b := addr.As4()
	return net.HardwareAddr{0x0a, 0x58, b[0], b[1], b[2], b[3]}
}

// prepareLinksLocked makes the bridge, the DNS link, routes and settings. n.mu is held.
func (n *Network) prepareLinksLocked() error {
	n.mtu = n.opts.MTU
	if n.mtu == 0 {
		n.mtu = uplinkMTU(n.nl)
	}
	gateway := n.pool.gateway()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = n.opts.Bridge, n.mtu, hardwareAddr(gateway)
	bridge, err := n.ensureLink(&netlink.Bridge{LinkAttrs: attrs}, netip.PrefixFrom(gateway, n.opts.PodCIDR.Bits()))
	if err != nil {
		return err
	}
	if err := writeSettings(n.opts.Bridge); err != nil {
		return err
	}
	if n.opts.ServiceCIDR.IsValid() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = n.opts.DNSLink
		// A bridge without ports serves as a dummy; a kernel may lack the dummy driver.
		if _, err := n.ensureLink(&netlink.Bridge{LinkAttrs: attrs}, netip.PrefixFrom(DNSAddr(n.opts.ServiceCIDR), 32)); err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: bridge, Dst: ipNet(n.opts.ServiceCIDR), Src: gateway.AsSlice(), Scope: netlink.SCOPE_LINK}
		if err := n.nl.RouteReplace(route); err != nil {
			return fmt.Errorf("routing the service range to %s: %w", n.opts.Bridge, err)
		}
	}
	n.bridge = bridge
	return nil
}

// ensureLink makes the link when it is missing, gives it exactly the one address, sets it up
// and returns its index.
func (n *Network) ensureLink(want netlink.Link, addr netip.Prefix) (int, error) {
	name := want.Attrs().Name
	link, err := n.nl.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		if err = n.nl.LinkAdd(want); err == nil {
			link, err = n.nl.LinkByName(name)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("making link %s: %w", name, err)
	}
	if link.Type() != want.Type() {
		return 0, fmt.Errorf("link %s is a %s of somebody else, want a %s", name, link.Type(), want.Type())
	}
	if mac := want.Attrs().HardwareAddr; mac != nil && link.Attrs().HardwareAddr.String() != mac.String() {
		if err := n.nl.LinkSetHardwareAddr(link, mac); err != nil {
			return 0, fmt.Errorf("setting the address of link %s: %w", name, err)
		}
	}
	if mtu := want.Attrs().MTU; mtu != 0 && link.Attrs().MTU != mtu {
		if err := n.nl.LinkSetMTU(link, mtu); err != nil {
			return 0, fmt.Errorf("setting the MTU of link %s: %w", name, err)
		}
	}
	have, err := n.nl.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return 0, fmt.Errorf("listing addresses of %s: %w", name, err)
	}
	for _, old := range have {
		if old.IPNet.String() != addr.String() {
			if err := n.nl.AddrDel(link, &old); err != nil {
				return 0, fmt.Errorf("removing address %s of %s: %w", old.IPNet, name, err)
			}
		}
	}
	ip := &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 32)}}
	if err := n.nl.AddrReplace(link, ip); err != nil {
		return 0, fmt.Errorf("giving %s to %s: %w", addr, name, err)
	}
	if err := n.nl.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("setting link %s up: %w", name, err)
	}
	return link.Attrs().Index, nil
}

// writeSettings turns forwarding on and sets what the bridge needs. Strict reverse path
// filtering on the bridge would drop a pod's packets to a translated address.
func writeSettings(bridge string) error {
	conf := "/proc/sys/net/ipv4/conf/" + bridge + "/"
	for _, s := range []struct {
		path, value string
		optional    bool
	}{
		{"/proc/sys/net/ipv4/ip_forward", "1", false},
		{conf + "rp_filter", "2", false},
		// For host ports of 127.0.0.1. The chain "spoofed" drops what pods could reach by it.
		{conf + "route_localnet", "1", false},
		// The kernel ORs both, so each other link's own value still decides for it. Redirects would
		// also use up the pods' share of ICMP errors (inet_peer), which reject UDP packets.
		{"/proc/sys/net/ipv4/conf/all/send_redirects", "0", false},
		{conf + "send_redirects", "0", false},
		{"/proc/sys/net/ipv6/conf/" + bridge + "/accept_ra", "0", true},
	} {
		have, err := os.ReadFile(s.path)
		if err == nil && strings.TrimSpace(string(have)) == s.value {
			continue
		}
		err = os.WriteFile(s.path, []byte(s.value), 0)
		if err != nil && !(s.optional && errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("setting %s to %s: %w", s.path, s.value, err)
		}
	}
	return nil
}

// uplinkMTU is the MTU of the default route's link, 1500 without one.
func uplinkMTU(nl *netlink.Handle) int {
	routes, err := nl.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return 1500
	}
	for _, route := range routes {
		if route.Dst != nil && !route.Dst.IP.IsUnspecified() {
			continue
		}
		if link, err := nl.LinkByIndex(route.LinkIndex); err == nil && link.Attrs().MTU > 0 {
			return link.Attrs().MTU
		}
	}
	return 1500
}

// build makes namespace, links, addresses, routes and host ports of a pod that has none.
func (n *Network) build(r record) error {
	path := n.nsPath(r.UID)
	pod, err := createNamespace(path)
	if err != nil {
		return err
	}
	defer pod.Close()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the pod's namespace: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	n.mu.Lock()
	bridge, mtu := n.bridge, n.mtu
	n.mu.Unlock()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex, attrs.Flags = linkName(r.UID), mtu, bridge, net.FlagUp
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: podLink, PeerNamespace: netlink.NsFd(fd),
		PeerHardwareAddr: hardwareAddr(r.Addrs[0]), PeerMTU: uint32(mtu)}
	if err := n.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("making the pod's link: %w", err)
	}
	// Needed where br_netfilter turns a pod's connection to itself back within the bridge.
	if err := n.nl.LinkSetHairpin(veth, true); err != nil {
		return fmt.Errorf("setting hairpin mode: %w", err)
	}
	if err := configurePod(pod, r.Addrs, n.Gateway()); err != nil {
		return err
	}
	if len(r.HostPorts) == 0 {
		return nil
	}
	conn := &nftables.Conn{}
	if err := newTables().addHostPorts(conn, r); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("mapping host ports: %w", err)
	}
	return nil
}

// configurePod sets up the links inside of the pod's namespace.
func configurePod(pod *netlink.Handle, addrs []netip.Addr, gateway netip.Addr) error {
	loopback := netlink.NewLinkAttrs()
	loopback.Index = 1 // the first link of a namespace
	if err := pod.LinkSetUp(&netlink.Dummy{LinkAttrs: loopback}); err != nil {
		return fmt.Errorf("setting the pod's loopback up: %w", err)
	}
	link, err := pod.LinkByName(podLink)
	if err != nil {
		return fmt.Errorf("finding the pod's link: %w", err)
	}
	for _, addr := range addrs {
		if err := pod.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, addr.BitLen()))}); err != nil {
			return fmt.Errorf("giving %s to the pod: %w", addr, err)
		}
	}
	if err := pod.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting the pod's link up: %w", err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
	if err := pod.RouteAdd(route); err != nil {
		return fmt.Errorf("setting the pod's default route: %w", err)
	}
	return nil
}

// complete reports whether all that build makes is there.
func (n *Network) complete(r record) bool {
	path := n.nsPath(r.UID)
	if !isNamespace(path) {
		return false
	}
	host, err := n.nl.LinkByName(linkName(r.UID))
	if err != nil || host.Attrs().MasterIndex == 0 {
		return false
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return false
	}
	defer func() { _ = ns.Close() }()
	pod, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return false
	}
	defer pod.Close()
	link, err := pod.LinkByName(podLink)
	if err != nil {
		return false
	}
	have, err := pod.AddrList(link, netlink.FAMILY_V4)
	if err != nil || !slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IP.Equal(r.Addrs[0].AsSlice()) }) {
		return false
	}
	// The route is the last thing that build makes.
	routes, err := pod.RouteList(link, netlink.FAMILY_V4)
	return err == nil && len(routes) > 0
}

// dismantle removes what the kernel has of a pod; parts that are missing are fine.
func (n *Network) dismantle(r record) error {
	if len(r.HostPorts) > 0 {
		conn := &nftables.Conn{}
		if err := newTables().removeHostPorts(conn, r); err != nil {
			return err
		}
		if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmapping host ports: %w", err)
		}
	}
	hadNamespace := isNamespace(n.nsPath(r.UID))
	if err := removeNamespace(n.nsPath(r.UID)); err != nil {
		return err
	}
	if hadNamespace {
		return nil // the kernel removes the link with the namespace, many at once
	}
	return n.removeLink(linkName(r.UID))
}

func (n *Network) removeLink(name string) error {
	link, err := n.nl.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = n.nl.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing link %s: %w", name, err)
	}
	return nil
}

// removeStrayLinks removes pod links on the bridge that are not in keep.
func (n *Network) removeStrayLinks(keep map[string]bool) error {
	links, err := n.nl.LinkList()
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	for _, link := range links {
		name := link.Attrs().Name
		if link.Attrs().MasterIndex == n.bridge && strings.HasPrefix(name, linkPrefix) && !keep[name] {
			if err := n.nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("removing link %s: %w", name, err)
			}
		}
	}
	return nil
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}
