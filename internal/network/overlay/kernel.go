package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The tunnel (ADR 36).
const (
	TunnelLink = "gantry-vx"
	TunnelPort = 8472 // UDP
	tunnelID   = 1
)

// Routes of this package are told by their protocol, and have a metric that leaves a route of
// somebody else to the same range alone.
const (
	routeProtocol    = 71
	routeMetric      = 100
	unreachableRange = 4096 // metric of the route that refuses pods of no machine
)

// kernel is what the kernel has of this package. It is bound to the network namespace of the
// thread that made it, and not safe for concurrent use.
type kernel struct {
	nl      *netlink.Handle
	cluster netip.Prefix
	rules   ruleset // what was written last; zero before
	peers   bool    // whether the last plan had any path
}

func newKernel(cluster netip.Prefix) (*kernel, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening netlink: %w", err)
	}
	return &kernel{nl: nl, cluster: cluster, peers: true}, nil
}

func (k *kernel) close() { k.nl.Close() }

// uplink finds the link that has the address.
func (k *kernel) uplink(addr netip.Addr) (uplink, error) {
	all, err := k.nl.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return uplink{}, fmt.Errorf("listing addresses: %w", err)
	}
	for _, a := range all {
		if !a.IP.Equal(addr.AsSlice()) {
			continue
		}
		link, err := k.nl.LinkByIndex(a.LinkIndex)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue // it has just gone
		}
		if err != nil {
			return uplink{}, fmt.Errorf("reading the link of %s: %w", addr, err)
		}
		up := uplink{Index: a.LinkIndex, Name: link.Attrs().Name, MTU: link.Attrs().MTU}
		if bits, _ := a.Mask.Size(); bits < 32 && link.Attrs().Flags&net.FlagLoopback == 0 {
			up.Link = netip.PrefixFrom(addr, bits).Masked()
		}
		return up, nil
	}
	return uplink{}, nil
}

// apply makes the kernel equal to the plan: what is missing first, then what is too much.
func (k *kernel) apply(p paths) error {
	if len(p.List) == 0 && !k.peers {
		return nil
	}
	if err := k.applyRules(p); err != nil {
		return err
	}
	device := 0
	if p.TunnelMTU > 0 {
		var err error
		if device, err = k.ensureTunnel(p); err != nil {
			return err
		}
		if err := k.applyNeighbours(device, p); err != nil {
			return err
		}
	}
	if err := k.applyRoutes(device, p); err != nil {
		return err
	}
	if p.TunnelMTU == 0 {
		if err := k.removeLink(TunnelLink); err != nil {
			return err
		}
	}
	k.peers = len(p.List) > 0
	return nil
}

// applyRules keeps the table while there are other machines.
func (k *kernel) applyRules(p paths) error {
	rules := ruleset{cluster: k.cluster, own: p.Self.Pods}
	for _, one := range p.List {
		rules.senders = append(rules.senders, one.Addr)
	}
	there, err := hasTable()
	switch {
	case err != nil:
		return err
	case len(p.List) == 0 && there:
		k.rules = ruleset{}
		return deleteTable()
	case len(p.List) == 0 || there && k.rules.equal(rules):
		return nil
	}
	if err := rules.replaceTable(); err != nil {
		return err
	}
	k.rules = rules
	return nil
}

// ensureTunnel makes the tunnel's link, or brings it up to date, and returns its index.
func (k *kernel) ensureTunnel(p paths) (int, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = TunnelLink, p.TunnelMTU, hardwareAddr(p.Self.Pods)
	want := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: tunnelID, Port: TunnelPort}
	if p.Uplink.Index != 0 { // else the address is another machine's, which translates
		want.SrcAddr = p.Self.Addr.AsSlice()
	}
	link, err := k.nl.LinkByName(TunnelLink)
	if err == nil && !sameTunnel(link, want) {
		if err := k.nl.LinkDel(link); err != nil {
			return 0, fmt.Errorf("removing link %s: %w", TunnelLink, err)
		}
		link, err = nil, netlink.LinkNotFoundError{}
	}
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		if err = k.nl.LinkAdd(want); err == nil {
			link, err = k.nl.LinkByName(TunnelLink)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("making link %s: %w", TunnelLink, err)
	}
	if link.Attrs().MTU != p.TunnelMTU {
		if err := k.nl.LinkSetMTU(link, p.TunnelMTU); err != nil {
			return 0, fmt.Errorf("setting the MTU of link %s: %w", TunnelLink, err)
		}
	}
	if err := k.ensureAddress(link, gateway(p.Self.Pods)); err != nil {
		return 0, err
	}
	if err := writeSettings(TunnelLink); err != nil {
		return 0, err
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := k.nl.LinkSetUp(link); err != nil {
			return 0, fmt.Errorf("setting link %s up: %w", TunnelLink, err)
		}
	}
	return link.Attrs().Index, nil
}

// sameTunnel compares what cannot be changed once the link is there.
func sameTunnel(link netlink.Link, want *netlink.Vxlan) bool {
	have, ok := link.(*netlink.Vxlan)
	return ok && have.VxlanId == want.VxlanId && have.Port == want.Port && have.SrcAddr.Equal(want.SrcAddr) &&
		!have.Learning && bytes.Equal(have.HardwareAddr, want.HardwareAddr)
}

// ensureAddress gives the link exactly the one address. It is the bridge's too: what the node
// sends by the tunnel, and what is masqueraded there, comes from where answers can go.
func (k *kernel) ensureAddress(link netlink.Link, addr netip.Addr) error {
	have, err := k.nl.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("listing addresses of %s: %w", TunnelLink, err)
	}
	want := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(32, 32)}
	found := false
	for _, old := range have {
		if old.IPNet.String() == want.String() {
			found = true
		} else if err := k.nl.AddrDel(link, &old); err != nil {
			return fmt.Errorf("removing address %s of %s: %w", old.IPNet, TunnelLink, err)
		}
	}
	if found {
		return nil
	}
	if err := k.nl.AddrReplace(link, &netlink.Addr{IPNet: want}); err != nil {
		return fmt.Errorf("giving %s to %s: %w", addr, TunnelLink, err)
	}
	return nil
}

// writeSettings lets the link forward. Strict reverse path filtering would drop what comes by
// it while the other end's plan is a moment older than this one's.
func writeSettings(link string) error {
	conf := "/proc/sys/net/ipv4/conf/" + link + "/"
	for _, s := range []struct{ path, value string }{
		{"/proc/sys/net/ipv4/ip_forward", "1"}, {conf + "forwarding", "1"}, {conf + "rp_filter", "2"}, {conf + "send_redirects", "0"},
	} {
		have, err := os.ReadFile(s.path)
		if err == nil && strings.TrimSpace(string(have)) == s.value {
			continue
		}
		if err := os.WriteFile(s.path, []byte(s.value), 0); err != nil {
			return fmt.Errorf("setting %s to %s: %w", s.path, s.value, err)
		}
	}
	// The tunnel carries IPv4; without this the kernel asks for IPv6 routers by it.
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+link+"/disable_ipv6", []byte("1"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keeping IPv6 from link %s: %w", link, err)
	}
	return nil
}

// neighbour is one static entry of the tunnel: who has a MAC, or which MAC an address has.
type neighbour struct {
	family int
	addr   netip.Addr
	mac    string
}

// applyNeighbours keeps the two entries of each machine behind the tunnel.
func (k *kernel) applyNeighbours(device int, p paths) error {
	want := map[neighbour]bool{}
	for _, one := range p.List {
		if one.Kind == tunnel {
			mac := hardwareAddr(one.Pods).String()
			want[neighbour{unix.AF_BRIDGE, one.Addr, mac}] = true
			want[neighbour{unix.AF_INET, gateway(one.Pods), mac}] = true
		}
	}
	have := map[neighbour]bool{}
	for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET} {
		list, err := k.nl.NeighList(device, family)
		if err != nil {
			return fmt.Errorf("listing neighbours of %s: %w", TunnelLink, err)
		}
		for _, n := range list {
			addr, _ := netip.AddrFromSlice(n.IP)
			entry := neighbour{family, addr.Unmap(), n.HardwareAddr.String()}
			if family == unix.AF_INET && n.State&unix.NUD_PERMANENT == 0 {
				continue // the kernel's own
			}
			if have[entry] = true; !want[entry] {
				// The same MAC or address may be wanted with another far end: then it is replaced below.
				if err := k.nl.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
					return fmt.Errorf("removing neighbour %s of %s: %w", n.String(), TunnelLink, err)
				}
			}
		}
	}
	for entry := range want {
		if have[entry] {
			continue
		}
		mac, err := net.ParseMAC(entry.mac)
		if err != nil {
			return fmt.Errorf("adding a neighbour to %s: %w", TunnelLink, err)
		}
		n := &netlink.Neigh{LinkIndex: device, Family: entry.family, State: unix.NUD_PERMANENT, IP: entry.addr.AsSlice(), HardwareAddr: mac}
		if entry.family == unix.AF_BRIDGE {
			n.Flags = netlink.NTF_SELF
		}
		if err := k.nl.NeighSet(n); err != nil {
			return fmt.Errorf("adding neighbour %s to %s: %w", n.String(), TunnelLink, err)
		}
	}
	return nil
}

// way is a route as far as this package sets it.
type way struct {
	dst    netip.Prefix
	via    netip.Addr
	src    netip.Addr
	device int
	mtu    int
	kind   int
	metric int
}

// ways are the routes of a plan. All of them have the node's address on the pod network as
// source: it is in every machine's routes, whichever way it leads.
func (p paths) ways(device int, cluster netip.Prefix) map[way]bool {
	out := map[way]bool{}
	src := netip.Addr{}
	if p.Self.Pods.IsValid() {
		src = gateway(p.Self.Pods)
	}
	for _, one := range p.List {
		w := way{dst: one.Pods, src: src, kind: unix.RTN_UNICAST, metric: routeMetric}
		switch one.Kind {
		case direct:
			w.via, w.device = one.Addr, p.Uplink.Index
			if one.MTU < linkMTU(p.Uplink) {
				w.mtu = one.MTU
			}
		case tunnel:
			w.via, w.device = gateway(one.Pods), device
			if one.MTU < p.TunnelMTU {
				w.mtu = one.MTU
			}
		}
		out[w] = true
	}
	if len(p.List) > 0 {
		out[way{dst: cluster, kind: unix.RTN_UNREACHABLE, metric: unreachableRange}] = true
	}
	return out
}

// applyRoutes keeps the routes. A pod range of no machine is refused at once, instead of being
// looked for beyond the default route.
func (k *kernel) applyRoutes(device int, p paths) error {
	want := p.ways(device, k.cluster)
	list, err := k.nl.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	have, surplus := map[way]bool{}, []netlink.Route{}
	for _, r := range list {
		if w := wayOf(r); want[w] {
			have[w] = true
		} else {
			surplus = append(surplus, r)
		}
	}
	for w := range want {
		if have[w] {
			continue
		}
		if err := k.nl.RouteReplace(w.route()); err != nil {
			return fmt.Errorf("adding the route to %s: %w", w.dst, err)
		}
	}
	for _, r := range surplus {
		// One that was replaced above is gone already.
		if err := k.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("removing the route to %s: %w", r.Dst, err)
		}
	}
	return nil
}

func (w way) route() *netlink.Route {
	r := &netlink.Route{Dst: &net.IPNet{IP: w.dst.Addr().AsSlice(), Mask: net.CIDRMask(w.dst.Bits(), 32)},
		Protocol: routeProtocol, Priority: w.metric, Type: w.kind, Table: unix.RT_TABLE_MAIN}
	if w.kind != unix.RTN_UNICAST {
		return r
	}
	r.LinkIndex, r.Gw, r.Src, r.MTU, r.Flags = w.device, w.via.AsSlice(), w.src.AsSlice(), w.mtu, int(netlink.FLAG_ONLINK)
	return r
}

func wayOf(r netlink.Route) way {
	w := way{via: toAddr(r.Gw), src: toAddr(r.Src), device: r.LinkIndex, mtu: r.MTU, kind: r.Type, metric: r.Priority}
	if r.Dst != nil {
		bits, _ := r.Dst.Mask.Size()
		w.dst = netip.PrefixFrom(toAddr(r.Dst.IP), bits)
	}
	if w.kind != unix.RTN_UNICAST {
		w.device = 0 // the kernel says loopback or nothing
	}
	return w
}

func toAddr(ip net.IP) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}

func (k *kernel) removeLink(name string) error {
	link, err := k.nl.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = k.nl.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing link %s: %w", name, err)
	}
	return nil
}
