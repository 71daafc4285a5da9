package service

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/utils/dump"

	"gantry.dev/gantry/internal/controller"
)

// How Endpoints objects that this controller keeps are told from others.
const (
	labelEndpointsManagedBy = "endpoints.kubernetes.io/managed-by"
	endpointsController     = "endpoint-controller"
)

// maxEndpoints is the most addresses an Endpoints object holds.
const maxEndpoints = 1000

func parseAddress(text string) (discoveryv1.AddressType, error) {
	address, err := netip.ParseAddr(text)
	if err != nil {
		return "", fmt.Errorf("parsing an endpoint's address: %w", err)
	}
	return familyOf(address), nil
}

// subsetsOf is what a Service's pods are as subsets of an Endpoints object.
func subsetsOf(svc *corev1.Service, pods []*corev1.Pod) []corev1.EndpointSubset {
	var loose []corev1.EndpointSubset
	for _, pod := range pods {
		if !published(pod, svc.Spec.PublishNotReadyAddresses) {
			continue
		}
		addresses := addressesOf(pod, families(svc)[0])
		if len(addresses) == 0 {
			continue
		}
		node := pod.Spec.NodeName
		address := corev1.EndpointAddress{
			IP: addresses[0], NodeName: &node, Hostname: hostnameOf(pod, svc),
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		}
		add := func(ports []corev1.EndpointPort) {
			subset := corev1.EndpointSubset{Ports: ports}
			if svc.Spec.PublishNotReadyAddresses || controller.PodReady(pod) {
				subset.Addresses = []corev1.EndpointAddress{address}
			} else {
				subset.NotReadyAddresses = []corev1.EndpointAddress{address}
			}
			loose = append(loose, subset)
		}
		if len(svc.Spec.Ports) == 0 && svc.Spec.ClusterIP == corev1.ClusterIPNone {
			add(nil)
		}
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			if number, ok := portOf(pod, p); ok {
				add([]corev1.EndpointPort{{Name: p.Name, Port: number, Protocol: p.Protocol, AppProtocol: p.AppProtocol}})
			}
		}
	}
	return packSubsets(loose)
}

// portID is an EndpointPort that can be compared.
type portID struct {
	name, appProtocol string
	number            int32
	protocol          corev1.Protocol
}

// addressOn is an address as a port sees it.
type addressOn struct {
	address corev1.EndpointAddress
	ready   bool
}

// packSubsets joins ports that have the same addresses. An address that is not ready
// anywhere on a port is not ready there.
func packSubsets(loose []corev1.EndpointSubset) []corev1.EndpointSubset {
	byPort := map[portID]map[string]addressOn{}
	ports := map[portID]*corev1.EndpointPort{}
	note := func(port *corev1.EndpointPort, address corev1.EndpointAddress, isReady bool) {
		id := portID{number: -1}
		if port != nil {
			id = portID{port.Name, deref(port.AppProtocol), port.Port, port.Protocol}
		}
		if byPort[id] == nil {
			byPort[id], ports[id] = map[string]addressOn{}, port
		}
		key := addressKey(&address)
		if have, ok := byPort[id][key]; ok {
			isReady = isReady && have.ready
		}
		byPort[id][key] = addressOn{address, isReady}
	}
	for i := range loose {
		subset := &loose[i]
		on := make([]*corev1.EndpointPort, 0, 1)
		for j := range subset.Ports {
			on = append(on, &subset.Ports[j])
		}
		if len(on) == 0 {
			on = append(on, nil)
		}
		for _, port := range on {
			for _, address := range subset.Addresses {
				note(port, address, true)
			}
			for _, address := range subset.NotReadyAddresses {
				note(port, address, false)
			}
		}
	}
	return joinPorts(byPort, ports)
}

func addressKey(a *corev1.EndpointAddress) string {
	if a.TargetRef == nil {
		return a.IP
	}
	return a.IP + " " + string(a.TargetRef.UID)
}

func joinPorts(byPort map[portID]map[string]addressOn, ports map[portID]*corev1.EndpointPort) []corev1.EndpointSubset {
	joined := map[string]*corev1.EndpointSubset{}
	for id, addresses := range byPort {
		keys := slices.Sorted(maps.Keys(addresses))
		var all strings.Builder
		for _, key := range keys {
			fmt.Fprintf(&all, "%s %t\n", key, addresses[key].ready)
		}
		subset := joined[all.String()]
		if subset == nil {
			subset = &corev1.EndpointSubset{}
			for _, key := range keys {
				if on := addresses[key]; on.ready {
					subset.Addresses = append(subset.Addresses, on.address)
				} else {
					subset.NotReadyAddresses = append(subset.NotReadyAddresses, on.address)
				}
			}
			joined[all.String()] = subset
		}
		if port := ports[id]; port != nil {
			subset.Ports = append(subset.Ports, *port)
		}
	}
	packed := make([]corev1.EndpointSubset, 0, len(joined))
	for _, subset := range joined {
		slices.SortFunc(subset.Addresses, compareAddresses)
		slices.SortFunc(subset.NotReadyAddresses, compareAddresses)
		slices.SortFunc(subset.Ports, func(a, b corev1.EndpointPort) int { return bytes.Compare(hashOf(a), hashOf(b)) })
		packed = append(packed, *subset)
	}
	slices.SortFunc(packed, func(a, b corev1.EndpointSubset) int { return bytes.Compare(hashOf(a), hashOf(b)) })
	return packed
}

func compareAddresses(a, b corev1.EndpointAddress) int {
	uid := func(x *corev1.EndpointAddress) string {
		if x.TargetRef == nil {
			return ""
		}
		return string(x.TargetRef.UID)
	}
	return cmp.Or(strings.Compare(a.IP, b.IP), strings.Compare(uid(&a), uid(&b)))
}

// hashOf orders ports and subsets as upstream does: by a hash of what they say.
func hashOf(value any) []byte {
	sum := fnv.New128a()
	_, _ = fmt.Fprintf(sum, "%v", dump.ForHash(value))
	return sum.Sum(nil)
}

// planEndpoints returns the Endpoints object a Service should have, or nil if the one
// there is (which may be nil) says it already. trigger is the annotation's new value.
func planEndpoints(svc *corev1.Service, current *corev1.Endpoints, subsets []corev1.EndpointSubset, trigger string) *corev1.Endpoints {
	next := &corev1.Endpoints{}
	if current != nil {
		next = current.DeepCopy()
	}
	next.Namespace, next.Name = svc.Namespace, svc.Name
	next.Subsets = subsets
	over := truncate(next)
	next.Labels = maps.Clone(svc.Labels)
	if next.Labels == nil {
		next.Labels = map[string]string{}
	}
	delete(next.Labels, corev1.IsHeadlessService)
	if headless(svc) {
		next.Labels[corev1.IsHeadlessService] = ""
	}
	next.Labels[labelEndpointsManagedBy] = endpointsController
	if current != nil && apiequality.Semantic.DeepEqual(current.Subsets, next.Subsets) && maps.Equal(current.Labels, next.Labels) &&
		(current.Annotations[corev1.EndpointsOverCapacity] != "") == over {
		return nil
	}
	if next.Annotations == nil {
		next.Annotations = map[string]string{}
	}
	setOrDelete(next.Annotations, corev1.EndpointsLastChangeTriggerTime, trigger)
	setOrDelete(next.Annotations, corev1.EndpointsOverCapacity, map[bool]string{true: "truncated"}[over])
	return next
}

func setOrDelete(annotations map[string]string, key, value string) {
	if value == "" {
		delete(annotations, key)
	} else {
		annotations[key] = value
	}
}

// truncate cuts the addresses to the limit: ready ones stay before others, and subsets
// lose in proportion to their size.
func truncate(endpoints *corev1.Endpoints) bool {
	readyCount, otherCount := 0, 0
	for i := range endpoints.Subsets {
		readyCount += len(endpoints.Subsets[i].Addresses)
		otherCount += len(endpoints.Subsets[i].NotReadyAddresses)
	}
	if readyCount+otherCount <= maxEndpoints {
		return false
	}
	cutReady := readyCount > maxEndpoints
	room, total := maxEndpoints-readyCount, otherCount
	if cutReady {
		room, total = maxEndpoints, readyCount
	}
	left := room
	cut := func(addresses []corev1.EndpointAddress) []corev1.EndpointAddress {
		share := int(math.Ceil(float64(len(addresses)) / float64(total) * float64(room)))
		share = min(share, left, len(addresses))
		left -= share
		return addresses[:share]
	}
	for i := range endpoints.Subsets {
		subset := &endpoints.Subsets[i]
		if cutReady {
			subset.Addresses, subset.NotReadyAddresses = cut(subset.Addresses), nil
		} else {
			subset.NotReadyAddresses = cut(subset.NotReadyAddresses)
		}
	}
	return true
}
