package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/agent/device"
	"gantry.dev/gantry/internal/agent/stats"
	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/heartbeat"
	"gantry.dev/gantry/internal/volume"
)

// Informers is the source of change events; a controller-runtime cache is one.
type Informers interface {
	GetInformer(ctx context.Context, obj client.Object, opts ...cache.InformerGetOption) (cache.Informer, error)
}

// Sandboxes is the runtime's side of whole pods. EnsureSandbox and RemoveSandbox are
// idempotent; RemoveSandbox also removes the pod's containers, but not their logs.
type Sandboxes interface {
	EnsureSandbox(ctx context.Context, sandbox container.Sandbox) error
	RemoveSandbox(ctx context.Context, id string) error
	List(ctx context.Context) ([]container.SandboxStatus, error)
	Events(ctx context.Context) <-chan container.Event
}

// SandboxReader is what a runtime may have beside Sandboxes: the status of one sandbox, false
// when there is none. Without it the agent lists all.
type SandboxReader interface {
	Status(ctx context.Context, id string) (container.SandboxStatus, bool, error)
}

// Containers is the runtime's side of single containers. StopContainer returns once the
// container has ended: after the stop signal, or SIGKILL when grace has passed.
type Containers interface {
	CreateContainer(ctx context.Context, config container.Config) (id string, err error)
	StartContainer(ctx context.Context, id string) error
	StopContainer(ctx context.Context, id string, grace time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
}

// Streamer runs commands in containers and attaches to them.
type Streamer interface {
	Exec(ctx context.Context, id string, cmd []string, streams container.Streams) (exitCode int, err error)
	Attach(ctx context.Context, id string, streams container.Streams) error
}

// Runtime runs the containers of one node.
type Runtime interface {
	Sandboxes
	Containers
	Streamer
}

// Images is the node's image store. Image answers an error for which IsNotFound of Options
// holds when the image is absent.
type Images interface {
	Pull(ctx context.Context, ref string, credentials []container.Credentials) (container.Image, error)
	Image(ctx context.Context, ref string) (container.Image, error)
	Images(ctx context.Context) ([]container.Image, error)
	RemoveImage(ctx context.Context, id string) error
}

// PodNetwork connects pods. Setup is idempotent: a second call returns the same namespace and
// addresses. Reconcile removes what belongs to no pod of keep.
type PodNetwork interface {
	Setup(ctx context.Context, podUID string, pod *corev1.Pod, podCIDRs []string) (netNSPath string, addrs []netip.Addr, err error)
	Teardown(ctx context.Context, podUID string) error
	Reconcile(ctx context.Context, keep []string) error
}

// Volumes makes and removes the pods' volumes.
type Volumes interface {
	// SetUp makes a pod's volumes, or brings their content up to date, by volume name.
	SetUp(ctx context.Context, pod *corev1.Pod, facts volume.Facts) (map[string]volume.Mounted, error)
	// SubPath pins a path inside a volume and returns where it can be mounted from.
	SubPath(pod types.UID, mount volume.SubPath) (string, error)
	TearDown(ctx context.Context, pod types.UID) error
	// Pods lists the pods that have something on disk.
	Pods() ([]types.UID, error)
}

// PodLogs keeps the logs of pods that are gone.
type PodLogs interface {
	// Begin is called before a pod's containers are started for the first time.
	Begin(pod *corev1.Pod) error
	// End takes a pod's log folder, or reports that it does not want it.
	End(namespace, name string, uid types.UID) (taken bool, err error)
}

// Options configures an Agent. A zero field takes its default.
type Options struct {
	NodeName string // required
	NodeUID  types.UID
	NodeIPs  []string // addresses of the node, the first is its InternalIP
	Hostname string   // default NodeName

	PodsDir       string   // required; DATA/pods, one folder a pod UID
	LogDir        string   // required; DATA/log/pods
	ImageDir      string   // whose disk the image collection watches; default PodsDir
	CgroupRoot    string   // cgroup under which kubepods lies, default "/"
	PluginRoots   []string // folders for the sockets of device plugins, see device.Options; none: no plugins
	DeviceFile    string   // which pod holds which device; default PodsDir/../devices.json
	UnsafeSysctls []string // names, or prefixes with *, that pods may set besides the safe ones
	RangeFile     string   // the node's pod ranges, for static pods before the API is there; default PodsDir/../pod-ranges
	SeccompDir    string   // Localhost seccomp profiles, default PodsDir/../seccomp
	ResolvConf    string   // the node's own, default /etc/resolv.conf
	HostsFile     string   // the node's own, default /etc/hosts
	ClusterDNS    []string // addresses of the cluster's name servers
	ClusterDomain string   // default "cluster.local"

	MaxPods      int                 // default 110
	PodPIDs      int64               // limit of processes a pod, 0 is none
	LogMaxBytes  int64               // size at which a container's log is rotated; default 10 MiB
	LogMaxFiles  int                 // files of a container's log; default 5
	Capacity     corev1.ResourceList // default: detected
	Reserved     corev1.ResourceList // capacity that pods cannot have
	Eviction     Eviction            // when the node ends pods because it runs short
	Shutdown     Shutdown            // how the node goes down with its machine
	NodeInfo     corev1.NodeSystemInfo
	NodeLabels   map[string]string // added when the node registers
	NodeTaints   []corev1.Taint    // set when the node registers
	InstanceType string            // node.kubernetes.io/instance-type
	KubeletPort  int32             // default 10250
	// Heartbeats lists the servers that the node sends heartbeats to; nil sends none: its Lease tells alone.
	Heartbeats func() []heartbeat.Server
	// StoreTrouble says why the cluster's store on this machine refuses writes; nil on a machine that has no store.
	StoreTrouble func() error
	// Heard is told which of them have fallen silent and which answer again; nil ignores it.
	Heard func(server string, heard bool)
	// FenceDeadline is how long fenced pods go on after the last heartbeat that a leading server answered; default
	// heartbeat.DefaultDeadline.
	FenceDeadline time.Duration
	Clock         func() time.Duration // time since the boot, for deadlines; default heartbeat.BootClock
	// Gateway is what the node's gateway counts, for /metrics/gateway; nil: there is none.
	Gateway func(ctx context.Context) ([]byte, error)
	// KeepLogs takes the logs of pods that are gone; nil: they are removed.
	KeepLogs PodLogs
	// Extra serves what lies below /gantry/ of the node's API; nil: there is nothing.
	Extra http.Handler

	LeaseSeconds     int32         // default 40
	LeaseRenew       time.Duration // default 10s
	StatusEvery      time.Duration // how soon a changed node status is reported; default 10s
	StatusAtLeast    time.Duration // how often an unchanged one is; default 5m
	ImageHighPercent int           // disk use that starts the image collection; default 85
	ImageLowPercent  int           // disk use that it aims for; default 80
	ImageMinAge      time.Duration // images unused for less stay; default 2m
	DiskUsage        func(path string) (used, capacity int64, err error)
	IsNotFound       func(error) bool // whether an error of Images means an absent image; default errdefs-like text
	ParallelPulls    int              // images pulled at once, default 4
	// ImageAccess says why a pod may not use an image, at each start of a container and also when the image is here already;
	// credentials are what its pull secrets hold. nil: every pod may use every image that it can pull.
	ImageAccess func(ctx context.Context, pod *corev1.Pod, ref string, credentials func() ([]container.Credentials, error)) error
	// Confirmed waits until the pods that the informers told first are those that the API has, not those that were known last:
	// only then are pods that it does not know removed. nil: they are at once.
	Confirmed     func(ctx context.Context) error
	StatusWriters int // statuses written at once, default 4
	Dial          func(ctx context.Context, network, address string) (net.Conn, error)
	// DialPod connects to a port on the loopback address of a network namespace; nil enters it.
	DialPod func(ctx context.Context, netns string, port int32) (net.Conn, error)
	// LocalVolumes are the folders of persistent volumes on this node; nil keeps none.
	LocalVolumes      LocalVolumes
	Logger            *slog.Logger
	DisableCollection bool // no image, container or orphan collection: simulated nodes
}

func (o *Options) complete() error {
	switch {
	case o.NodeName == "":
		return errors.New("agent: NodeName is empty")
	case o.PodsDir == "" || o.LogDir == "":
		return errors.New("agent: PodsDir and LogDir are required")
	case len(o.NodeIPs) == 0:
		return errors.New("agent: NodeIPs is empty")
	}
	o.Hostname = cmp.Or(o.Hostname, o.NodeName)
	o.ImageDir = cmp.Or(o.ImageDir, o.PodsDir)
	o.CgroupRoot = cmp.Or(o.CgroupRoot, "/")
	o.SeccompDir = cmp.Or(o.SeccompDir, filepath.Join(filepath.Dir(o.PodsDir), "seccomp"))
	o.DeviceFile = cmp.Or(o.DeviceFile, filepath.Join(filepath.Dir(o.PodsDir), "devices.json"))
	o.RangeFile = cmp.Or(o.RangeFile, filepath.Join(filepath.Dir(o.PodsDir), "pod-ranges"))
	o.ResolvConf = cmp.Or(o.ResolvConf, "/etc/resolv.conf")
	o.HostsFile = cmp.Or(o.HostsFile, "/etc/hosts")
	o.ClusterDomain = cmp.Or(o.ClusterDomain, "cluster.local")
	o.MaxPods = cmp.Or(o.MaxPods, 110)
	o.KubeletPort = cmp.Or(o.KubeletPort, 10250)
	o.LeaseSeconds = cmp.Or(o.LeaseSeconds, 40)
	o.LeaseRenew = cmp.Or(o.LeaseRenew, 10*time.Second)
	o.StatusEvery = cmp.Or(o.StatusEvery, 10*time.Second)
	o.StatusAtLeast = cmp.Or(o.StatusAtLeast, 5*time.Minute)
	o.ImageHighPercent = cmp.Or(o.ImageHighPercent, 85)
	o.ImageLowPercent = cmp.Or(o.ImageLowPercent, 80)
	o.ImageMinAge = cmp.Or(o.ImageMinAge, 2*time.Minute)
	o.Eviction.complete()
	o.FenceDeadline = cmp.Or(o.FenceDeadline, heartbeat.DefaultDeadline)
	if o.Clock == nil {
		o.Clock = heartbeat.BootClock
	}
	o.ParallelPulls = cmp.Or(o.ParallelPulls, 4)
	o.StatusWriters = cmp.Or(o.StatusWriters, 4)
	if o.DiskUsage == nil {
		o.DiskUsage = diskUsage
	}
	if o.IsNotFound == nil {
		o.IsNotFound = looksNotFound
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ImageLowPercent > o.ImageHighPercent || o.ImageHighPercent > 100 {
		return fmt.Errorf("agent: image thresholds %d and %d %% are out of order", o.ImageLowPercent, o.ImageHighPercent)
	}
	return nil
}

// Agent runs the pods of one node.
type Agent struct {
	opts      Options
	client    client.Client
	informers Informers
	runtime   Runtime
	images    Images
	network   PodNetwork
	volumes   Volumes
	static    StaticPods
	log       *slog.Logger

	capacity corev1.ResourceList
	started  time.Time
	events   *recorder
	puller   *puller
	statuses *statusWriter
	probes   *prober
	stats    *stats.Reader
	devices  *device.Manager
	statics  *statics
	nodeNews chan struct{} // the node's status has changed
	classes  *classes      // nil: the runtime sets no limits while containers run
	pressure *pressure
	shutdown *shutdown
	unused   *unusedImages
	fence    *fence
	node     atomic.Pointer[corev1.Node] // the newest; nil until the API has told

	podCIDRs   atomic.Pointer[[]string]  // of the node; nil until the API has assigned them
	cidrSet    chan struct{}             // closed when podCIDRs is first set
	folders    atomic.Pointer[[3]string] // what the node's annotations say of local volumes
	folderNews chan struct{}             // capacity 1: they say something new
	synced     atomic.Bool               // the API's pods are known
	readyErr   atomic.Pointer[string]    // why the runtime is not ready; nil when it is

	spawn func(f func(ctx context.Context)) // runs f until Run's context ends; Run waits for it

	mu      sync.Mutex // guards the fields below
	running bool       // Run has begun and not begun to end
	workers map[types.UID]*worker
	cidrs   sync.Once
}

// Parts are what an Agent works with.
type Parts struct {
	Client    client.Client
	Informers Informers
	Runtime   Runtime
	Images    Images
	Network   PodNetwork
	Volumes   Volumes
	Static    StaticPods // nil: none
}

// New checks opts and returns an Agent that has started nothing; call Run.
func New(parts Parts, opts Options) (*Agent, error) {
	if parts.Client == nil || parts.Informers == nil || parts.Runtime == nil || parts.Images == nil || parts.Network == nil || parts.Volumes == nil {
		return nil, errors.New("agent: a part is missing")
	}
	if err := opts.complete(); err != nil {
		return nil, err
	}
	a := &Agent{
		opts:      opts,
		client:    parts.Client,
		informers: parts.Informers,
		runtime:   parts.Runtime,
		images:    parts.Images,
		network:   parts.Network,
		volumes:   parts.Volumes,
		log:       opts.Logger,
		cidrSet:   make(chan struct{}),
		nodeNews:  make(chan struct{}, 1), folderNews: make(chan struct{}, 1),
		workers: map[types.UID]*worker{},
		events:  newRecorder(parts.Client, opts.NodeName, opts.Logger),
		unused:  &unusedImages{since: map[string]time.Time{}},
	}
	a.capacity = opts.Capacity
	if a.capacity == nil {
		a.capacity = detectCapacity(opts)
	}
	var err error
	if a.devices, err = a.newDevices(); err != nil {
		return nil, err
	}
	a.static = parts.Static
	a.statics = newStatics(a)
	a.puller = newPuller(a)
	a.statuses = newStatusWriter(a)
	a.probes = newProber(a)
	a.classes = newClasses(a)
	a.pressure = newPressure(a)
	a.shutdown = newShutdown(a)
	a.fence = newFence(a)
	a.stats, err = newStats(a)
	return a, err
}

// Run registers the node and runs its pods until ctx ends. Containers keep running when it
// returns. It waits for everything it started.
func (a *Agent) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	a.spawn = func(f func(ctx context.Context)) {
		group.Go(func() error {
			f(ctx)
			return nil
		})
	}
	a.started = time.Now()
	// The stream of events opens before the first look, so that nothing falls between them.
	runtimeEvents := a.runtime.Events(ctx)
	sandboxes, err := a.runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("listing what the runtime has: %w", err)
	}
	a.mu.Lock()
	a.running = true
	a.mu.Unlock()
	for _, f := range []func(context.Context){a.events.run, a.runDevices, a.statics.run, a.runNode, a.runLease, a.statuses.run, a.shutdown.run} {
		a.spawn(f)
	}
	if a.classes != nil {
		a.classes.prepare()
		a.spawn(a.classes.run)
	}
	if a.opts.Heartbeats != nil {
		a.spawn(a.fence.run)
		group.Go(func() error { return a.runHeartbeats(ctx) })
	}
	group.Go(func() error { return a.dispatchRuntimeEvents(ctx, runtimeEvents) })
	a.recallRanges()
	a.statics.start(a.static, sandboxes)
	if err := a.watch(ctx, sandboxes); err != nil {
		a.stopWorkers()
		return errors.Join(err, ignoreCancel(ctx, group.Wait()))
	}
	if !a.opts.DisableCollection {
		a.spawn(a.runCollection)
		a.spawn(a.pressure.run)
		group.Go(func() error { return a.stats.Run(ctx) })
	}
	if a.opts.LocalVolumes != nil {
		a.spawn(a.runLocalVolumes)
	}
	<-ctx.Done()
	a.stopWorkers()
	return ignoreCancel(ctx, group.Wait())
}

func ignoreCancel(ctx context.Context, err error) error {
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}

// dispatchRuntimeEvents wakes the workers of the pods that something happened to.
func (a *Agent) dispatchRuntimeEvents(ctx context.Context, events <-chan container.Event) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, ok := <-events:
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return errors.New("the runtime ended its stream of events")
			}
			a.mu.Lock()
			w := a.workers[types.UID(event.SandboxID)]
			a.mu.Unlock()
			if w != nil {
				w.stale.Store(true)
				w.notify()
			}
		}
	}
}

// status reads one sandbox from the runtime; false means that there is none.
func (a *Agent) status(ctx context.Context, id string) (container.SandboxStatus, bool, error) {
	if reader, ok := a.runtime.(SandboxReader); ok {
		return reader.Status(ctx, id)
	}
	list, err := a.runtime.List(ctx)
	if err != nil {
		return container.SandboxStatus{}, false, err
	}
	for _, s := range list {
		if s.Sandbox.ID == id {
			return s, true, nil
		}
	}
	return container.SandboxStatus{}, false, nil
}
