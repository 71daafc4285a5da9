package stats

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// Summary is what the kubelet's /stats/summary tells. With brief set it has CPU, memory and swap
// only, which costs no walk through folders.
func (r *Reader) Summary(ctx context.Context, brief bool) (*statsapi.Summary, error) {
	out := &statsapi.Summary{Pods: []statsapi.PodStats{}}
	if err := r.nodeSummary(&out.Node, brief); err != nil {
		return nil, err
	}
	for _, pod := range r.opts.Pods() {
		if p, ok := r.podSummary(ctx, pod, brief); ok {
			out.Pods = append(out.Pods, p)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return out, nil
}

func (r *Reader) nodeSummary(out *statsapi.NodeStats, brief bool) error {
	var n Node
	if err := r.Node(&n); err != nil {
		return err
	}
	at := metav1.NewTime(n.At)
	out.NodeName = r.opts.NodeName
	r.mu.Lock()
	out.StartTime = metav1.NewTime(r.machine.boot)
	r.mu.Unlock()
	out.CPU = &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: &n.CPUNanos, UsageNanoCores: new(uint64)}
	if rate, _, ok := r.Rate("", n.CPUNanos, time.Time{}); ok {
		*out.CPU.UsageNanoCores = rate
	}
	out.Memory = &statsapi.MemoryStats{
		Time: at, AvailableBytes: &n.AvailableBytes, UsageBytes: &n.MemoryBytes, WorkingSetBytes: &n.WorkingSetBytes,
		RSSBytes: &n.RSSBytes, PageFaults: &n.PageFaults, MajorPageFaults: &n.MajorPageFaults,
	}
	swapLeft := n.SwapCapacity - n.SwapBytes
	out.Swap = &statsapi.SwapStats{Time: at, SwapUsageBytes: &n.SwapBytes, SwapAvailableBytes: &swapLeft}
	r.pressure(r.opts.Proc+"/pressure/", "", out.CPU, out.Memory, &out.IO, at)
	if pods, ok := r.systemContainer(statsapi.SystemContainerPods, r.podsCgroup()); ok {
		out.SystemContainers = append(out.SystemContainers, pods)
	}
	if brief {
		return nil
	}
	pids, maxPids := int64(n.Pids), int64(n.MaxPids)
	out.Rlimit = &statsapi.RlimitStats{Time: at, MaxPID: &maxPids, NumOfRunningProcesses: &pids}
	out.Network = network(r.interfaces(nil), at)
	nodeFS, imageFS, err := r.NodeFS()
	if err != nil {
		return err
	}
	out.Fs = fsStats(nodeFS)
	out.Runtime = &statsapi.RuntimeStats{ImageFs: fsStats(imageFS), ContainerFs: fsStats(imageFS)}
	return nil
}

// podsCgroup is the parent of all pods' cgroups.
func (r *Reader) podsCgroup() string {
	if r.opts.CgroupRoot == "/" {
		return "/kubepods"
	}
	return r.opts.CgroupRoot + "/kubepods"
}

func (r *Reader) systemContainer(name, cgroup string) (statsapi.ContainerStats, bool) {
	r.mu.Lock()
	var u Usage
	err := r.cgroups.Read(cgroup, &u)
	r.mu.Unlock()
	if err != nil {
		return statsapi.ContainerStats{}, false
	}
	out := statsapi.ContainerStats{Name: name, StartTime: metav1.NewTime(r.started)}
	out.CPU, out.Memory, out.Swap = r.figures(cgroup, &u, time.Time{})
	return out, true
}

// figures are CPU, memory and swap of a cgroup that was made at began.
func (r *Reader) figures(cgroup string, u *Usage, began time.Time) (*statsapi.CPUStats, *statsapi.MemoryStats, *statsapi.SwapStats) {
	at := metav1.NewTime(u.At)
	cpu := &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: &u.CPUNanos}
	if rate, _, ok := r.Rate(cgroup, u.CPUNanos, began); ok {
		cpu.UsageNanoCores = &rate
	}
	memory := &statsapi.MemoryStats{
		Time: at, UsageBytes: &u.MemoryBytes, WorkingSetBytes: &u.WorkingSetBytes, RSSBytes: &u.RSSBytes,
		PageFaults: &u.PageFaults, MajorPageFaults: &u.MajorPageFaults,
	}
	if u.MemoryLimitBytes > 0 {
		left := u.MemoryLimitBytes - min(u.MemoryLimitBytes, u.WorkingSetBytes)
		memory.AvailableBytes = &left
	}
	swap := &statsapi.SwapStats{Time: at, SwapUsageBytes: &u.SwapBytes}
	if u.SwapLimitBytes > 0 {
		left := u.SwapLimitBytes - min(u.SwapLimitBytes, u.SwapBytes)
		swap.SwapAvailableBytes = &left
	}
	if r.cgroups.unified {
		var io *statsapi.IOStats
		r.pressure(r.cgroups.mount+cgroup+"/", ".pressure", cpu, memory, &io, at)
	}
	return cpu, memory, swap
}

// podSummary is false for a pod that has nothing running.
func (r *Reader) podSummary(ctx context.Context, pod *corev1.Pod, brief bool) (statsapi.PodStats, bool) {
	out := statsapi.PodStats{
		PodRef:     statsapi.PodReference{Name: pod.Name, Namespace: pod.Namespace, UID: string(pod.UID)},
		Containers: []statsapi.ContainerStats{},
	}
	var u Usage
	if r.Pod(pod, &u) != nil {
		return out, false
	}
	began := time.Time{}
	if pod.Status.StartTime != nil {
		out.StartTime = *pod.Status.StartTime
		began = pod.Status.StartTime.Time
	}
	out.CPU, out.Memory, out.Swap = r.figures(r.CgroupOf(pod), &u, began)
	forRunning(pod, func(status *corev1.ContainerStatus, id string) {
		u := new(Usage)
		if r.Container(pod, id, u) != nil {
			return
		}
		c := statsapi.ContainerStats{Name: status.Name, StartTime: status.State.Running.StartedAt}
		c.CPU, c.Memory, c.Swap = r.figures(r.CgroupOf(pod)+"/"+id, u, status.State.Running.StartedAt.Time)
		out.Containers = append(out.Containers, c)
	})
	if len(out.Containers) == 0 {
		return out, false
	}
	if brief {
		return out, true
	}
	pids := u.Pids
	out.ProcessStats = &statsapi.ProcessStats{ProcessCount: &pids}
	out.Network = network(r.interfaces(pod), metav1.NewTime(u.At))
	if s, err := r.Storage(ctx, pod); err == nil {
		r.addStorage(&out, pod, s)
	}
	return out, true
}

// addStorage adds the disk space of a pod.
func (r *Reader) addStorage(out *statsapi.PodStats, pod *corev1.Pod, s Storage) {
	nodeFS, imageFS, err := r.NodeFS()
	if err != nil {
		return
	}
	part := func(of FS, bytes, inodes uint64) *statsapi.FsStats {
		of.At, of.UsedBytes, of.InodesUsed = s.At, bytes, inodes
		return fsStats(of)
	}
	for i := range out.Containers {
		c := &out.Containers[i]
		if found, ok := s.Containers[c.Name]; ok {
			c.Rootfs = part(imageFS, found.RootfsBytes, found.RootfsInodes)
			c.Logs = part(nodeFS, found.LogBytes, found.LogInodes)
		}
	}
	for name, v := range s.Volumes {
		out.VolumeStats = append(out.VolumeStats, statsapi.VolumeStats{Name: name, FsStats: *fsStats(v.FS)})
	}
	r.forClaims(pod, func(volume, claim string, fs FS) {
		out.VolumeStats = append(out.VolumeStats, statsapi.VolumeStats{
			Name: volume, FsStats: *fsStats(fs), PVCRef: &statsapi.PVCReference{Namespace: pod.Namespace, Name: claim},
		})
	})
	out.EphemeralStorage = part(nodeFS, s.UsedBytes, s.InodesUsed)
}

func fsStats(f FS) *statsapi.FsStats {
	return &statsapi.FsStats{
		Time: metav1.NewTime(f.At), AvailableBytes: &f.AvailableBytes, CapacityBytes: &f.CapacityBytes, UsedBytes: &f.UsedBytes,
		Inodes: &f.Inodes, InodesFree: &f.InodesFree, InodesUsed: &f.InodesUsed,
	}
}

// network is nil without interfaces. The default one, eth0, stands for all, as with the kubelet.
func network(list []Interface, at metav1.Time) *statsapi.NetworkStats {
	if len(list) == 0 {
		return nil
	}
	out := &statsapi.NetworkStats{Time: at}
	for i := range list {
		one := statsapi.InterfaceStats{
			Name: list[i].Name, RxBytes: &list[i].RxBytes, RxErrors: &list[i].RxErrors, TxBytes: &list[i].TxBytes, TxErrors: &list[i].TxErrors,
		}
		if one.Name == "eth0" {
			out.InterfaceStats = one
		}
		out.Interfaces = append(out.Interfaces, one)
	}
	return out
}

// pressure adds the kernel's pressure stall information (PSI), where it has any.
func (r *Reader) pressure(prefix, suffix string, cpu *statsapi.CPUStats, memory *statsapi.MemoryStats, io **statsapi.IOStats, at metav1.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	cpu.PSI = psi(&r.file, prefix+"cpu"+suffix)
	memory.PSI = psi(&r.file, prefix+"memory"+suffix)
	if stall := psi(&r.file, prefix+"io"+suffix); stall != nil {
		*io = &statsapi.IOStats{Time: at, PSI: stall}
	}
}

func psi(file *scratch, path string) *statsapi.PSIStats {
	data, err := file.read(path)
	if err != nil {
		return nil
	}
	out := &statsapi.PSIStats{}
	for len(data) > 0 {
		var text []byte
		text, data = line(data)
		var kind string
		var d statsapi.PSIData
		var total uint64
		if _, err := fmt.Sscanf(string(text), "%s avg10=%f avg60=%f avg300=%f total=%d", &kind, &d.Avg10, &d.Avg60, &d.Avg300, &total); err != nil {
			continue
		}
		d.Total = total * 1000 // microseconds; the API has nanoseconds
		if kind == "full" {
			out.Full = d
		} else {
			out.Some = d
		}
	}
	return out
}
