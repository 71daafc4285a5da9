package overlay

import (
	"net"
	"net/netip"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Annotations of a Node that say how others reach its pods (ADR 36).
const (
	// AnnotationLink is the prefix of the link that the node's address is on. Nodes with the
	// same one reach each other without a router.
	AnnotationLink = "gantry.dev/link"
	// AnnotationLinkMTU is the MTU of that link.
	AnnotationLinkMTU = "gantry.dev/link-mtu"
)

// minMTU is the least MTU of a path (RFC 791 wants 68; less than this is somebody's mistake).
const minMTU = 576

// machine is what a Node says of the way to its pods.
type machine struct {
	Name    string
	Created time.Time
	Addr    netip.Addr   // InternalIP; invalid where the Node has none of IPv4
	Pods    netip.Prefix // invalid until the node has its range
	Link    netip.Prefix // invalid where it is not said
	MTU     int          // of the link; 0 where it is not said
}

// machineOf reads a Node. What cannot be read counts as not said.
func machineOf(node *corev1.Node) machine {
	m := machine{Name: node.Name, Created: node.CreationTimestamp.Time}
	for _, a := range node.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); err == nil && addr.Is4() && a.Type == corev1.NodeInternalIP {
			m.Addr = addr
			break
		}
	}
	ranges := node.Spec.PodCIDRs
	if len(ranges) == 0 {
		ranges = []string{node.Spec.PodCIDR}
	}
	for _, text := range ranges {
		if prefix, err := netip.ParsePrefix(text); err == nil && prefix.Addr().Is4() {
			m.Pods = prefix.Masked()
			break
		}
	}
	if link, err := netip.ParsePrefix(node.Annotations[AnnotationLink]); err == nil && link.Addr().Is4() {
		m.Link = link.Masked()
	}
	if mtu, err := strconv.Atoi(node.Annotations[AnnotationLinkMTU]); err == nil && mtu >= minMTU && mtu <= 65535 {
		m.MTU = mtu
	}
	return m
}

// annotations are what this machine says on its own Node; an empty value takes one away.
func annotations(up uplink, direct bool) map[string]string {
	out := map[string]string{AnnotationLink: "", AnnotationLinkMTU: ""}
	if direct && up.Link.IsValid() {
		out[AnnotationLink] = up.Link.String()
	}
	if up.MTU > 0 {
		out[AnnotationLinkMTU] = strconv.Itoa(up.MTU)
	}
	return out
}

// gateway is the node's own address on the pod network: the first of its range.
func gateway(pods netip.Prefix) netip.Addr { return pods.Masked().Addr().Next() }

// hardwareAddr is the local MAC of a machine's end of the tunnel, made of its pod range.
func hardwareAddr(pods netip.Prefix) net.HardwareAddr {
	b := gateway(pods).As4()
	return net.HardwareAddr{0x0e, 0x58, b[0], b[1], b[2], b[3]}
}
