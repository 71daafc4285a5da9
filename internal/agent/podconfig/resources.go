package podconfig

import (
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/kubectl/pkg/util/qos"

	"gantry.dev/gantry/internal/container"
)

// Bounds and units of cgroup CPU settings, as the kubelet uses them.
const (
	minShares    = 2
	maxShares    = 262144
	sharesPerCPU = 1024
	minQuota     = 1000
	period       = 100000
)

// Out-of-memory scores by quality of service.
const (
	scoreGuaranteed = -997
	scoreBestEffort = 1000
)

// cpuShares converts a CPU request into cgroup v1 shares.
func cpuShares(milli int64) uint64 {
	return uint64(min(max(milli*sharesPerCPU/1000, minShares), maxShares))
}

// cpuQuota converts a CPU limit into microseconds a period; 0 is no limit.
func cpuQuota(milli int64) int64 {
	if milli == 0 {
		return 0
	}
	return max(milli*period/1000, minQuota)
}

// PodsCgroup is the cgroup above all pods, ClassCgroup that of a class of service; guaranteed
// pods have none of their own.
func PodsCgroup(root string) string { return path.Join("/", root, "kubepods") }

// ClassCgroup is the cgroup above the pods of a class of service.
func ClassCgroup(root string, class corev1.PodQOSClass) string {
	if class == corev1.PodQOSGuaranteed {
		return PodsCgroup(root)
	}
	return path.Join(PodsCgroup(root), strings.ToLower(string(class)))
}

// Class is a pod's class of service.
func Class(pod *corev1.Pod) corev1.PodQOSClass { return qos.GetPodQOS(pod) }

// CPUShares converts a CPU request into cgroup v1 shares.
func CPUShares(milli int64) uint64 { return cpuShares(milli) }

// CgroupPath is the cgroup of a pod: /kubepods, the class unless guaranteed, then pod and UID.
func CgroupPath(root string, pod *corev1.Pod) string {
	return path.Join(ClassCgroup(root, qos.GetPodQOS(pod)), "pod"+string(pod.UID))
}

// PodResources are the settings of the pod's own cgroup.
func PodResources(pod *corev1.Pod, pidsLimit int64) container.Resources {
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	cpuDeclared, memoryDeclared := true, true
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{
		ContainerFn: func(list corev1.ResourceList, _ resourcehelper.ContainerType) {
			cpuDeclared = cpuDeclared && !list.Cpu().IsZero()
			memoryDeclared = memoryDeclared && !list.Memory().IsZero()
		},
	})
	if r := pod.Spec.Resources; r != nil {
		cpuDeclared = cpuDeclared || !r.Limits.Cpu().IsZero()
		memoryDeclared = memoryDeclared || !r.Limits.Memory().IsZero()
	}
	res := container.Resources{
		CPUShares:      cpuShares(requests.Cpu().MilliValue()),
		PidsLimit:      pidsLimit,
		HugepageLimits: hugepages(limits),
	}
	class := qos.GetPodQOS(pod)
	if class == corev1.PodQOSBestEffort {
		res.CPUShares = minShares
		return res
	}
	if class == corev1.PodQOSGuaranteed || cpuDeclared {
		if quota := cpuQuota(limits.Cpu().MilliValue()); quota > 0 {
			res.CPUQuotaMicros, res.CPUPeriodMicros = quota, period
		}
	}
	if class == corev1.PodQOSGuaranteed || memoryDeclared {
		res.MemoryLimitBytes = limits.Memory().Value()
	}
	return res
}

// ContainerResources are the settings of one container's cgroup. memoryCapacity is the node's,
// in bytes.
func ContainerResources(pod *corev1.Pod, c *corev1.Container, memoryCapacity int64) container.Resources {
	request, limit, memoryLimit := c.Resources.Requests.Cpu(), c.Resources.Limits.Cpu(), c.Resources.Limits.Memory()
	if r := pod.Spec.Resources; r != nil { // a container without a limit has the pod's
		if limit.IsZero() {
			limit = r.Limits.Cpu()
		}
		if memoryLimit.IsZero() {
			memoryLimit = r.Limits.Memory()
		}
	}
	shares := cpuShares(request.MilliValue())
	if request.IsZero() && !limit.IsZero() {
		// A limit without a request counts as a request; the API's defaults say the same.
		shares = cpuShares(limit.MilliValue())
	}
	score := oomScore(pod, c, memoryCapacity)
	res := container.Resources{
		CPUShares:        shares,
		MemoryLimitBytes: memoryLimit.Value(),
		OOMScoreAdj:      &score,
		HugepageLimits:   hugepages(c.Resources.Limits),
	}
	if quota := cpuQuota(limit.MilliValue()); quota > 0 {
		res.CPUQuotaMicros, res.CPUPeriodMicros = quota, period
	}
	return res
}

func hugepages(list corev1.ResourceList) map[string]uint64 {
	var limits map[string]uint64
	for name, q := range list {
		size, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix)
		if !ok {
			continue
		}
		if limits == nil {
			limits = map[string]uint64{}
		}
		limits[strings.TrimSuffix(size, "i")+"B"] = uint64(q.Value())
	}
	return limits
}

// oomScore is how soon the kernel kills the container when memory runs out: the smaller the
// share of the node's memory that it asked for, the sooner.
func oomScore(pod *corev1.Pod, c *corev1.Container, memoryCapacity int64) int {
	if p := pod.Spec.Priority; p != nil && *p >= 2000000000 && pod.Spec.PriorityClassName == "system-node-critical" {
		return scoreGuaranteed
	}
	switch qos.GetPodQOS(pod) {
	case corev1.PodQOSGuaranteed:
		return scoreGuaranteed
	case corev1.PodQOSBestEffort:
		return scoreBestEffort
	}
	if memoryCapacity <= 0 {
		return scoreBestEffort - 1
	}
	shared := unclaimed(pod)
	score := 1000 - 1000*(c.Resources.Requests.Memory().Value()+shared)/memoryCapacity
	if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
		lowest := int64(-1) // a sidecar lives as long as the least requesting app container
		for i := range pod.Spec.Containers {
			request := pod.Spec.Containers[i].Resources.Requests.Memory().Value()
			if lowest < 0 || request < lowest {
				lowest = request
			}
		}
		score = min(score, 1000-1000*(max(lowest, 0)+shared)/memoryCapacity)
	}
	return int(min(max(score, 1000+scoreGuaranteed), scoreBestEffort-1))
}

// unclaimed is each container's part of the memory that the pod as a whole asks for beyond what
// its containers do.
func unclaimed(pod *corev1.Pod) int64 {
	if pod.Spec.Resources == nil {
		return 0
	}
	asked, ok := pod.Spec.Resources.Requests[corev1.ResourceMemory]
	if !ok || len(pod.Spec.Containers) == 0 {
		return 0
	}
	claimed := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{SkipPodLevelResources: true})
	left := asked.Value() - claimed.Memory().Value()
	sharers := int64(len(pod.Spec.Containers))
	for i := range pod.Spec.InitContainers {
		if policy := pod.Spec.InitContainers[i].RestartPolicy; policy != nil && *policy == corev1.ContainerRestartPolicyAlways {
			sharers++
		}
	}
	return max(left, 0) / sharers
}
