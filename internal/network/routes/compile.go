package routes

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"gantry.dev/gantry/internal/network/dns"
)

// schemaVersion is the version of the Kubernetes DNS specification that the records follow.
const schemaVersion = "1.1.0"

// versionRecords says which specification is served.
func versionRecords(domain string) []dns.Record {
	return []dns.Record{{Name: "dns-version." + domain, Type: dns.TXT, Target: schemaVersion}}
}

// namespaceRecords makes the namespace's name exist, which pods' names depend on.
func namespaceRecords(namespace, domain string) []dns.Record {
	return []dns.Record{{Name: namespace + ".svc." + domain, Type: dns.Exists}}
}

// serviceRecords compiles one Service: an alias, the records of its addresses, or, when it is
// headless, those of its ready endpoints. IPv6 is left out.
func serviceRecords(svc *corev1.Service, endpointSlices []discoveryv1.EndpointSlice, domain string) []dns.Record {
	base := svc.Name + "." + svc.Namespace + ".svc." + domain
	var out []dns.Record
	switch {
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		target := strings.TrimSuffix(strings.ToLower(svc.Spec.ExternalName), ".")
		if target == "" {
			return nil
		}
		return []dns.Record{{Name: base, Type: dns.CNAME, Target: target}}
	case svc.Spec.ClusterIP == corev1.ClusterIPNone:
		out = headlessRecords(svc, endpointSlices, base)
	default:
		out = clusterRecords(svc, base)
	}
	slices.SortFunc(out, func(a, b dns.Record) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type), a.Addr.Compare(b.Addr),
			cmp.Compare(a.Target, b.Target), cmp.Compare(a.Port, b.Port))
	})
	return slices.Compact(out)
}

// clusterRecords are those of a service with addresses of its own.
func clusterRecords(svc *corev1.Service, base string) []dns.Record {
	var out []dns.Record
	for _, text := range append([]string{svc.Spec.ClusterIP}, svc.Spec.ClusterIPs...) {
		addr, err := netip.ParseAddr(text)
		if err != nil || !addr.Is4() {
			continue
		}
		out = append(out, dns.Record{Name: base, Type: dns.A, Addr: addr},
			dns.Record{Name: dns.ReverseName(addr), Type: dns.PTR, Target: base})
	}
	for _, port := range svc.Spec.Ports {
		if port.Name != "" {
			out = append(out, dns.Record{Name: portName(port.Name, port.Protocol, base), Type: dns.SRV, Target: base, Port: uint16(port.Port)})
		}
	}
	return out
}

// headlessRecords are those of the endpoints. Without one the name still exists, so that
// clients do not take it for a typing error.
func headlessRecords(svc *corev1.Service, endpointSlices []discoveryv1.EndpointSlice, base string) []dns.Record {
	out := []dns.Record{{Name: base, Type: dns.Exists}}
	for i := range endpointSlices {
		slice := &endpointSlices[i]
		if slice.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready && !svc.Spec.PublishNotReadyAddresses {
				continue
			}
			for _, text := range e.Addresses {
				addr, err := netip.ParseAddr(text)
				if err != nil || !addr.Is4() {
					continue
				}
				host := strings.ReplaceAll(addr.String(), ".", "-")
				if e.Hostname != nil && *e.Hostname != "" {
					host = strings.ToLower(*e.Hostname)
				}
				host += "." + base
				out = append(out, dns.Record{Name: base, Type: dns.A, Addr: addr}, dns.Record{Name: host, Type: dns.A, Addr: addr},
					dns.Record{Name: dns.ReverseName(addr), Type: dns.PTR, Target: host})
				for _, port := range slice.Ports {
					if port.Name != nil && *port.Name != "" && port.Port != nil {
						protocol := corev1.ProtocolTCP
						if port.Protocol != nil {
							protocol = *port.Protocol
						}
						out = append(out, dns.Record{Name: portName(*port.Name, protocol, base), Type: dns.SRV, Target: host, Port: uint16(*port.Port)})
					}
				}
			}
		}
	}
	return out
}

func portName(port string, protocol corev1.Protocol, base string) string {
	return "_" + strings.ToLower(port) + "._" + strings.ToLower(string(cmp.Or(protocol, corev1.ProtocolTCP))) + "." + base
}
