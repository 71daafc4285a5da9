package stats

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/agent/podconfig"
	"gantry.dev/gantry/internal/lifecycle"
)

// Options configures a Reader.
type Options struct {
	NodeName string
	Pods     func() []*corev1.Pod // those of the node with their newest status; required
	PodsDir  string               // one folder a pod UID; required
	LogDir   string               // one folder a pod; required
	ImageDir string               // on the file system of images and containers; default PodsDir

	CgroupRoot  string // cgroup under which kubepods lies, default "/"
	CgroupMount string // default "/sys/fs/cgroup"
	Proc        string // default "/proc"

	// Layer is the folder of what a container has written to its root file system; nil: nobody knows.
	Layer func(ctx context.Context, containerID string) (string, error)

	// VolumeDir is where a volume of a pod lies that a claim stands for; nil: nobody knows.
	VolumeDir func(pod *corev1.Pod, volume string) (dir string, ok bool)

	Every      time.Duration // how often CPU counters are looked at; default 15s, at least 10s
	StorageAge time.Duration // how long the size of folders is remembered; default 1m
}

// Reader measures a node and its pods. It is safe for concurrent use.
type Reader struct {
	opts    Options
	started time.Time

	mu      sync.Mutex // guards the fields below
	machine *Machine
	cgroups *Cgroups
	file    scratch
	windows map[string]*window // by cgroup; "" is the node
	round   uint64

	storage storageCache
}

// New checks opts and returns a Reader. Run is needed only for rates that are known at once.
func New(opts Options) (*Reader, error) {
	if opts.Pods == nil || opts.PodsDir == "" || opts.LogDir == "" {
		return nil, errors.New("stats: Pods, PodsDir and LogDir are required")
	}
	opts.ImageDir = cmp.Or(opts.ImageDir, opts.PodsDir)
	opts.CgroupRoot = cmp.Or(opts.CgroupRoot, "/")
	opts.CgroupMount = cmp.Or(opts.CgroupMount, "/sys/fs/cgroup")
	opts.Proc = cmp.Or(opts.Proc, "/proc")
	opts.Every = cmp.Or(opts.Every, 15*time.Second)
	opts.StorageAge = cmp.Or(opts.StorageAge, time.Minute)
	if opts.Every < minWindow {
		return nil, errors.New("stats: Every is less than 10s")
	}
	return &Reader{
		opts: opts, started: time.Now(), machine: NewMachine(opts.Proc), cgroups: NewCgroups(opts.CgroupMount),
		windows: map[string]*window{}, storage: storageCache{walking: make(chan struct{}, 1), pods: map[string]*measured{}},
	}, nil
}

// Run looks at the CPU counters of everything now and then, until ctx ends.
func (r *Reader) Run(ctx context.Context) error {
	for {
		r.sample()
		if !lifecycle.Pause(ctx, r.opts.Every) {
			return nil
		}
	}
}

// sample takes a point of each counter and forgets what is gone.
func (r *Reader) sample() {
	pods := r.opts.Pods()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.round++
	var node Node
	if r.machine.cpu(&node) == nil {
		r.windowLocked("").add(point{time.Now(), node.CPUNanos})
	}
	known := make(map[string]bool, len(pods))
	for _, pod := range pods {
		known[string(pod.UID)] = true
		cgroup := r.CgroupOf(pod)
		if !r.sampleLocked(cgroup) {
			continue
		}
		forRunning(pod, func(_ *corev1.ContainerStatus, id string) { r.sampleLocked(cgroup + "/" + id) })
	}
	for name, w := range r.windows {
		if w.round != r.round {
			delete(r.windows, name)
		}
	}
	r.storage.keep(known)
}

func (r *Reader) sampleLocked(cgroup string) bool {
	nanos, err := r.cgroups.CPU(cgroup)
	if err != nil {
		return false
	}
	r.windowLocked(cgroup).add(point{time.Now(), nanos})
	return true
}

func (r *Reader) windowLocked(cgroup string) *window {
	w := r.windows[cgroup]
	if w == nil {
		w = &window{}
		r.windows[cgroup] = w
	}
	w.round = r.round
	return w
}

// CgroupOf is the cgroup of a pod; those of its containers are below, named by their IDs.
func (r *Reader) CgroupOf(pod *corev1.Pod) string {
	return podconfig.CgroupPath(r.opts.CgroupRoot, pod)
}

// Node reads what the machine uses. It is cheap: call it as often as needed.
func (r *Reader) Node(n *Node) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.machine.Read(n)
}

// NodeMemory reads only the memory of the machine, into n: one small file.
func (r *Reader) NodeMemory(n *Node) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	n.At = time.Now()
	return r.machine.Memory(n)
}

// NodeFS measures the file systems of the pods' folders and logs, and of images and containers.
func (r *Reader) NodeFS() (nodeFS, imageFS FS, err error) {
	if nodeFS, err = ReadFS(r.opts.PodsDir); err != nil {
		return nodeFS, imageFS, err
	}
	imageFS, err = ReadFS(r.opts.ImageDir)
	return nodeFS, imageFS, err
}

// Pod reads what a pod uses as a whole. It fails while the pod has no cgroup.
func (r *Reader) Pod(pod *corev1.Pod, u *Usage) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cgroups.Read(r.CgroupOf(pod), u)
}

// Container reads what a running container of a pod uses, by the runtime's ID.
func (r *Reader) Container(pod *corev1.Pod, id string, u *Usage) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cgroups.Read(r.CgroupOf(pod)+"/"+id, u)
}

// Rate is how many nanoseconds of CPU time a cgroup, or the node with "", uses a second, and
// over which time that was measured; false when it is too new. nanos is the counter now, and
// began when it was 0, if that is known.
func (r *Reader) Rate(cgroup string, nanos uint64, began time.Time) (nanoCores uint64, over time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.windowLocked(cgroup)
	w.add(point{time.Now(), nanos})
	w.began(began)
	return w.rate()
}

// interfaces reads the network interfaces of a pod, or of the node with nil.
func (r *Reader) interfaces(pod *corev1.Pod) []Interface {
	r.mu.Lock()
	defer r.mu.Unlock()
	if pod == nil {
		return interfaces(&r.file, r.opts.Proc, 0)
	}
	if pod.Spec.HostNetwork {
		return nil
	}
	pid, cgroup := 0, r.CgroupOf(pod)
	forRunning(pod, func(_ *corev1.ContainerStatus, id string) {
		if pid == 0 {
			pid = r.cgroups.Process(cgroup + "/" + id)
		}
	})
	if pid == 0 {
		return nil
	}
	return interfaces(&r.file, r.opts.Proc, pid)
}

// forRunning calls f with each running container of a pod and its ID.
func forRunning(pod *corev1.Pod, f func(status *corev1.ContainerStatus, id string)) {
	for _, list := range [...][]corev1.ContainerStatus{
		pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses,
	} {
		for i := range list {
			if list[i].State.Running == nil {
				continue
			}
			if _, id, ok := strings.Cut(list[i].ContainerID, "://"); ok {
				f(&list[i], id)
			}
		}
	}
}
