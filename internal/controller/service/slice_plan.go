package service

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What the labels of a slice say about who keeps it.
const (
	sliceController  = "endpointslice-controller.k8s.io"
	mirrorController = "endpointslicemirroring-controller.k8s.io"
)

// maxPerSlice is how many endpoints a slice holds (upstream's --max-endpoints-per-slice
// and --mirroring-max-endpoints-per-subset).
const (
	maxPerSlice  = 100
	maxMirrored  = 1000
	triggerLabel = corev1.EndpointsLastChangeTriggerTime
)

// slicePlan is the changes that make the slices say what they should.
type slicePlan struct {
	create, update, remove []*discoveryv1.EndpointSlice
}

// sliceOwner is what the slices of one object have in common.
type sliceOwner struct {
	namespace, name string
	reference       metav1.OwnerReference
	labels          map[string]string // all that slices carry
	limit           int               // endpoints in a slice
	placeholders    []discoveryv1.AddressType
}

// portsKey is equal for equal ports.
func portsKey(ports []discoveryv1.EndpointPort) string {
	lines := make([]string, len(ports))
	for i, p := range ports {
		lines[i] = fmt.Sprintf("%s/%d/%s/%s", deref(p.Name), deref(p.Port), deref(p.Protocol), deref(p.AppProtocol))
	}
	slices.Sort(lines)
	return strings.Join(lines, " ")
}

func deref[T any](p *T) (value T) {
	if p != nil {
		value = *p
	}
	return value
}

// endpointKey is equal for two states of one endpoint.
func endpointKey(e *discoveryv1.Endpoint) string {
	addresses := slices.Sorted(slices.Values(e.Addresses))
	key := strings.Join(addresses, " ") + "|" + deref(e.Hostname)
	if e.TargetRef != nil {
		key += "|" + e.TargetRef.Namespace + "/" + e.TargetRef.Name
	}
	return key
}

// planSlices changes as few slices as it can: what is there and still wanted stays where
// it is, new endpoints fill slices that change anyway, then one that has room for all,
// then new slices.
func planSlices(owner sliceOwner, existing []*discoveryv1.EndpointSlice, groups []group) slicePlan {
	var plan slicePlan
	byKey := map[string][]*discoveryv1.EndpointSlice{}
	for _, slice := range existing {
		if !ownedBy(slice, owner.reference) {
			plan.remove = append(plan.remove, slice)
			continue
		}
		key := string(slice.AddressType) + portsKey(slice.Ports)
		byKey[key] = append(byKey[key], slice)
	}
	kept := map[discoveryv1.AddressType]int{} // slices of a family after this
	for _, g := range groups {
		key := string(g.family) + portsKey(g.ports)
		p := planGroup(owner, byKey[key], g)
		kept[g.family] += len(byKey[key]) + len(p.create) - len(p.remove)
		delete(byKey, key)
		plan.create = append(plan.create, p.create...)
		plan.update = append(plan.update, p.update...)
		plan.remove = append(plan.remove, p.remove...)
	}
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		plan.remove = append(plan.remove, byKey[key]...)
	}
	for _, family := range owner.placeholders {
		if kept[family] == 0 {
			plan.placeholder(owner, family)
		}
	}
	plan.reuse(owner)
	return plan
}

func ownedBy(slice *discoveryv1.EndpointSlice, reference metav1.OwnerReference) bool {
	return slices.ContainsFunc(slice.OwnerReferences, func(ref metav1.OwnerReference) bool {
		return ref.UID == reference.UID && ref.Kind == reference.Kind && ref.APIVersion == reference.APIVersion
	})
}

// planGroup plans the slices of one group; existing are those with its ports and family.
func planGroup(owner sliceOwner, existing []*discoveryv1.EndpointSlice, g group) slicePlan {
	wanted := map[string]int{}
	for i := range g.endpoints {
		wanted[endpointKey(&g.endpoints[i])] = i
	}
	var plan slicePlan
	var unchanged []*discoveryv1.EndpointSlice
	for _, slice := range existing {
		endpoints := make([]discoveryv1.Endpoint, 0, len(slice.Endpoints))
		changed := !maps.Equal(slice.Labels, owner.labels)
		for i := range slice.Endpoints {
			at, ok := wanted[endpointKey(&slice.Endpoints[i])]
			if !ok {
				changed = true
				continue
			}
			delete(wanted, endpointKey(&slice.Endpoints[i]))
			changed = changed || !apiequality.Semantic.DeepEqual(slice.Endpoints[i], g.endpoints[at])
			endpoints = append(endpoints, g.endpoints[at])
		}
		switch {
		case len(endpoints) == 0 && len(slice.Endpoints) > 0:
			plan.remove = append(plan.remove, slice)
		case changed:
			next := slice.DeepCopy()
			next.Endpoints, next.Labels = endpoints, owner.labels
			plan.update = append(plan.update, next)
		default:
			unchanged = append(unchanged, slice)
		}
	}
	// What is left is new, in the order it came in.
	var left []discoveryv1.Endpoint
	for i := range g.endpoints {
		if at, ok := wanted[endpointKey(&g.endpoints[i])]; ok && at == i {
			left = append(left, g.endpoints[i])
		}
	}
	plan.fill(owner, unchanged, g, left)
	return plan
}

// fill finds room for endpoints.
func (p *slicePlan) fill(owner sliceOwner, unchanged []*discoveryv1.EndpointSlice, g group, left []discoveryv1.Endpoint) {
	fullest := slices.Clone(p.update)
	slices.SortStableFunc(fullest, func(a, b *discoveryv1.EndpointSlice) int { return len(b.Endpoints) - len(a.Endpoints) })
	for _, slice := range fullest {
		left = pour(slice, left, owner.limit)
	}
	if len(left) > 0 && len(left) < owner.limit {
		var best *discoveryv1.EndpointSlice
		for _, slice := range unchanged {
			if len(slice.Endpoints)+len(left) <= owner.limit && (best == nil || len(slice.Endpoints) > len(best.Endpoints)) {
				best = slice
			}
		}
		if best != nil {
			next := best.DeepCopy()
			left = pour(next, left, owner.limit)
			p.update = append(p.update, next)
		}
	}
	for len(left) > 0 {
		slice := newSlice(owner, g.family, g.ports)
		left = pour(slice, left, owner.limit)
		p.create = append(p.create, slice)
	}
}

// pour moves endpoints into a slice until it is full and returns the rest.
func pour(slice *discoveryv1.EndpointSlice, left []discoveryv1.Endpoint, limit int) []discoveryv1.Endpoint {
	count := min(len(left), max(0, limit-len(slice.Endpoints)))
	slice.Endpoints = append(slice.Endpoints, left[:count]...)
	return left[count:]
}

func newSlice(owner sliceOwner, family discoveryv1.AddressType, ports []discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: owner.namespace, GenerateName: prefix(owner.name),
			Labels: owner.labels, OwnerReferences: []metav1.OwnerReference{owner.reference},
		},
		AddressType: family, Ports: ports, Endpoints: []discoveryv1.Endpoint{},
	}
}

// prefix keeps a generated name within a DNS name's 253 bytes: five are the suffix.
func prefix(name string) string {
	if len(name) > 253-1 {
		return name
	}
	return name + "-"
}

// placeholder keeps one empty slice for a Service without endpoints, so that a reader
// can tell "none" from "not yet known".
func (p *slicePlan) placeholder(owner sliceOwner, family discoveryv1.AddressType) {
	for i, slice := range p.remove {
		if slice.AddressType == family && len(slice.Ports) == 0 && len(slice.Endpoints) == 0 &&
			ownedBy(slice, owner.reference) && maps.Equal(slice.Labels, owner.labels) {
			p.remove = slices.Delete(p.remove, i, i+1)
			return
		}
	}
	p.create = append(p.create, newSlice(owner, family, []discoveryv1.EndpointPort{}))
}

// reuse turns a removal and a creation into one update.
func (p *slicePlan) reuse(owner sliceOwner) {
	for i := 0; i < len(p.remove) && len(p.create) > 0; {
		old, fresh := p.remove[i], p.create[len(p.create)-1]
		if old.AddressType != fresh.AddressType || !ownedBy(old, owner.reference) {
			i++
			continue
		}
		next := old.DeepCopy()
		next.Labels, next.Ports, next.Endpoints = fresh.Labels, fresh.Ports, fresh.Endpoints
		p.update = append(p.update, next)
		p.create = p.create[:len(p.create)-1]
		p.remove = slices.Delete(p.remove, i, i+1)
	}
}

// sliceLabels are a Service's labels and the three that slices have of their own.
func sliceLabels(svc *corev1.Service) map[string]string {
	labels := map[string]string{}
	for key, value := range svc.Labels {
		labels[key] = value
	}
	delete(labels, corev1.IsHeadlessService)
	if headless(svc) {
		labels[corev1.IsHeadlessService] = ""
	}
	labels[discoveryv1.LabelServiceName] = svc.Name
	labels[discoveryv1.LabelManagedBy] = sliceController
	return labels
}

// mirroredAnnotations are those that slices take over from Endpoints made by hand.
func mirroredAnnotations(endpoints *corev1.Endpoints) map[string]string {
	own := maps.Clone(endpoints.Annotations)
	delete(own, corev1.EndpointsLastChangeTriggerTime)
	delete(own, corev1.LastAppliedConfigAnnotation)
	return own
}

// annotate gives all slices that stay the annotations, besides what other changes they need.
func (p *slicePlan) annotate(existing []*discoveryv1.EndpointSlice, annotations map[string]string) {
	touched := map[string]bool{}
	for _, slice := range p.create {
		slice.Annotations = maps.Clone(annotations)
	}
	for _, slice := range p.update {
		touched[slice.Name] = true
		slice.Annotations = maps.Clone(annotations)
	}
	for _, slice := range p.remove {
		touched[slice.Name] = true
	}
	for _, slice := range existing {
		now := maps.Clone(slice.Annotations)
		delete(now, triggerLabel)
		if !touched[slice.Name] && !maps.Equal(now, annotations) {
			next := slice.DeepCopy()
			next.Annotations = maps.Clone(annotations)
			p.update = append(p.update, next)
		}
	}
}

// mirrorGroups are the endpoints of an Endpoints object made by hand; skipped are those beyond what
// is mirrored of a subset.
func mirrorGroups(endpoints *corev1.Endpoints) (groups []group, skipped int) {
	for _, subset := range endpoints.Subsets {
		ports := []discoveryv1.EndpointPort{}
		for i := range subset.Ports {
			p := &subset.Ports[i]
			ports = append(ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
		}
		left := maxMirrored
		for _, part := range []struct {
			addresses []corev1.EndpointAddress
			ready     bool
		}{{subset.Addresses, true}, {subset.NotReadyAddresses, false}} {
			for i := range part.addresses {
				if left == 0 {
					skipped += len(part.addresses) - i
					break
				}
				if addMirrored(&groups, ports, &part.addresses[i], part.ready) {
					left--
				}
			}
		}
	}
	return groups, skipped
}

func addMirrored(groups *[]group, ports []discoveryv1.EndpointPort, address *corev1.EndpointAddress, isReady bool) bool {
	parsed, err := parseAddress(address.IP)
	if err != nil {
		return false // validation lets no such address in
	}
	endpoint := discoveryv1.Endpoint{
		Addresses:  []string{address.IP},
		Conditions: discoveryv1.EndpointConditions{Ready: &isReady},
		TargetRef:  address.TargetRef, NodeName: address.NodeName,
	}
	if address.Hostname != "" {
		endpoint.Hostname = &address.Hostname
	}
	key := portsKey(ports)
	for i := range *groups {
		if g := &(*groups)[i]; g.family == parsed && portsKey(g.ports) == key {
			g.endpoints = append(g.endpoints, endpoint)
			return true
		}
	}
	*groups = append(*groups, group{family: parsed, ports: ports, endpoints: []discoveryv1.Endpoint{endpoint}})
	return true
}
