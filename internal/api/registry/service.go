package registry

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"

	"gantry.dev/gantry/internal/store"
)

// serviceHooks give a Service its cluster IP and node ports before it is validated, take
// them back when it is not stored, and free them when it goes.
func (r *Registry) serviceHooks() hooks {
	return hooks{
		begin: func(ctx context.Context, obj, old runtime.Object, dryRun bool) (func(bool), error) {
			svc := obj.(*api.Service)
			var before *api.Service
			if old != nil {
				before = old.(*api.Service)
				patchAllocated(svc, before)
			}
			normalizeClusterIPs(svc, before)
			return r.alloc.allocate(ctx, svc, before, dryRun)
		},
		afterDelete: func(ctx context.Context, obj store.Object) {
			r.alloc.releaseAll(ctx, obj.(*corev1.Service))
		},
	}
}

func needsClusterIP(svc *api.Service) bool {
	switch svc.Spec.Type {
	case api.ServiceTypeClusterIP, api.ServiceTypeNodePort, api.ServiceTypeLoadBalancer:
		return true
	}
	return false
}

func needsNodePort(svc *api.Service) bool {
	if svc.Spec.Type == api.ServiceTypeNodePort {
		return true
	}
	lb := svc.Spec.AllocateLoadBalancerNodePorts
	return svc.Spec.Type == api.ServiceTypeLoadBalancer && (lb == nil || *lb)
}

func needsHealthCheckPort(svc *api.Service) bool {
	return svc.Spec.Type == api.ServiceTypeLoadBalancer && svc.Spec.ExternalTrafficPolicy == api.ServiceExternalTrafficPolicyLocal
}

// patchAllocated keeps what was allocated before where an update leaves it out.
func patchAllocated(svc, old *api.Service) {
	if needsClusterIP(old) && needsClusterIP(svc) {
		if svc.Spec.ClusterIP == "" {
			svc.Spec.ClusterIP = old.Spec.ClusterIP
		}
		if len(svc.Spec.ClusterIPs) == 0 && svc.Spec.ClusterIP == old.Spec.ClusterIP {
			svc.Spec.ClusterIPs = slices.Clone(old.Spec.ClusterIPs)
		}
	}
	if needsNodePort(old) && needsNodePort(svc) {
		type portKey struct {
			protocol api.Protocol
			port     int32
		}
		used := make(map[int32]bool)
		for _, p := range svc.Spec.Ports {
			used[p.NodePort] = true
		}
		before := make(map[portKey]int32)
		for _, p := range old.Spec.Ports {
			before[portKey{p.Protocol, p.Port}] = p.NodePort
		}
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			if was := before[portKey{p.Protocol, p.Port}]; p.NodePort == 0 && !used[was] {
				p.NodePort = was
			}
		}
	}
	if needsHealthCheckPort(old) && needsHealthCheckPort(svc) && svc.Spec.HealthCheckNodePort == 0 {
		svc.Spec.HealthCheckNodePort = old.Spec.HealthCheckNodePort
	}
}

// normalizeClusterIPs keeps clusterIP and clusterIPs[0] the same where a client set only one
// of them (Kubernetes API, ServiceSpec.clusterIPs).
func normalizeClusterIPs(svc, old *api.Service) {
	if old == nil {
		if svc.Spec.ClusterIP != "" && len(svc.Spec.ClusterIPs) == 0 {
			svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
		}
		return
	}
	sameList := slices.Equal(svc.Spec.ClusterIPs, old.Spec.ClusterIPs)
	switch {
	case svc.Spec.ClusterIP == old.Spec.ClusterIP:
	case old.Spec.ClusterIP != "" && svc.Spec.ClusterIP == "" && sameList:
		svc.Spec.ClusterIPs = nil
	case sameList || len(svc.Spec.ClusterIPs) == 0:
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	}
	if old.Spec.ClusterIP == svc.Spec.ClusterIP && len(old.Spec.ClusterIPs) > 0 && len(svc.Spec.ClusterIPs) == 0 && svc.Spec.ClusterIP != "" {
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	}
}

// setFamilies fills ipFamilyPolicy and ipFamilies for a cluster of one family.
func (a *serviceAllocator) setFamilies(svc, old *api.Service) error {
	if svc.Spec.Type == api.ServiceTypeExternalName {
		return nil
	}
	headlessBare := svc.Spec.ClusterIP == api.ClusterIPNone && len(svc.Spec.Selector) == 0
	if svc.Spec.IPFamilyPolicy == nil {
		policy := api.IPFamilyPolicySingleStack
		if headlessBare {
			policy = api.IPFamilyPolicyRequireDualStack
		}
		if old != nil && old.Spec.IPFamilyPolicy != nil {
			policy = *old.Spec.IPFamilyPolicy
		}
		svc.Spec.IPFamilyPolicy = &policy
	}
	if errs := validation.ValidateServiceClusterIPsRelatedFields(svc, old); len(errs) > 0 {
		return apierrors.NewInvalid(api.Kind("Service"), svc.Name, errs)
	}
	if len(svc.Spec.IPFamilies) == 0 {
		svc.Spec.IPFamilies = []api.IPFamily{a.family}
	}
	single := *svc.Spec.IPFamilyPolicy == api.IPFamilyPolicySingleStack
	if headlessBare {
		if !single && len(svc.Spec.IPFamilies) == 1 {
			svc.Spec.IPFamilies = append(svc.Spec.IPFamilies, otherFamily(svc.Spec.IPFamilies[0]))
		}
		return nil
	}
	var errs field.ErrorList
	spec := field.NewPath("spec")
	if *svc.Spec.IPFamilyPolicy == api.IPFamilyPolicyRequireDualStack {
		errs = append(errs, field.Invalid(spec.Child("ipFamilyPolicy"), svc.Spec.IPFamilyPolicy, "this cluster is not configured for dual-stack services"))
	}
	for i, family := range svc.Spec.IPFamilies {
		if family != a.family {
			errs = append(errs, field.Invalid(spec.Child("ipFamilies").Index(i), family, "not configured on this cluster"))
		}
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(api.Kind("Service"), svc.Name, errs)
	}
	return nil
}

func otherFamily(family api.IPFamily) api.IPFamily {
	if family == api.IPv4Protocol {
		return api.IPv6Protocol
	}
	return api.IPv4Protocol
}

// allocate gives svc what it needs beyond what old has. finish(true) frees what only old
// had, finish(false) what only svc got.
func (a *serviceAllocator) allocate(ctx context.Context, svc, old *api.Service, dryRun bool) (func(bool), error) {
	if err := a.setFamilies(svc, old); err != nil {
		return nil, err
	}
	gained := &holding{allocator: a, dryRun: dryRun}
	if err := a.gain(ctx, svc, old, gained); err != nil {
		gained.release(ctx)
		return nil, err
	}
	return func(stored bool) {
		switch {
		case !stored:
			gained.release(ctx)
		case old != nil && !dryRun:
			a.releaseUnused(ctx, svc, old)
		}
	}, nil
}

func (a *serviceAllocator) gain(ctx context.Context, svc, old *api.Service, gained *holding) error {
	hadIP := old != nil && needsClusterIP(old)
	if needsClusterIP(svc) && !hadIP && svc.Spec.ClusterIP != api.ClusterIPNone {
		ip, err := a.takeIP(ctx, svc, gained)
		if err != nil {
			return err
		}
		svc.Spec.ClusterIP, svc.Spec.ClusterIPs = ip, []string{ip}
	}
	var held []int32
	if old != nil {
		held = nodePorts(old)
	}
	if needsNodePort(svc) {
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			if p.NodePort != 0 && (slices.Contains(held, p.NodePort) || slices.Contains(gained.ports, p.NodePort)) {
				continue // two protocols may share a port number
			}
			port, err := a.takePort(ctx, p.NodePort, gained)
			if err != nil {
				return invalidPort(svc, field.NewPath("spec", "ports").Index(i).Child("nodePort"), p.NodePort, err)
			}
			p.NodePort = port
		}
	}
	hadCheck := old != nil && needsHealthCheckPort(old)
	if needsHealthCheckPort(svc) && !hadCheck {
		port, err := a.takePort(ctx, svc.Spec.HealthCheckNodePort, gained)
		if err != nil {
			return invalidPort(svc, field.NewPath("spec", "healthCheckNodePort"), svc.Spec.HealthCheckNodePort, err)
		}
		svc.Spec.HealthCheckNodePort = port
	}
	return nil
}

func invalidPort(svc *api.Service, path *field.Path, port int32, err error) error {
	return apierrors.NewInvalid(api.Kind("Service"), svc.Name, field.ErrorList{field.Invalid(path, port, err.Error())})
}

// nodePorts lists the ports that the service holds, the health check's included.
func nodePorts(svc *api.Service) []int32 {
	var ports []int32
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 && !slices.Contains(ports, p.NodePort) {
			ports = append(ports, p.NodePort)
		}
	}
	if svc.Spec.HealthCheckNodePort != 0 {
		ports = append(ports, svc.Spec.HealthCheckNodePort)
	}
	return ports
}

func (a *serviceAllocator) releaseUnused(ctx context.Context, svc, old *api.Service) {
	unused := &holding{allocator: a}
	if old.Spec.ClusterIP != svc.Spec.ClusterIP && old.Spec.ClusterIP != "" && old.Spec.ClusterIP != api.ClusterIPNone {
		unused.ips = []string{old.Spec.ClusterIP}
	}
	keep := nodePorts(svc)
	for _, port := range nodePorts(old) {
		if !slices.Contains(keep, port) {
			unused.ports = append(unused.ports, port)
		}
	}
	unused.release(ctx)
}

// releaseAll frees what a deleted service held and removes its Endpoints.
func (a *serviceAllocator) releaseAll(ctx context.Context, svc *corev1.Service) {
	gone := &holding{allocator: a}
	if ip := svc.Spec.ClusterIP; ip != "" && ip != corev1.ClusterIPNone {
		gone.ips = []string{ip}
	}
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 {
			gone.ports = append(gone.ports, p.NodePort)
		}
	}
	if svc.Spec.HealthCheckNodePort != 0 {
		gone.ports = append(gone.ports, svc.Spec.HealthCheckNodePort)
	}
	gone.release(ctx)
	endpoints := a.registry.Resource(corev1.SchemeGroupVersion.WithResource("endpoints"))
	if _, err := endpoints.Delete(ctx, svc.Namespace, svc.Name, &metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		a.registry.opts.Logger.WarnContext(ctx, "removing the endpoints of a deleted service",
			"namespace", svc.Namespace, "name", svc.Name, "error", err)
	}
}

// holding is what one change took: given back as a whole.
type holding struct {
	allocator *serviceAllocator
	dryRun    bool
	ips       []string
	ports     []int32
}

func (h *holding) release(ctx context.Context) {
	if h.dryRun || (len(h.ips) == 0 && len(h.ports) == 0) {
		return
	}
	ctx = context.WithoutCancel(ctx) // what is not given back now is lost
	for _, ip := range h.ips {
		if err := h.allocator.freeIP(ctx, ip); err != nil {
			h.allocator.registry.opts.Logger.WarnContext(ctx, "freeing a cluster IP", "ip", ip, "error", err)
		}
	}
	if err := h.allocator.freePorts(ctx, h.ports); err != nil {
		h.allocator.registry.opts.Logger.WarnContext(ctx, "freeing node ports", "ports", fmt.Sprint(h.ports), "error", err)
	}
}
