package service

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"gantry.dev/gantry/internal/controller"
)

// group is endpoints that can share a slice: they have the same ports and address family.
type group struct {
	family    discoveryv1.AddressType
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
}

// families returns the address families a Service publishes.
func families(svc *corev1.Service) []discoveryv1.AddressType {
	var out []discoveryv1.AddressType
	for _, family := range svc.Spec.IPFamilies {
		if family == corev1.IPv6Protocol {
			out = append(out, discoveryv1.AddressTypeIPv6)
		} else {
			out = append(out, discoveryv1.AddressTypeIPv4)
		}
	}
	if len(out) > 0 {
		return out
	}
	// Not defaulted: what the cluster IP says, else both.
	if address, err := netip.ParseAddr(svc.Spec.ClusterIP); err == nil {
		return []discoveryv1.AddressType{familyOf(address)}
	}
	return []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}
}

func familyOf(address netip.Addr) discoveryv1.AddressType {
	if address.Is4() || address.Is4In6() {
		return discoveryv1.AddressTypeIPv4
	}
	return discoveryv1.AddressTypeIPv6
}

// headless says whether a Service has no address of its own.
func headless(svc *corev1.Service) bool {
	return svc.Spec.ClusterIP == corev1.ClusterIPNone || svc.Spec.ClusterIP == ""
}

// published says whether a pod can be an endpoint at all.
func published(pod *corev1.Pod, terminatingToo bool) bool {
	switch {
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return false
	case pod.Status.PodIP == "" && len(pod.Status.PodIPs) == 0:
		return false
	}
	return terminatingToo || pod.DeletionTimestamp == nil
}

// addressesOf returns a pod's addresses of one family in canonical form.
func addressesOf(pod *corev1.Pod, family discoveryv1.AddressType) []string {
	var out []string
	for _, ip := range pod.Status.PodIPs {
		if address, err := netip.ParseAddr(ip.IP); err == nil && familyOf(address) == family {
			out = append(out, address.Unmap().String())
		}
	}
	return out
}

// hostnameOf is the name a pod has under a Service, which gives it a DNS record.
func hostnameOf(pod *corev1.Pod, svc *corev1.Service) string {
	if pod.Spec.Subdomain != svc.Name || pod.Namespace != svc.Namespace {
		return ""
	}
	return pod.Spec.Hostname
}

// portOf finds the number of a Service port on a pod; a name may mean another number on
// every pod.
func portOf(pod *corev1.Pod, port *corev1.ServicePort) (int32, bool) {
	if port.TargetPort.Type == intstr.Int {
		return port.TargetPort.IntVal, true
	}
	find := func(c *corev1.Container) (int32, bool) {
		for i := range c.Ports {
			if p := &c.Ports[i]; p.Name == port.TargetPort.StrVal && p.Protocol == port.Protocol {
				return p.ContainerPort, true
			}
		}
		return 0, false
	}
	for i := range pod.Spec.Containers {
		if number, ok := find(&pod.Spec.Containers[i]); ok {
			return number, true
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		if number, ok := find(c); ok {
			return number, true
		}
	}
	return 0, false
}

func slicePorts(svc *corev1.Service, pod *corev1.Pod) []discoveryv1.EndpointPort {
	ports := []discoveryv1.EndpointPort{}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if number, ok := portOf(pod, p); ok {
			ports = append(ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &number, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
		}
	}
	return ports
}

// endpointsOf groups the endpoints that pods are for a Service. zoneOf tells a node's
// zone and whether the node exists; a pod on a node that is gone is left out.
func endpointsOf(svc *corev1.Service, pods []*corev1.Pod, zoneOf func(node string) (string, bool)) (groups []group, nodesMissing []string) {
	at := map[string]int{}
	for _, pod := range pods {
		if !published(pod, true) {
			continue
		}
		zone, exists := zoneOf(pod.Spec.NodeName)
		if !exists && !svc.Spec.PublishNotReadyAddresses {
			nodesMissing = append(nodesMissing, pod.Spec.NodeName)
			continue
		}
		ports := slicePorts(svc, pod)
		for _, family := range families(svc) {
			addresses := addressesOf(pod, family)
			if len(addresses) == 0 {
				continue
			}
			key := string(family) + portsKey(ports)
			if _, ok := at[key]; !ok {
				at[key] = len(groups)
				groups = append(groups, group{family: family, ports: ports})
			}
			g := &groups[at[key]]
			g.endpoints = append(g.endpoints, endpointOf(svc, pod, zone, addresses))
		}
	}
	return groups, nodesMissing
}

func endpointOf(svc *corev1.Service, pod *corev1.Pod, zone string, addresses []string) discoveryv1.Endpoint {
	serving, terminating := controller.PodReady(pod), pod.DeletionTimestamp != nil
	// A terminating pod is never ready, unless all pods are published ready or not.
	isReady := svc.Spec.PublishNotReadyAddresses || (serving && !terminating)
	endpoint := discoveryv1.Endpoint{
		Addresses:  addresses,
		Conditions: discoveryv1.EndpointConditions{Ready: &isReady, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
	}
	if pod.Spec.NodeName != "" {
		node := pod.Spec.NodeName
		endpoint.NodeName = &node
	}
	if zone != "" {
		endpoint.Zone = &zone
	}
	if hostname := hostnameOf(pod, svc); hostname != "" {
		endpoint.Hostname = &hostname
	}
	if isReady {
		endpoint.Hints = hintsFor(svc, &endpoint)
	}
	return endpoint
}

// hintsFor says who should use an endpoint, if the Service asks for near ones.
func hintsFor(svc *corev1.Service, endpoint *discoveryv1.Endpoint) *discoveryv1.EndpointHints {
	if svc.Spec.TrafficDistribution == nil {
		return nil
	}
	near := *svc.Spec.TrafficDistribution
	if !slices.Contains([]string{corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode}, near) {
		return nil
	}
	var hints discoveryv1.EndpointHints
	if endpoint.Zone != nil {
		hints.ForZones = []discoveryv1.ForZone{{Name: *endpoint.Zone}}
	}
	if endpoint.NodeName != nil && near == corev1.ServiceTrafficDistributionPreferSameNode {
		hints.ForNodes = []discoveryv1.ForNode{{Name: *endpoint.NodeName}}
	}
	if hints.ForZones == nil && hints.ForNodes == nil {
		return nil
	}
	return &hints
}
