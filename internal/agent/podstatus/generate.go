package podstatus

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/kubectl/pkg/util/qos"

	"gantry.dev/gantry/internal/agent/resize"
	"gantry.dev/gantry/internal/container"
)

// IDScheme is what precedes a container's ID in the API.
const IDScheme = "containerd://"

// Limits on what a pod's termination messages may take together.
const maxMessageBytes = 12 * 1024

// Waiting is why a container is not started, in the words of the API.
type Waiting struct{ Reason, Message string }

// Input is everything a pod's status is made from.
type Input struct {
	Pod      *corev1.Pod
	Old      *corev1.PodStatus // what was reported last; nil takes the pod's own
	Observed Observed
	Probes   Results
	Waiting  map[string]Waiting // by container name
	HostIPs  []string
	Ended    bool     // nothing of the pod runs or will run again
	Failure  *Waiting // the agent has failed the pod: deadline, admission, eviction
	// Disruption is the condition of a pod that its node ends; nil for others.
	Disruption *corev1.PodCondition
	// Has is what running containers have, by ID, where that is not what the pod's spec says,
	// and HasPod what the pod as a whole has: it is being resized.
	Has    map[string]corev1.ResourceRequirements
	HasPod *corev1.ResourceRequirements
	Resize []corev1.PodCondition // of a resize that waits or is in progress
	Now    metav1.Time
}

// Generate makes the status to report for a pod.
func Generate(in Input) corev1.PodStatus {
	if in.Old == nil {
		in.Old = &in.Pod.Status
	}
	if in.Probes == nil {
		in.Probes = NoResults{}
	}
	in.Now = *in.Now.DeepCopy()
	in.Now.Time = in.Now.Truncate(1e9)
	pod, old := in.Pod, in.Old
	status := corev1.PodStatus{
		ObservedGeneration: pod.Generation,
		QOSClass:           qos.GetPodQOS(pod),
		StartTime:          old.StartTime,
		NominatedNodeName:  pod.Status.NominatedNodeName,
		AllocatedResources: resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{}),
		Resources:          podResources(in.havingPod()),

		ResourceClaimStatuses:                pod.Status.ResourceClaimStatuses,
		ExtendedResourceClaimStatus:          pod.Status.ExtendedResourceClaimStatus,
		NodeAllocatableResourceClaimStatuses: pod.Status.NodeAllocatableResourceClaimStatuses,
	}
	if status.StartTime == nil {
		status.StartTime = &in.Now
	}
	addresses(&status, pod, in)
	status.ContainerStatuses = in.statuses(pod.Spec.Containers, old.ContainerStatuses, false)
	slices.SortFunc(status.ContainerStatuses, func(a, b corev1.ContainerStatus) int { return cmp.Compare(a.Name, b.Name) })
	status.InitContainerStatuses = in.statuses(pod.Spec.InitContainers, old.InitContainerStatuses, true)
	ephemeral := make([]corev1.Container, len(pod.Spec.EphemeralContainers))
	for i := range ephemeral {
		ephemeral[i] = corev1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
	}
	status.EphemeralContainerStatuses = in.statuses(ephemeral, old.EphemeralContainerStatuses, false)

	if in.Ended {
		markUnknown(pod, &status)
	}
	in.markProbes(&status)
	in.setPhase(&status)
	status.Conditions = conditions(pod, in.Observed.HasSandbox, &status)
	if !in.Ended && !Terminal(status.Phase) {
		status.Conditions = append(status.Conditions, in.Resize...)
	}
	status.Conditions = disrupted(status.Conditions, in.Disruption)
	stampTransitions(status.Conditions, slices.Concat(pod.Status.Conditions, old.Conditions), in.Now)
	stampTransitions(status.Conditions, old.Conditions, in.Now)
	normalize(pod, &status)
	return status
}

func addresses(status *corev1.PodStatus, pod *corev1.Pod, in Input) {
	ips := in.Observed.IPs
	if pod.Spec.HostNetwork {
		ips = in.HostIPs
	}
	for _, ip := range ips {
		status.PodIPs = append(status.PodIPs, corev1.PodIP{IP: ip})
	}
	if len(status.PodIPs) == 0 && (in.Ended || Terminal(pod.Status.Phase)) {
		status.PodIPs = slices.Clone(in.Old.PodIPs)
	}
	if len(status.PodIPs) > 0 {
		status.PodIP = status.PodIPs[0].IP
	}
	for _, ip := range in.HostIPs {
		status.HostIPs = append(status.HostIPs, corev1.HostIP{IP: ip})
	}
	if len(in.HostIPs) > 0 {
		status.HostIP = in.HostIPs[0]
	}
}

func (in Input) setPhase(status *corev1.PodStatus) {
	pod, old := in.Pod, in.Old
	all := slices.Concat(status.InitContainerStatuses, status.ContainerStatuses)
	status.Phase = Phase(pod, all, in.Ended, in.anyMainCreated())
	switch {
	case Terminal(pod.Status.Phase):
		status.Phase = pod.Status.Phase
	case Terminal(old.Phase):
		status.Phase = old.Phase
	case in.Failure != nil:
		status.Phase = corev1.PodFailed
	case in.Ended && !Terminal(status.Phase):
		status.Phase = corev1.PodFailed
	}
	if status.Phase == old.Phase {
		status.Reason = cmp.Or(old.Reason, pod.Status.Reason)
		status.Message = cmp.Or(old.Message, pod.Status.Message)
	}
	if in.Failure != nil {
		status.Reason, status.Message = in.Failure.Reason, in.Failure.Message
	}
	// A terminal phase lets others reuse what the pod held, so it waits for the last process.
	if Terminal(status.Phase) && !Terminal(old.Phase) && !Terminal(pod.Status.Phase) && len(in.Observed.Running()) > 0 {
		status.Phase, status.Reason, status.Message = old.Phase, old.Reason, old.Message
		if status.Phase == "" {
			status.Phase = corev1.PodPending
		}
	}
}

func (in Input) anyMainCreated() bool {
	for i := range in.Pod.Spec.Containers {
		if _, ok := in.Observed.Latest(in.Pod.Spec.Containers[i].Name); ok {
			return true
		}
	}
	return false
}

// statuses makes the statuses of one of the pod's container lists.
func (in Input) statuses(containers []corev1.Container, old []corev1.ContainerStatus, init bool) []corev1.ContainerStatus {
	var list []corev1.ContainerStatus
	for i := range containers {
		c := &containers[i]
		status := in.status(c, find(old, c.Name))
		if init && in.missedInit(c, &status) {
			list = append(list, status)
			continue
		}
		if waiting, ok := in.Waiting[c.Name]; ok && wantsRestart(c, in.Pod, in.Observed) && !in.Ended {
			if status.State.Terminated != nil {
				status.LastTerminationState = status.State
			}
			status.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: waiting.Reason, Message: waiting.Message}}
		}
		list = append(list, status)
	}
	return list
}

// markUnknown sets how containers of a pod that has ended have ended when nothing says so. Those
// that the pod never came to stay as they are: app containers unless the init containers were
// done, and the init containers after the last that was tried.
func markUnknown(pod *corev1.Pod, status *corev1.PodStatus) {
	lost := func(s *corev1.ContainerStatus) {
		if s.State.Terminated == nil {
			s.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				Reason:   "ContainerStatusUnknown",
				Message:  "The container could not be located when the pod was terminated",
				ExitCode: 137,
			}}
		}
	}
	tried := func(s corev1.ContainerStatus) bool {
		return s.State.Waiting == nil || s.LastTerminationState.Terminated != nil
	}
	if len(pod.Spec.InitContainers) == 0 || slices.ContainsFunc(status.ContainerStatuses, tried) || initDone(pod, status) {
		for i := range status.ContainerStatuses {
			lost(&status.ContainerStatuses[i])
		}
	}
	last := 0 // the first counts as tried
	for i, s := range status.InitContainerStatuses {
		if tried(s) {
			last = i
		}
	}
	for i := range status.InitContainerStatuses[:min(last+1, len(status.InitContainerStatuses))] {
		lost(&status.InitContainerStatuses[i])
	}
}

// initDone reports whether the last init container has succeeded, or started if it is a sidecar.
func initDone(pod *corev1.Pod, status *corev1.PodStatus) bool {
	n := len(status.InitContainerStatuses)
	if n == 0 {
		return false
	}
	s := &status.InitContainerStatuses[n-1]
	if Restartable(&pod.Spec.InitContainers[n-1]) {
		return s.State.Running != nil && s.Started != nil && *s.Started
	}
	for _, end := range []*corev1.ContainerStateTerminated{s.LastTerminationState.Terminated, s.State.Terminated} {
		if end != nil && end.ExitCode == 0 {
			return true
		}
	}
	return false
}

// missedInit fills in for an init container that has succeeded and was collected.
func (in Input) missedInit(c *corev1.Container, status *corev1.ContainerStatus) bool {
	if _, ok := in.Observed.Latest(c.Name); ok || Restartable(c) || status.State.Waiting == nil || !in.anyMainCreated() {
		return false
	}
	status.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		Reason:  "Completed",
		Message: "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally",
	}}
	return true
}

func (in Input) status(c *corev1.Container, old *corev1.ContainerStatus) corev1.ContainerStatus {
	found := in.Observed.Named(c.Name)
	if len(found) == 0 {
		return in.statusWithoutContainer(c, old)
	}
	status := convert(found[0], old)
	status.VolumeMounts = mountStatuses(c)
	status.Resources = c.Resources.DeepCopy()
	if has, ok := in.Has[found[0].ID]; ok && found[0].State == container.StateRunning {
		status.Resources = resize.Status(c.Resources, has)
	}
	status.AllocatedResources = c.Resources.Requests
	if len(found) > 1 {
		status.LastTerminationState = convert(found[1], nil).State
	}
	return status
}

func (in Input) statusWithoutContainer(c *corev1.Container, old *corev1.ContainerStatus) corev1.ContainerStatus {
	reason := "ContainerCreating"
	if len(in.Pod.Spec.InitContainers) > 0 {
		reason = "PodInitializing"
	}
	status := corev1.ContainerStatus{
		Name:         c.Name,
		Image:        c.Image,
		State:        corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}},
		VolumeMounts: mountStatuses(c),
	}
	if old == nil {
		return status
	}
	if old.State.Terminated != nil {
		return *old.DeepCopy()
	}
	status.RestartCount = old.RestartCount
	status.LastTerminationState = *old.LastTerminationState.DeepCopy()
	if old.State.Running != nil && status.LastTerminationState.Terminated == nil {
		status.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{
			Reason:   "ContainerStatusUnknown",
			Message:  "The container could not be located when the pod was deleted.  The container used to be Running",
			ExitCode: 137,
		}
		if in.Pod.DeletionTimestamp == nil {
			status.RestartCount++
		}
	}
	return status
}

func convert(c container.Status, old *corev1.ContainerStatus) corev1.ContainerStatus {
	id := IDScheme + c.ID
	status := corev1.ContainerStatus{
		Name:         c.Name,
		RestartCount: int32(c.Attempt),
		Image:        cmp.Or(c.ImageRef, c.Image),
		ImageID:      c.ImageID,
		ContainerID:  id,
	}
	if u := c.User; u != nil {
		status.User = &corev1.ContainerUser{Linux: &corev1.LinuxContainerUser{UID: u.UID, GID: u.GID, SupplementalGroups: u.Groups}}
	}
	if old != nil {
		status.RestartCount = max(status.RestartCount, old.RestartCount)
		if old.ContainerID != id && old.State.Terminated != nil {
			status.LastTerminationState.Terminated = old.State.Terminated.DeepCopy()
		} else if old.LastTerminationState.Terminated != nil {
			status.LastTerminationState.Terminated = old.LastTerminationState.Terminated.DeepCopy()
		}
		if old.ContainerID == id && old.Started != nil {
			started := *old.Started
			status.Started = &started
			status.Ready = old.Ready // markProbes decides; this is the fallback after a restart
		}
	}
	switch {
	case c.State == container.StateRunning:
		status.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.StartedAt)}
	case c.State == container.StateExited:
		status.State.Terminated = &corev1.ContainerStateTerminated{
			ExitCode:    int32(c.ExitCode),
			Reason:      c.Reason,
			Message:     c.Message,
			StartedAt:   metav1.NewTime(c.StartedAt),
			FinishedAt:  metav1.NewTime(c.FinishedAt),
			ContainerID: id,
		}
	case c.State == container.StateUnknown && old != nil && old.State.Running != nil:
		status.State.Terminated = &corev1.ContainerStateTerminated{
			Reason:   "ContainerStatusUnknown",
			Message:  "The container could not be located when the pod was terminated",
			ExitCode: 137,
		}
	default:
		status.State.Waiting = &corev1.ContainerStateWaiting{}
	}
	return status
}

func mountStatuses(c *corev1.Container) []corev1.VolumeMountStatus {
	var list []corev1.VolumeMountStatus
	for _, mount := range c.VolumeMounts {
		status := corev1.VolumeMountStatus{Name: mount.Name, MountPath: mount.MountPath, ReadOnly: mount.ReadOnly}
		if mount.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			if r := mount.RecursiveReadOnly; r != nil && *r != corev1.RecursiveReadOnlyDisabled {
				mode = corev1.RecursiveReadOnlyEnabled
			}
			status.RecursiveReadOnly = &mode
		}
		list = append(list, status)
	}
	return list
}

// markProbes sets started and ready from what the probes found.
func (in Input) markProbes(status *corev1.PodStatus) {
	for i := range status.ContainerStatuses {
		c := Container(in.Pod, status.ContainerStatuses[i].Name)
		in.mark(&status.ContainerStatuses[i], c)
	}
	for i := range status.InitContainerStatuses {
		s := &status.InitContainerStatuses[i]
		c := Container(in.Pod, s.Name)
		if Restartable(c) {
			in.mark(s, c)
			continue
		}
		started := s.State.Running != nil
		s.Started = &started
		s.Ready = s.State.Terminated != nil && s.State.Terminated.ExitCode == 0
	}
	for i := range status.EphemeralContainerStatuses {
		s := &status.EphemeralContainerStatuses[i]
		s.Ready, s.Started = false, nil
	}
}

func (in Input) mark(s *corev1.ContainerStatus, c *corev1.Container) {
	id := TrimScheme(s.ContainerID)
	before := s.Ready
	started := false
	if s.State.Running != nil {
		if r, ok := in.Probes.Result(Startup, id); ok {
			started = r == Success
		} else {
			started = c.StartupProbe == nil || s.Started != nil && *s.Started
		}
	}
	s.Started, s.Ready = &started, false
	if !started {
		return
	}
	r, ok := in.Probes.Result(Readiness, id)
	switch {
	case c.ReadinessProbe == nil:
		s.Ready = true
	case ok:
		s.Ready = r == Success
	default:
		s.Ready = before
	}
}

// TrimScheme is the runtime's ID of a container that the API names.
func TrimScheme(id string) string {
	if len(id) > len(IDScheme) && id[:len(IDScheme)] == IDScheme {
		return id[len(IDScheme):]
	}
	return id
}

// podResources is what the pod's own cgroup grants: the sum of its containers where the spec
// sets nothing for the pod as a whole.
func podResources(pod *corev1.Pod) *corev1.ResourceRequirements {
	keep := func(list corev1.ResourceList) corev1.ResourceList {
		var kept corev1.ResourceList
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			if q, ok := list[name]; ok && !q.IsZero() {
				if kept == nil {
					kept = corev1.ResourceList{}
				}
				kept[name] = q
			}
		}
		return kept
	}
	cpu, memory := true, true
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{
		ContainerFn: func(list corev1.ResourceList, _ resourcehelper.ContainerType) {
			cpu = cpu && !zero(list, corev1.ResourceCPU)
			memory = memory && !zero(list, corev1.ResourceMemory)
		},
	})
	limits = keep(limits)
	if r := pod.Spec.Resources; r != nil {
		cpu = cpu || !zero(r.Limits, corev1.ResourceCPU)
		memory = memory || !zero(r.Limits, corev1.ResourceMemory)
	}
	if !cpu {
		delete(limits, corev1.ResourceCPU)
	}
	if !memory {
		delete(limits, corev1.ResourceMemory)
	}
	return &corev1.ResourceRequirements{
		Requests: keep(resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})),
		Limits:   limits,
	}
}

// havingPod is the pod with what its running containers have.
func (in Input) havingPod() *corev1.Pod {
	if len(in.Has) == 0 && in.HasPod == nil {
		return in.Pod
	}
	pod := in.Pod.DeepCopy()
	if in.HasPod != nil {
		pod.Spec.Resources = in.HasPod
	}
	for _, c := range in.Observed.Running() {
		has, ok := in.Has[c.ID]
		if spec := Container(pod, c.Name); ok && spec != nil {
			spec.Resources = *resize.Status(spec.Resources, has)
		}
	}
	return pod
}

func zero(list corev1.ResourceList, name corev1.ResourceName) bool {
	q, ok := list[name]
	return !ok || q.Cmp(resource.Quantity{}) == 0
}

// normalize cuts times to seconds, as the API stores them, and messages to their limit, so
// that a status compares equal to the same status read back.
func normalize(pod *corev1.Pod, status *corev1.PodStatus) {
	limit := maxMessageBytes
	if n := len(pod.Spec.Containers) + len(pod.Spec.InitContainers) + len(pod.Spec.EphemeralContainers); n > 0 {
		limit /= n
	}
	state := func(s *corev1.ContainerState) {
		if s.Running != nil {
			s.Running.StartedAt = s.Running.StartedAt.Rfc3339Copy()
		}
		if t := s.Terminated; t != nil {
			t.StartedAt, t.FinishedAt = t.StartedAt.Rfc3339Copy(), t.FinishedAt.Rfc3339Copy()
			t.Message = t.Message[:min(len(t.Message), limit)]
		}
	}
	for _, list := range [][]corev1.ContainerStatus{status.InitContainerStatuses, status.ContainerStatuses, status.EphemeralContainerStatuses} {
		for i := range list {
			state(&list[i].State)
			state(&list[i].LastTerminationState)
		}
	}
	if status.StartTime != nil {
		start := status.StartTime.Rfc3339Copy()
		status.StartTime = &start
	}
	for i := range status.Conditions {
		status.Conditions[i].LastProbeTime = status.Conditions[i].LastProbeTime.Rfc3339Copy()
		status.Conditions[i].LastTransitionTime = status.Conditions[i].LastTransitionTime.Rfc3339Copy()
	}
}
