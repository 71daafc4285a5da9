package device

import (
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"gantry.dev/gantry/internal/container"
)

// Grant is what a container gets to use its devices.
type Grant struct {
	Env         []string // NAME=value
	Mounts      []container.Mount
	Devices     []container.Device
	Hooks       []container.Hook
	Annotations map[string]string
}

// Allocate gives a pod the devices that its containers ask for; those it has already it keeps.
// What it returns nil for is on disk. An error means that the pod cannot run here, unless ctx
// has ended; the pod holds then no more than before.
func (m *Manager) Allocate(ctx context.Context, pod *corev1.Pod) error {
	for _, c := range containers(pod) {
		if err := m.allocate(ctx, pod, c); err != nil {
			return err
		}
	}
	return nil
}

// containers lists the containers of a pod in the order of their start.
func containers(pod *corev1.Pod) []*corev1.Container {
	list := make([]*corev1.Container, 0, len(pod.Spec.InitContainers)+len(pod.Spec.Containers))
	for i := range pod.Spec.InitContainers {
		list = append(list, &pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		list = append(list, &pod.Spec.Containers[i])
	}
	return list
}

func sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// wanted lists the device resources that a container asks for. Extended resources have equal
// requests and limits.
func (m *Manager) wanted(c *corev1.Container) []string {
	var names []string
	for name, quantity := range c.Resources.Limits {
		if IsExtended(name) && !quantity.IsZero() {
			names = append(names, string(name))
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(names, func(name string) bool { return m.resources[name] == nil && len(m.pods.used(name)) == 0 })
}

func (m *Manager) allocate(ctx context.Context, pod *corev1.Pod, c *corev1.Container) error {
	for _, name := range m.wanted(c) {
		quantity := c.Resources.Limits[corev1.ResourceName(name)]
		if err := m.allocateOne(ctx, pod, c, name, int(quantity.Value())); err != nil {
			return err
		}
	}
	return nil
}

// allocateOne gives a container its devices of one resource: it takes them, asks the plugin
// how they are used, and writes both down.
func (m *Manager) allocateOne(ctx context.Context, pod *corev1.Pod, c *corev1.Container, name string, needed int) error {
	taken, p, err := m.take(ctx, pod, c, name, needed)
	if err != nil || taken == nil {
		return err
	}
	response, err := p.allocate(ctx, taken.IDs)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pods.get(pod.UID, c.Name, name) != taken {
		return fmt.Errorf("pod %s/%s has ended while its devices were made ready", pod.Namespace, pod.Name)
	}
	if err == nil {
		taken.Response = response
		err = m.writeLocked()
	}
	if err != nil {
		m.pods.drop(pod.UID, c.Name, name)
		return err
	}
	m.log.Info("a container has got devices", "namespace", pod.Namespace, "name", pod.Name, "container", c.Name, "resource", name, "devices", taken.IDs)
	return nil
}

// take chooses devices and marks them as held; nil without an error means that the container
// has them already.
func (m *Manager) take(ctx context.Context, pod *corev1.Pod, c *corev1.Container, name string, needed int) (*held, *plugin, error) {
	m.mu.Lock()
	o := m.resources[name]
	m.mu.Unlock()
	if o == nil {
		return nil, nil, choice{resource: name}.check()
	}
	o.choosing.Lock()
	defer o.choosing.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if has := m.pods.get(pod.UID, c.Name, name); has != nil && has.Response != nil {
		if len(has.IDs) != needed {
			return nil, nil, fmt.Errorf("pod %q container %q changed request for resource %q from %d to %d", pod.UID, c.Name, name, len(has.IDs), needed)
		}
		return nil, nil, nil
	}
	ask := m.choiceLocked(pod, o, name, needed)
	if err := ask.check(); err != nil {
		return nil, nil, err
	}
	var preferred []string
	if p, include := o.plugin, ask.fromReusable(); len(include) < needed {
		available := append(ask.available(), include...)
		m.mu.Unlock() // the choice is kept from others by o.choosing
		list, err := p.preferred(ctx, available, include, needed)
		m.mu.Lock()
		if err != nil {
			return nil, nil, err
		}
		preferred = list
		ask = m.choiceLocked(pod, o, name, needed) // meanwhile devices may have become unhealthy or free
		if err := ask.check(); err != nil {
			return nil, nil, err
		}
	}
	chosen := &held{IDs: ask.choose(preferred), Nodes: map[string][]int64{}}
	for _, id := range chosen.IDs {
		if nodes := numaNodes(o.devices[id]); len(nodes) > 0 {
			chosen.Nodes[id] = nodes
		}
	}
	m.pods.put(pod.UID, c.Name, name, chosen)
	return chosen, o.plugin, nil
}

// choiceLocked describes what can be chosen from. m.mu is held.
func (m *Manager) choiceLocked(pod *corev1.Pod, o *offer, name string, needed int) choice {
	return choice{
		resource: name, needed: needed, registered: true, healthy: o.healthy(),
		used: m.pods.used(name), reusable: m.pods.reusable(pod, name),
	}
}

// reusable are the devices of a pod that only init containers which end hold: those that start
// later may have them too.
func (h holdings) reusable(pod *corev1.Pod, name string) map[string]bool {
	set := map[string]bool{}
	for pass := range 2 {
		for i, c := range containers(pod) {
			held := h.get(pod.UID, c.Name, name)
			if held == nil {
				continue
			}
			ends := i < len(pod.Spec.InitContainers) && !sidecar(c)
			for _, id := range held.IDs {
				if ends && pass == 0 {
					set[id] = true
				} else if !ends && pass == 1 {
					delete(set, id)
				}
			}
		}
	}
	return set
}

// Prepare returns what a container of a pod gets, right before it starts. A container that
// holds nothing yet gets its devices now.
func (m *Manager) Prepare(ctx context.Context, pod *corev1.Pod, c *corev1.Container) (Grant, error) {
	names := m.wanted(c)
	if len(names) == 0 {
		return Grant{}, nil
	}
	if err := m.allocate(ctx, pod, c); err != nil {
		return Grant{}, err
	}
	var grant Grant
	for _, name := range names {
		m.mu.Lock()
		held, o := m.pods.get(pod.UID, c.Name, name), m.resources[name]
		var p *plugin
		if o != nil {
			p = o.plugin
		}
		m.mu.Unlock()
		if held == nil {
			return Grant{}, fmt.Errorf("no devices found allocated in local cache for pod %s, container %s, resource %s", pod.UID, c.Name, name)
		}
		if p != nil {
			if err := p.preStart(ctx, held.IDs); err != nil {
				return Grant{}, err
			}
		}
		if err := grant.add(held.Response, m.opts.CDIDirs); err != nil {
			return Grant{}, err
		}
	}
	return grant, nil
}

// add lays one plugin's answer on what others have given; who came first wins.
func (g *Grant) add(response *pluginapi.ContainerAllocateResponse, cdiDirs []string) error {
	for _, name := range slices.Sorted(maps.Keys(response.Envs)) {
		g.addEnv(name + "=" + response.Envs[name])
	}
	for _, d := range response.Devices {
		g.addDevice(container.Device{HostPath: d.HostPath, ContainerPath: d.ContainerPath, Permissions: d.Permissions})
	}
	for _, mount := range response.Mounts {
		g.addMount(container.Mount{HostPath: mount.HostPath, ContainerPath: mount.ContainerPath, ReadOnly: mount.ReadOnly})
	}
	for key, value := range response.Annotations {
		if _, ok := g.Annotations[key]; !ok {
			if g.Annotations == nil {
				g.Annotations = map[string]string{}
			}
			g.Annotations[key] = value
		}
	}
	if len(response.CdiDevices) == 0 {
		return nil
	}
	names := make([]string, len(response.CdiDevices))
	for i, d := range response.CdiDevices {
		names[i] = d.Name
	}
	return g.addCDI(names, cdiDirs)
}

func (g *Grant) addEnv(entry string) {
	name := envName(entry)
	if !slices.ContainsFunc(g.Env, func(e string) bool { return envName(e) == name }) {
		g.Env = append(g.Env, entry)
	}
}

func (g *Grant) addDevice(d container.Device) {
	if !slices.ContainsFunc(g.Devices, func(o container.Device) bool { return o.ContainerPath == d.ContainerPath }) {
		g.Devices = append(g.Devices, d)
	}
}

func (g *Grant) addMount(mount container.Mount) {
	if !slices.ContainsFunc(g.Mounts, func(o container.Mount) bool { return o.ContainerPath == mount.ContainerPath }) {
		g.Mounts = append(g.Mounts, mount)
	}
}

// Has reports whether any resource is offered or held, so that pods are worth a look.
func (m *Manager) Has() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.resources)+len(m.pods) > 0
}

// Health fills in the state of the devices that the pod's containers hold.
func (m *Manager) Health(uid types.UID, statuses []corev1.ContainerStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range statuses {
		held := m.pods[uid][statuses[i].Name]
		statuses[i].AllocatedResourcesStatus = nil
		for _, name := range slices.Sorted(maps.Keys(held)) {
			status := corev1.ResourceStatus{Name: corev1.ResourceName(name)}
			for _, id := range held[name].IDs {
				health := corev1.ResourceHealthStatusHealthy
				if o := m.resources[name]; o != nil && o.devices[id] != nil && o.devices[id].Health != pluginapi.Healthy {
					health = corev1.ResourceHealthStatusUnhealthy
				}
				status.Resources = append(status.Resources, corev1.ResourceHealth{ResourceID: corev1.ResourceID(id), Health: health})
			}
			statuses[i].AllocatedResourcesStatus = append(statuses[i].AllocatedResourcesStatus, status)
		}
	}
}
