package agent

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/agent/podconfig"
	"gantry.dev/gantry/internal/agent/podstatus"
	"gantry.dev/gantry/internal/agent/resize"
	"gantry.dev/gantry/internal/container"
)

// resizeChanges lists the running containers that have not what they were granted.
func (w *worker) resizeChanges(pod *corev1.Pod) []resize.Change {
	if !w.resize.record.InProgress() {
		return nil
	}
	w.resize.record = w.resize.record.Settled(w.runningNames())
	var running []resize.Running
	for _, c := range w.observed.Running() {
		running = append(running, resize.Running{ID: c.ID, Name: c.Name})
	}
	return resize.Changes(pod, w.resize.record, running)
}

// restartForResize adds the containers that get their new resources by a restart to what is to
// be done.
func restartForResize(pod *corev1.Pod, changes []resize.Change, actions *podstatus.Actions) {
	for _, change := range changes {
		if !change.Restart || slices.ContainsFunc(actions.Kill, func(k podstatus.Kill) bool { return k.ID == change.ID }) {
			continue
		}
		name := change.Container.Name
		actions.Kill = append(actions.Kill, podstatus.Kill{ID: change.ID, Name: name, Message: fmt.Sprintf("Container %s resize requires restart", name)})
		for i := range pod.Spec.Containers {
			if pod.Spec.Containers[i].Name == name && !slices.Contains(actions.Start, i) {
				actions.Start = append(actions.Start, i)
			}
		}
		for i := range pod.Spec.InitContainers {
			if pod.Spec.InitContainers[i].Name == name && !slices.Contains(actions.Init, i) {
				actions.Init = append(actions.Init, i)
			}
		}
	}
}

// applyResize writes what was granted into the cgroups of the pod and of the containers that
// need no restart.
func (w *worker) applyResize(ctx context.Context, pod *corev1.Pod, changes []resize.Change) error {
	var inPlace []resize.Change
	for _, c := range changes {
		if !c.Restart {
			inPlace = append(inPlace, c)
		}
	}
	err := w.writeLimits(ctx, pod, inPlace)
	w.resize.record = w.resize.record.Settled(w.runningNames())
	if keepErr := w.keepRecord(ctx, pod); keepErr != nil && err == nil {
		err = keepErr
	}
	if err != nil && ctx.Err() == nil {
		w.resizeFailed(pod, err)
	}
	return err
}

// finishResize reports that everything has what it was granted.
func (w *worker) finishResize(pod *corev1.Pod) {
	p := w.resize.progress
	if p == nil || w.resize.record.InProgress() {
		return
	}
	w.resize.progress = nil
	w.agent.events.pod(pod, corev1.EventTypeNormal, "ResizeCompleted", resize.Message("Pod resize completed", pod, p.ObservedGeneration, ""))
	w.agent.roomChanged()
}

// resizeFailed reports why a granted resize could not be done yet.
func (w *worker) resizeFailed(pod *corev1.Pod, err error) {
	now := metav1.Now().Rfc3339Copy()
	next := &corev1.PodCondition{
		Type: corev1.PodResizeInProgress, Status: corev1.ConditionTrue, ObservedGeneration: pod.Generation,
		Reason: corev1.PodReasonError, Message: err.Error(), LastProbeTime: now, LastTransitionTime: now,
	}
	if before := w.resize.progress; before != nil {
		next.ObservedGeneration = before.ObservedGeneration
		if before.Reason == next.Reason {
			next.LastTransitionTime = before.LastTransitionTime
		}
		if before.Reason == next.Reason && before.Message == next.Message {
			return
		}
	}
	w.resize.progress = next
	w.agent.events.pod(pod, corev1.EventTypeWarning, "ResizeError", resize.Message("Pod resize error", pod, next.ObservedGeneration, err.Error()))
}

// limits is one resize on its way into cgroups.
type limits struct {
	w       *worker
	cgroups Cgroups
	pod     *corev1.Pod
	path    string              // of the pod's cgroup
	has     container.Resources // of the pod's cgroup, as the kernel says
	want    container.Resources
	changes []resize.Change
}

// writeLimits writes memory first, then CPU. What grows is written from the pod down, what
// shrinks from the containers up, so that a container never has more than its pod.
func (w *worker) writeLimits(ctx context.Context, pod *corev1.Pod, changes []resize.Change) error {
	a := w.agent
	cgroups, ok := a.runtime.(Cgroups)
	if !ok {
		w.resize.record.GivenPod = nil
		for _, c := range changes {
			delete(w.resize.record.Given, c.ID)
		}
		return nil
	}
	l := &limits{
		w: w, cgroups: cgroups, pod: pod, changes: changes,
		path: podconfig.CgroupPath(a.opts.CgroupRoot, pod), want: podconfig.PodResources(pod, a.opts.PodPIDs),
	}
	var err error
	if l.has, err = cgroups.CgroupLimits(l.path); err != nil {
		return fmt.Errorf("unable to get pod cgroup memory config for pod %q: %w", podconfig.PodRef(pod), err)
	}
	if err := l.checkMemory(); err != nil {
		return err
	}
	if err := l.memory(ctx); err != nil {
		return err
	}
	if err := l.cpu(ctx); err != nil {
		return err
	}
	w.resize.record.GivenPod = nil
	return nil
}

// setPod writes limits of the pod's own cgroup.
func (l *limits) setPod(res container.Resources) error {
	if err := l.cgroups.EnsureCgroup(l.path, res); err != nil {
		return err
	}
	applied := &l.w.resize.applied
	if res.MemoryLimitBytes != 0 {
		applied.MemoryLimitBytes = res.MemoryLimitBytes
	}
	if res.CPUQuotaMicros != 0 {
		applied.CPUQuotaMicros, applied.CPUPeriodMicros = res.CPUQuotaMicros, res.CPUPeriodMicros
	}
	if res.CPUShares != 0 {
		applied.CPUShares = res.CPUShares
	}
	return nil
}

// containers gives one resource to the containers: what shrinks first.
func (l *limits) containers(ctx context.Context, name corev1.ResourceName, pick func(container.Resources) container.Resources) error {
	record := &l.w.resize.record
	memory := l.w.agent.capacity[corev1.ResourceMemory]
	for _, direction := range []int{-1, 1} {
		for _, c := range l.changes {
			if c.Direction(record.HasPod(), l.pod.Spec.Resources, name) != direction {
				continue
			}
			res := pick(podconfig.ContainerResources(l.pod, c.Container, memory.Value()))
			if err := l.cgroups.UpdateContainer(ctx, c.ID, res); err != nil {
				return err
			}
			*record = record.Clone()
			if record.Given == nil {
				record.Given = map[string]corev1.ResourceRequirements{}
			}
			record.Given[c.ID] = resize.Take(record.Has(c.ID, c.Container.Name), c.Container.Resources, name)
		}
	}
	return nil
}

func (l *limits) memory(ctx context.Context) error {
	want, has := l.want.MemoryLimitBytes, l.has.MemoryLimitBytes
	grows := want > has && has != 0
	shrinks := want != 0 && (has == 0 || want < has)
	if grows {
		if err := l.setPod(container.Resources{MemoryLimitBytes: want}); err != nil {
			return err
		}
	}
	err := l.containers(ctx, corev1.ResourceMemory, func(r container.Resources) container.Resources {
		return container.Resources{MemoryLimitBytes: r.MemoryLimitBytes} // 0: a limit cannot be taken away
	})
	if err != nil || !shrinks {
		return err
	}
	return l.setPod(container.Resources{MemoryLimitBytes: want})
}

func (l *limits) cpu(ctx context.Context) error {
	quota := container.Resources{CPUQuotaMicros: l.want.CPUQuotaMicros, CPUPeriodMicros: l.want.CPUPeriodMicros}
	shares := container.Resources{CPUShares: l.want.CPUShares}
	quotaGrows := quota.CPUQuotaMicros > l.has.CPUQuotaMicros && l.has.CPUQuotaMicros != 0
	quotaShrinks := quota.CPUQuotaMicros != 0 && !quotaGrows
	sharesGrow := shares.CPUShares > l.has.CPUShares
	for _, step := range []struct {
		when bool
		res  container.Resources
	}{{quotaGrows, quota}, {sharesGrow, shares}} {
		if step.when {
			if err := l.setPod(step.res); err != nil {
				return err
			}
		}
	}
	err := l.containers(ctx, corev1.ResourceCPU, func(r container.Resources) container.Resources {
		return container.Resources{CPUShares: r.CPUShares, CPUQuotaMicros: r.CPUQuotaMicros, CPUPeriodMicros: r.CPUPeriodMicros}
	})
	if err != nil {
		return err
	}
	for _, step := range []struct {
		when bool
		res  container.Resources
	}{{!sharesGrow, shares}, {quotaShrinks, quota}} {
		if step.when {
			if err := l.setPod(step.res); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkMemory refuses to shrink limits of memory below what is used: that would kill.
func (l *limits) checkMemory() error {
	podLimit := int64(0)
	if want := l.want.MemoryLimitBytes; want != 0 && (l.has.MemoryLimitBytes == 0 || want < l.has.MemoryLimitBytes) {
		podLimit = want
	}
	record, memory := l.w.resize.record, l.w.agent.capacity[corev1.ResourceMemory]
	shrinking, order := map[string]int64{}, []string{}
	use := resize.MemoryUse{Containers: map[string]int64{}}
	for _, c := range l.changes {
		limit := podconfig.ContainerResources(l.pod, c.Container, memory.Value()).MemoryLimitBytes
		if limit == 0 || c.Direction(record.HasPod(), l.pod.Spec.Resources, corev1.ResourceMemory) >= 0 {
			continue
		}
		used, err := l.w.agent.pressure.figures.memoryOf(l.pod, c.ID)
		if err != nil {
			return fmt.Errorf("unable to read memory usage for pod %q: %w", podconfig.PodRef(l.pod), err)
		}
		shrinking[c.Container.Name], order = limit, append(order, c.Container.Name)
		use.Containers[c.Container.Name] = used
	}
	if podLimit == 0 && len(order) == 0 {
		return nil
	}
	if podLimit != 0 {
		var err error
		if use.Pod, err = l.w.agent.pressure.figures.memoryOf(l.pod, ""); err != nil {
			return fmt.Errorf("unable to read memory usage for pod %q: %w", podconfig.PodRef(l.pod), err)
		}
	}
	return resize.CheckMemory(podLimit, shrinking, order, use)
}
