package eviction

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Disk is what files take.
type Disk struct{ Bytes, Inodes int64 }

func (d *Disk) add(other Disk) {
	d.Bytes += other.Bytes
	d.Inodes += other.Inodes
}

// ContainerUsage is what one container uses.
type ContainerUsage struct {
	Name         string
	MemoryBytes  int64 // working set
	RootFS, Logs Disk  // what it wrote into its own file system, and into its log
}

// Usage is what one pod uses.
type Usage struct {
	MemoryBytes int64 // working set
	Processes   int64
	Containers  []ContainerUsage
	Volumes     map[string]Disk // emptyDir volumes and such, by name
	Files       Disk            // what the agent keeps for the pod, such as its hosts file
}

// ephemeral is all that counts against the pod's ephemeral storage limit.
func (u Usage) ephemeral(pod *corev1.Pod) int64 {
	total := u.Files
	for _, c := range u.Containers {
		total.add(c.RootFS)
		total.add(c.Logs)
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if localEphemeral(v) {
			total.add(u.Volumes[v.Name])
		}
	}
	return total.Bytes
}

// localEphemeral reports whether a volume's files lie on the node's disk and end with the pod.
func localEphemeral(v *corev1.Volume) bool {
	return v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumDefault || v.ConfigMap != nil || v.GitRepo != nil
}

// Usages are what pods use, by UID; a pod may be missing.
type Usages map[string]Usage

func (u Usages) of(pod *corev1.Pod) (Usage, bool) {
	usage, ok := u[string(pod.UID)]
	return usage, ok
}

// Rank sorts pods so that the one to end first comes first. split says that images and the
// containers' own files lie on another disk than logs and volumes.
func Rank(signal Signal, split bool, pods []*corev1.Pod, usages Usages) {
	var order []func(a, b *corev1.Pod) int
	switch signal.Resource() {
	case corev1.ResourceMemory:
		memory := func(pod *corev1.Pod, u Usage) int64 { return u.MemoryBytes }
		order = append(order,
			exceeding(usages, memory, corev1.ResourceMemory),
			byPriority,
			mostAbove(usages, memory, corev1.ResourceMemory))
	case ResourcePIDs:
		processes := func(_ *corev1.Pod, u Usage) int64 { return u.Processes }
		order = append(order, byPriority, mostAbove(usages, processes, ResourcePIDs))
	default:
		disk := func(pod *corev1.Pod, u Usage) int64 {
			d := diskUsage(signal, split, pod, u)
			if signal.Resource() == ResourceInodes {
				return d.Inodes
			}
			return d.Bytes
		}
		order = append(order,
			exceeding(usages, disk, signal.Resource()),
			byPriority,
			// Upstream subtracts the request for bytes here, for inodes too.
			mostAbove(usages, disk, corev1.ResourceEphemeralStorage))
	}
	slices.SortStableFunc(pods, func(a, b *corev1.Pod) int {
		for _, compare := range order {
			if c := compare(a, b); c != 0 {
				return c
			}
		}
		return 0
	})
}

// diskUsage is what a pod takes of the file system that a signal is about.
func diskUsage(signal Signal, split bool, pod *corev1.Pod, u Usage) Disk {
	nodeFS := signal == NodeFSAvailable || signal == NodeFSInodesFree
	var total Disk
	for _, c := range u.Containers {
		if !split || !nodeFS {
			total.add(c.RootFS)
		}
		if !split || nodeFS {
			total.add(c.Logs)
		}
	}
	if split && !nodeFS {
		return total
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if localEphemeral(v) || v.HostPath != nil {
			total.add(u.Volumes[v.Name])
		}
	}
	return total
}

// request is what the pod asked for, in bytes or pieces.
func request(pod *corev1.Pod, name corev1.ResourceName) int64 {
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{ExcludeOverhead: true})
	q := requests[name]
	if overhead, ok := pod.Spec.Overhead[name]; ok && !q.IsZero() {
		q.Add(overhead)
	}
	return q.Value()
}

type measure func(*corev1.Pod, Usage) int64

// unknownFirst orders pods of which one or both have no figures; ok is false when both have.
func unknownFirst(usages Usages, a, b *corev1.Pod) (result int, ua, ub Usage, ok bool) {
	ua, foundA := usages.of(a)
	ub, foundB := usages.of(b)
	if foundA && foundB {
		return 0, ua, ub, false
	}
	return trueFirst(!foundA, !foundB), ua, ub, true
}

// exceeding puts pods that use more than they asked for first.
func exceeding(usages Usages, used measure, name corev1.ResourceName) func(a, b *corev1.Pod) int {
	return func(a, b *corev1.Pod) int {
		result, ua, ub, unknown := unknownFirst(usages, a, b)
		if unknown {
			return result
		}
		return trueFirst(used(a, ua) > request(a, name), used(b, ub) > request(b, name))
	}
}

// mostAbove puts the pod first that uses the most beyond what it asked for.
func mostAbove(usages Usages, used measure, name corev1.ResourceName) func(a, b *corev1.Pod) int {
	return func(a, b *corev1.Pod) int {
		result, ua, ub, unknown := unknownFirst(usages, a, b)
		if unknown {
			return result
		}
		return cmp.Compare(used(b, ub)-request(b, name), used(a, ua)-request(a, name))
	}
}

func byPriority(a, b *corev1.Pod) int { return cmp.Compare(priority(a), priority(b)) }

func priority(pod *corev1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}

func trueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}
