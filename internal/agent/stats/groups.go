package stats

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Group is one cgroup with what belongs to it: a container, a pod (no Container), all pods of a
// class (no Pod), or the machine ("/").
type Group struct {
	Cgroup                    string
	Namespace, Pod, Container string
	ID, Image                 string // of the container
	Started                   time.Time
	Usage                     Usage
	Shares                    uint64 // of the CPU, in the units of cgroup v1
	QuotaMicros, PeriodMicros uint64 // 0 is none
	Interfaces                []Interface
	FS                        *FS // nil where disk space is not told
	Device                    string
}

// Groups measures every cgroup that has to do with pods, and the machine.
func (r *Reader) Groups(ctx context.Context) ([]Group, error) {
	machine, err := r.machineGroup()
	if err != nil {
		return nil, err
	}
	list := []Group{machine}
	root := r.podsCgroup()
	for _, cgroup := range []string{root, root + "/burstable", root + "/besteffort"} {
		g := Group{Cgroup: cgroup, Started: r.started}
		if r.readGroup(&g) {
			list = append(list, g)
		}
	}
	for _, pod := range r.opts.Pods() {
		g := Group{Cgroup: r.CgroupOf(pod), Namespace: pod.Namespace, Pod: pod.Name}
		if pod.Status.StartTime != nil {
			g.Started = pod.Status.StartTime.Time
		}
		if !r.readGroup(&g) {
			continue
		}
		g.Interfaces = r.interfaces(pod)
		list = append(list, g)
		list = r.containerGroups(ctx, pod, list)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return list, nil
}

func (r *Reader) containerGroups(ctx context.Context, pod *corev1.Pod, list []Group) []Group {
	storage, storageErr := r.Storage(ctx, pod)
	imageFS, fsErr := ReadFS(r.opts.ImageDir)
	forRunning(pod, func(status *corev1.ContainerStatus, id string) {
		g := Group{
			Cgroup: r.CgroupOf(pod) + "/" + id, Namespace: pod.Namespace, Pod: pod.Name, Container: status.Name,
			ID: id, Image: status.Image, Started: status.State.Running.StartedAt.Time,
		}
		if !r.readGroup(&g) {
			return
		}
		if found, ok := storage.Containers[status.Name]; ok && storageErr == nil && fsErr == nil {
			fs := imageFS
			fs.UsedBytes, fs.InodesUsed = found.RootfsBytes, found.RootfsInodes
			g.FS = &fs
		}
		list = append(list, g)
	})
	return list
}

// readGroup fills in what the kernel knows of a cgroup; false if it is gone.
func (r *Reader) readGroup(g *Group) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cgroups.Read(g.Cgroup, &g.Usage) != nil {
		return false
	}
	r.cgroups.cpuSettings(g)
	return true
}

func (r *Reader) machineGroup() (Group, error) {
	var n Node
	if err := r.Node(&n); err != nil {
		return Group{}, err
	}
	r.mu.Lock()
	started := r.machine.boot
	r.mu.Unlock()
	g := Group{Cgroup: "/", Started: started, Interfaces: r.interfaces(nil), Usage: Usage{
		At: n.At, CPUNanos: n.CPUNanos, UserNanos: n.UserNanos, SystemNanos: n.SystemNanos,
		MemoryBytes: n.MemoryBytes, WorkingSetBytes: n.WorkingSetBytes, RSSBytes: n.RSSBytes, CacheBytes: n.MemoryBytes - min(n.MemoryBytes, n.RSSBytes),
		SwapBytes: n.SwapBytes, PageFaults: n.PageFaults, MajorPageFaults: n.MajorPageFaults, MemoryLimitBytes: n.CapacityBytes,
		Pids: n.Pids, PidsLimit: n.MaxPids,
	}}
	if fs, err := ReadFS(r.opts.PodsDir); err == nil {
		g.FS = &fs
	}
	return g, nil
}

// cpuSettings reads shares and quota of a cgroup, in v1's units.
func (c *Cgroups) cpuSettings(g *Group) {
	if !c.unified {
		g.Shares, _ = c.file.number(c.path("cpu", g.Cgroup, "cpu.shares"))
		g.PeriodMicros, _ = c.file.number(c.path("cpu", g.Cgroup, "cpu.cfs_period_us"))
		g.QuotaMicros, _ = c.file.number(c.path("cpu", g.Cgroup, "cpu.cfs_quota_us")) // -1 is an error, and none
		return
	}
	if weight, err := c.file.number(c.path("", g.Cgroup, "cpu.weight")); err == nil && weight > 0 {
		g.Shares = 2 + (weight-1)*262142/9999
	}
	if data, err := c.file.read(c.path("", g.Cgroup, "cpu.max")); err == nil {
		quota, period := field(data)
		g.QuotaMicros, _ = parse(quota)
		g.PeriodMicros, _ = parse(period)
	}
}

// ClaimVolume is the space of a volume that a claim stands for.
type ClaimVolume struct {
	Namespace, Claim string
	FS
}

// ClaimVolumes measures the file systems of mounted volumes that have claims.
func (r *Reader) ClaimVolumes() []ClaimVolume {
	var list []ClaimVolume
	seen := map[string]bool{}
	for _, pod := range r.opts.Pods() {
		r.forClaims(pod, func(_, claim string, fs FS) {
			if key := pod.Namespace + "/" + claim; !seen[key] {
				seen[key] = true
				list = append(list, ClaimVolume{pod.Namespace, claim, fs})
			}
		})
	}
	return list
}

// forClaims calls f with the volumes of a pod that claims stand for, and their file systems.
func (r *Reader) forClaims(pod *corev1.Pod, f func(volume, claim string, fs FS)) {
	if r.opts.VolumeDir == nil {
		return
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		claim := ""
		switch {
		case v.PersistentVolumeClaim != nil:
			claim = v.PersistentVolumeClaim.ClaimName
		case v.Ephemeral != nil:
			claim = pod.Name + "-" + v.Name
		default:
			continue
		}
		dir, ok := r.opts.VolumeDir(pod, v.Name)
		if !ok {
			continue
		}
		if fs, err := ReadFS(dir); err == nil {
			f(v.Name, claim, fs)
		}
	}
}
