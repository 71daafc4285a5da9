package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"gantry.dev/gantry/internal/network/gateway"
)

// h2cSuffix ends the id of a service that is spoken to in HTTP/2 because a GRPCRoute refers to it.
const h2cSuffix = "#h2c"

// serviceID names a port of a service in the tables.
func serviceID(key Key, port int32) string { return fmt.Sprintf("%s:%d", key, port) }

// ServiceKey is the service of an id in the tables.
func ServiceKey(id string) Key {
	name, _, _ := strings.Cut(id, ":")
	namespace, name, _ := strings.Cut(name, "/")
	return Key{Namespace: namespace, Name: name}
}

// labels that go to logs and counts, by the name that they have there.
func labelsOf(svc *corev1.Service) map[string]string {
	var out map[string]string
	for _, short := range []string{"app", "process", "release"} {
		if v := svc.Labels["gantry.dev/"+short]; v != "" {
			if out == nil {
				out = map[string]string{}
			}
			out[short] = v
		}
	}
	return out
}

// protocolOf is how a port of a service is spoken to; false for what a gateway of HTTP cannot.
func protocolOf(port *corev1.ServicePort) (string, bool) {
	if cmp.Or(port.Protocol, corev1.ProtocolTCP) != corev1.ProtocolTCP {
		return "", false
	}
	if port.AppProtocol == nil {
		return "", true
	}
	switch strings.ToLower(*port.AppProtocol) {
	case "kubernetes.io/h2c", "h2c", "grpc":
		return gateway.BackendH2C, true
	case "https", "kubernetes.io/wss":
		return gateway.BackendHTTPS, true
	case "tcp", "tls", "udp":
		return "", false
	}
	return "", true
}

// service compiles one port of a service.
func (o *Objects) service(key Key, port *corev1.ServicePort, protocol string) gateway.Service {
	svc := o.Services[key]
	out := gateway.Service{Namespace: key.Namespace, Name: key.Name, Port: int(port.Port), Protocol: protocol, Labels: labelsOf(svc),
		Endpoints: o.endpoints(key, port.Name)}
	if hold, err := time.ParseDuration(svc.Annotations[AnnotationHold]); err == nil && hold > 0 {
		out.Hold = hold
	}
	if svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		out.Affinity = &gateway.Affinity{ClientIP: true}
	}
	return out
}

// Endpoints are those of a service in the tables, by its id.
func (o *Objects) Endpoints(id string) []gateway.Endpoint {
	key := ServiceKey(id)
	svc := o.Services[key]
	if svc == nil {
		return nil
	}
	for i := range svc.Spec.Ports {
		if strings.TrimSuffix(id, h2cSuffix) == serviceID(key, svc.Spec.Ports[i].Port) {
			return o.endpoints(key, svc.Spec.Ports[i].Name)
		}
	}
	return nil
}

// endpoints lists those of a port that get requests, or still answer old ones.
func (o *Objects) endpoints(key Key, portName string) []gateway.Endpoint {
	seen := map[netip.AddrPort]int{}
	var out []gateway.Endpoint
	for _, slice := range o.Slices[key] {
		if slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		port := slicePort(slice, portName)
		if port == 0 {
			continue
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			ready := e.Conditions.Ready == nil || *e.Conditions.Ready
			terminating := e.Conditions.Terminating != nil && *e.Conditions.Terminating
			serving := e.Conditions.Serving == nil || *e.Conditions.Serving
			if len(e.Addresses) == 0 || !ready && (!terminating || !serving) {
				continue
			}
			addr, err := netip.ParseAddr(e.Addresses[0])
			if err != nil {
				continue
			}
			at := gateway.Endpoint{Address: netip.AddrPortFrom(addr, port), Ready: true, Terminating: terminating && !ready}
			if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
				at.Pod = e.TargetRef.Name
			}
			if i, twice := seen[at.Address]; twice { // slices that are being rearranged may both have it
				out[i].Terminating = out[i].Terminating && !ready
				continue
			}
			seen[at.Address] = len(out)
			out = append(out, at)
		}
	}
	slices.SortFunc(out, func(a, b gateway.Endpoint) int { return a.Address.Compare(b.Address) })
	return out
}

func slicePort(slice *discoveryv1.EndpointSlice, name string) uint16 {
	for _, p := range slice.Ports {
		if p.Port != nil && (p.Name == nil && name == "" || p.Name != nil && *p.Name == name) &&
			(p.Protocol == nil || *p.Protocol == corev1.ProtocolTCP) {
			return uint16(*p.Port) //nolint:gosec // validated by the API
		}
	}
	return 0
}
