package agent

import (
	"context"
	"math"
	"os"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/agent/eviction"
	"gantry.dev/gantry/internal/agent/podconfig"
	"gantry.dev/gantry/internal/agent/stats"
)

// figures measure the node for the eviction of pods.
type figures interface {
	// quick is memory and disk, cheap enough for every second; all is for every few seconds.
	quick() (eviction.Observations, error)
	all() (eviction.Observations, error)
	// usages are what pods use; with disk their folders are walked.
	usages(ctx context.Context, pods []*corev1.Pod, disk bool) eviction.Usages
	// storage is what one pod has on disk, not older than limitsAge.
	storage(ctx context.Context, pod *corev1.Pod) (eviction.Usage, error)
	// memoryOf is all memory that a container of a pod uses, or the whole pod with "".
	memoryOf(pod *corev1.Pod, id string) (int64, error)
	// split says that images and containers lie on another disk than pods' folders.
	split() bool
}

// limitsAge is how old the size of a pod's folders may be when it is held against limits.
const limitsAge = 10 * time.Second

// measured implements figures on the machine.
type measured struct{ agent *Agent }

func bytesOf(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

func (m measured) quick() (eviction.Observations, error) {
	var n stats.Node
	if err := m.agent.stats.NodeMemory(&n); err != nil {
		return nil, err
	}
	observed := eviction.Observations{
		eviction.MemoryAvailable: {Available: bytesOf(n.AvailableBytes), Capacity: bytesOf(n.CapacityBytes), At: n.At},
	}
	return observed, m.disks(observed)
}

// disks adds what is left of the file systems.
func (m measured) disks(observed eviction.Observations) error {
	nodeFS, imageFS, err := m.agent.stats.NodeFS()
	if err != nil {
		return err
	}
	for _, fs := range []struct {
		bytes, inodes eviction.Signal
		fs            stats.FS
	}{{eviction.NodeFSAvailable, eviction.NodeFSInodesFree, nodeFS}, {eviction.ImageFSAvailable, eviction.ImageFSInodesFree, imageFS}} {
		observed[fs.bytes] = eviction.Observation{Available: bytesOf(fs.fs.AvailableBytes), Capacity: bytesOf(fs.fs.CapacityBytes), At: fs.fs.At}
		if fs.fs.Inodes > 0 { // some file systems have no fixed number
			observed[fs.inodes] = eviction.Observation{Available: bytesOf(fs.fs.InodesFree), Capacity: bytesOf(fs.fs.Inodes), At: fs.fs.At}
		}
	}
	return nil
}

func (m measured) all() (eviction.Observations, error) {
	a := m.agent
	var n stats.Node
	if err := a.stats.Node(&n); err != nil {
		return nil, err
	}
	observed := eviction.Observations{
		eviction.MemoryAvailable: {Available: bytesOf(n.AvailableBytes), Capacity: bytesOf(n.CapacityBytes), At: n.At},
		eviction.PIDAvailable:    {Available: bytesOf(n.MaxPids) - bytesOf(n.Pids), Capacity: bytesOf(n.MaxPids), At: n.At},
	}
	var pods stats.Usage
	if a.stats.Cgroup(podconfig.PodsCgroup(a.opts.CgroupRoot), &pods) == nil && pods.MemoryLimitBytes > 0 {
		limit := bytesOf(pods.MemoryLimitBytes)
		observed[eviction.AllocatableMemoryAvailable] = eviction.Observation{
			Available: max(limit-bytesOf(pods.WorkingSetBytes), 0), Capacity: limit, At: pods.At,
		}
	}
	return observed, m.disks(observed)
}

func (m measured) usages(ctx context.Context, pods []*corev1.Pod, disk bool) eviction.Usages {
	usages := eviction.Usages{}
	var u stats.Usage
	for _, pod := range pods {
		if m.agent.stats.Pod(pod, &u) != nil {
			continue
		}
		usage := eviction.Usage{}
		if disk {
			s, err := m.agent.stats.Storage(ctx, pod)
			if err != nil {
				continue
			}
			usage = diskUsageOf(s)
		}
		usage.MemoryBytes, usage.Processes = bytesOf(u.WorkingSetBytes), bytesOf(u.Pids)
		for _, c := range m.agent.runningOf(pod) {
			if m.agent.stats.Container(pod, c.ID, &u) != nil {
				continue
			}
			usage.Containers = withMemory(usage.Containers, c.Name, bytesOf(u.WorkingSetBytes))
		}
		usages[string(pod.UID)] = usage
	}
	return usages
}

func withMemory(list []eviction.ContainerUsage, name string, bytes int64) []eviction.ContainerUsage {
	for i := range list {
		if list[i].Name == name {
			list[i].MemoryBytes = bytes
			return list
		}
	}
	return append(list, eviction.ContainerUsage{Name: name, MemoryBytes: bytes})
}

func (m measured) storage(ctx context.Context, pod *corev1.Pod) (eviction.Usage, error) {
	s, err := m.agent.stats.StorageWithin(ctx, pod, limitsAge)
	if err != nil {
		return eviction.Usage{}, err
	}
	return diskUsageOf(s), nil
}

func diskUsageOf(s stats.Storage) eviction.Usage {
	usage := eviction.Usage{Volumes: map[string]eviction.Disk{}}
	for name, c := range s.Containers {
		usage.Containers = append(usage.Containers, eviction.ContainerUsage{
			Name:   name,
			RootFS: eviction.Disk{Bytes: bytesOf(c.RootfsBytes), Inodes: bytesOf(c.RootfsInodes)},
			Logs:   eviction.Disk{Bytes: bytesOf(c.LogBytes), Inodes: bytesOf(c.LogInodes)},
		})
	}
	for name, v := range s.Volumes {
		usage.Volumes[name] = eviction.Disk{Bytes: bytesOf(v.UsedBytes), Inodes: bytesOf(v.InodesUsed)}
	}
	return usage
}

func (m measured) memoryOf(pod *corev1.Pod, id string) (int64, error) {
	var u stats.Usage
	if id == "" {
		err := m.agent.stats.Pod(pod, &u)
		return bytesOf(u.MemoryBytes), err
	}
	err := m.agent.stats.Container(pod, id, &u)
	return bytesOf(u.MemoryBytes), err
}

// split compares the devices of both folders.
func (m measured) split() bool {
	device := func(path string) (uint64, bool) {
		info, err := os.Stat(existing(path))
		if err != nil {
			return 0, false
		}
		s, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return 0, false
		}
		return s.Dev, true
	}
	pods, ok1 := device(m.agent.opts.PodsDir)
	images, ok2 := device(m.agent.opts.ImageDir)
	return ok1 && ok2 && pods != images
}
