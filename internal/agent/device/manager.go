package device

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// goneAfter is how long a resource without a plugin is still reported, with no allocatable
// devices; as the kubelet's endpointStopGracePeriod.
const goneAfter = 5 * time.Minute

// Options configure a Manager.
type Options struct {
	// Roots are the folders in which plugins look for device-plugins/kubelet.sock and
	// plugins_registry, and monitoring for pod-resources/kubelet.sock. None: no plugins.
	Roots []string
	// Checkpoint is the file that holds what pods have; required.
	Checkpoint string
	// CDIDirs hold descriptions of CDI devices; default /etc/cdi and /var/run/cdi. A later one wins.
	CDIDirs []string
	// Changed is told that Capacity may have changed; nil does nothing.
	Changed func()
	// HealthChanged is told of pods that hold a device whose health has changed; nil does nothing.
	HealthChanged func(pods []types.UID)
	// Pods lists the pods that have not ended, for the pod resources API; nil lists none.
	Pods   func() []*corev1.Pod
	Logger *slog.Logger // default: discards
}

func (o *Options) complete() error {
	if !filepath.IsAbs(o.Checkpoint) {
		return errors.New("device: Checkpoint is not an absolute path")
	}
	if len(o.CDIDirs) == 0 {
		o.CDIDirs = []string{"/etc/cdi", "/var/run/cdi"}
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	if o.HealthChanged == nil {
		o.HealthChanged = func([]types.UID) {}
	}
	if o.Pods == nil {
		o.Pods = func() []*corev1.Pod { return nil }
	}
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	return nil
}

// Manager knows the devices of one node and who holds them.
type Manager struct {
	opts Options
	log  *slog.Logger

	runs background // what Run waits for

	mu        sync.Mutex // guards the fields below
	resources map[string]*offer
	pods      holdings
}

// offer is one resource and the plugin that offers it.
type offer struct {
	choosing  sync.Mutex // one choice of devices at a time, over the plugin's advice
	plugin    *plugin    // nil while there is none
	listed    bool       // plugin has said what it has
	devices   map[string]*pluginapi.Device
	stoppedAt time.Time // when the plugin went away; zero while there is one
}

// holdings are the devices that pods hold: by pod, container and resource.
type holdings map[types.UID]map[string]map[string]*held

// held are the devices of one resource that a container holds.
type held struct {
	IDs []string
	// Response is what the plugin answered; nil while it is asked.
	Response *pluginapi.ContainerAllocateResponse
	Nodes    map[string][]int64 // NUMA nodes by device
}

// New checks opts and returns a Manager that has started nothing. It reads the checkpoint.
func New(opts Options) (*Manager, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	m := &Manager{opts: opts, log: opts.Logger, resources: map[string]*offer{}, pods: holdings{}}
	if err := m.load(time.Now()); err != nil {
		m.log.Error("which pods hold devices may not be known", "error", err) // the node serves on, as a kubelet does
	}
	return m, nil
}

// Run takes registrations of plugins and follows them until ctx ends. A folder that cannot be
// served is logged: the node runs without the plugins that would use it.
func (m *Manager) Run(ctx context.Context) error {
	m.runs.open(ctx)
	for _, root := range m.opts.Roots {
		m.serveRoot(root)
	}
	<-ctx.Done()
	m.runs.wait()
	return nil
}

// Capacity returns how many devices the node has of each resource, and how many of them can be
// given to pods. gone are resources that are not offered any more.
func (m *Manager) Capacity() (capacity, allocatable corev1.ResourceList, gone []string) {
	capacity, allocatable = corev1.ResourceList{}, corev1.ResourceList{}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, o := range m.resources {
		if o.plugin == nil && time.Since(o.stoppedAt) > goneAfter {
			delete(m.resources, name)
			gone = append(gone, name)
			continue
		}
		capacity[corev1.ResourceName(name)] = *resource.NewQuantity(int64(len(o.devices)), resource.DecimalSI)
		allocatable[corev1.ResourceName(name)] = *resource.NewQuantity(int64(len(o.healthy())), resource.DecimalSI)
	}
	if len(gone) > 0 {
		m.saveLocked()
	}
	return capacity, allocatable, gone
}

// healthy are the devices that can be given to pods.
func (o *offer) healthy() map[string]bool {
	set := map[string]bool{}
	if o.plugin == nil || !o.listed {
		return set
	}
	for id, d := range o.devices {
		if d.Health == pluginapi.Healthy {
			set[id] = true
		}
	}
	return set
}

// Release takes the devices of a pod back. Call it when none of the pod's containers runs, and
// none will.
func (m *Manager) Release(pod types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.pods[pod]; !ok {
		return
	}
	delete(m.pods, pod)
	m.saveLocked()
}

// Reconcile takes the devices of all pods back that keep does not name.
func (m *Manager) Reconcile(keep func(types.UID) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := len(m.pods)
	maps.DeleteFunc(m.pods, func(uid types.UID, _ map[string]map[string]*held) bool { return !keep(uid) })
	if len(m.pods) != before {
		m.saveLocked()
	}
}

// connected takes a plugin that has registered; one that offered the same before is cut off.
func (m *Manager) connected(name string, p *plugin) {
	m.mu.Lock()
	o := m.resources[name]
	if o == nil {
		o = &offer{}
		m.resources[name] = o
	}
	old := o.plugin
	o.plugin, o.stoppedAt, o.listed = p, time.Time{}, false
	m.mu.Unlock()
	if old != nil {
		old.close()
	}
	m.log.Info("a device plugin has registered", "resource", name, "socket", p.socket)
}

// disconnected notes that a plugin went away. Its devices count as unhealthy.
func (m *Manager) disconnected(name string, p *plugin) {
	m.mu.Lock()
	o := m.resources[name]
	current := o != nil && o.plugin == p
	if current {
		o.plugin, o.stoppedAt = nil, time.Now()
	}
	m.mu.Unlock()
	if current {
		m.log.Warn("a device plugin went away", "resource", name, "socket", p.socket)
		m.opts.Changed()
	}
}

// listed takes the devices that a plugin has now.
func (m *Manager) listed(name string, p *plugin, devices []*pluginapi.Device) {
	m.mu.Lock()
	o := m.resources[name]
	if o == nil || o.plugin != p {
		m.mu.Unlock()
		return
	}
	before := o.devices
	o.listed = true
	o.devices = make(map[string]*pluginapi.Device, len(devices))
	changed := map[string]bool{}
	for _, d := range devices {
		o.devices[d.ID] = d
		if old := before[d.ID]; old == nil || old.Health != d.Health {
			changed[d.ID] = true
		}
	}
	var holders []types.UID
	for uid, containers := range m.pods {
		for _, resources := range containers {
			if h := resources[name]; h != nil && slices.ContainsFunc(h.IDs, func(id string) bool { return changed[id] }) {
				holders = append(holders, uid)
				break
			}
		}
	}
	m.saveLocked()
	m.mu.Unlock()
	m.log.Debug("a device plugin has listed its devices", "resource", name, "devices", len(devices))
	m.opts.Changed()
	if len(holders) > 0 {
		m.opts.HealthChanged(holders)
	}
}

// background is what Run waits for. Nothing is started before Run or after its end.
type background struct {
	mu      sync.Mutex      // guards the fields below
	ctx     context.Context //nolint:containedctx // Run's, for those that callers of Run's servers start
	running sync.WaitGroup
}

func (b *background) open(ctx context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ctx = ctx
}

// start runs f until Run ends; false means that Run does not run.
func (b *background) start(f func(ctx context.Context)) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx == nil || b.ctx.Err() != nil {
		return false
	}
	ctx := b.ctx
	b.running.Go(func() { f(ctx) })
	return true
}

func (b *background) wait() {
	b.mu.Lock()
	b.ctx = nil
	b.mu.Unlock()
	b.running.Wait()
}
