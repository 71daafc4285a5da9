package device

import (
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// podResources is the kubelet's service that tells monitoring which pod has which device.
type podResources struct {
	podresourcesapi.UnimplementedPodResourcesListerServer
	m *Manager
}

// List implements the service.
func (p *podResources) List(context.Context, *podresourcesapi.ListPodResourcesRequest) (*podresourcesapi.ListPodResourcesResponse, error) {
	answer := &podresourcesapi.ListPodResourcesResponse{}
	for _, pod := range p.m.opts.Pods() {
		answer.PodResources = append(answer.PodResources, p.pod(pod))
	}
	return answer, nil
}

// Get implements the service.
func (p *podResources) Get(_ context.Context, request *podresourcesapi.GetPodResourcesRequest) (*podresourcesapi.GetPodResourcesResponse, error) {
	for _, pod := range p.m.opts.Pods() {
		if pod.Namespace == request.PodNamespace && pod.Name == request.PodName {
			return &podresourcesapi.GetPodResourcesResponse{PodResources: p.pod(pod)}, nil
		}
	}
	return nil, fmt.Errorf("pod %s in namespace %s not found", request.PodName, request.PodNamespace)
}

// GetAllocatableResources implements the service.
func (p *podResources) GetAllocatableResources(context.Context, *podresourcesapi.AllocatableResourcesRequest) (*podresourcesapi.AllocatableResourcesResponse, error) {
	answer := &podresourcesapi.AllocatableResourcesResponse{}
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(p.m.resources)) {
		o := p.m.resources[name]
		for _, id := range slices.Sorted(maps.Keys(o.healthy())) {
			answer.Devices = append(answer.Devices, describe(name, id, numaNodes(o.devices[id])))
		}
	}
	return answer, nil
}

func (p *podResources) pod(pod *corev1.Pod) *podresourcesapi.PodResources {
	out := &podresourcesapi.PodResources{Name: pod.Name, Namespace: pod.Namespace}
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	add := func(name string) {
		c := &podresourcesapi.ContainerResources{Name: name}
		held := p.m.pods[pod.UID][name]
		for _, resource := range slices.Sorted(maps.Keys(held)) {
			for _, id := range held[resource].IDs {
				c.Devices = append(c.Devices, describe(resource, id, held[resource].Nodes[id]))
			}
		}
		out.Containers = append(out.Containers, c)
	}
	for i := range pod.Spec.InitContainers {
		if sidecar(&pod.Spec.InitContainers[i]) {
			add(pod.Spec.InitContainers[i].Name)
		}
	}
	for i := range pod.Spec.Containers {
		add(pod.Spec.Containers[i].Name)
	}
	return out
}

func describe(resource, id string, nodes []int64) *podresourcesapi.ContainerDevices {
	d := &podresourcesapi.ContainerDevices{ResourceName: resource, DeviceIds: []string{id}}
	for _, node := range nodes {
		if d.Topology == nil {
			d.Topology = &podresourcesapi.TopologyInfo{}
		}
		d.Topology.Nodes = append(d.Topology.Nodes, &podresourcesapi.NUMANode{ID: node})
	}
	return d
}

func numaNodes(d *pluginapi.Device) []int64 {
	var nodes []int64
	for _, n := range d.GetTopology().GetNodes() {
		nodes = append(nodes, n.GetID())
	}
	return nodes
}
