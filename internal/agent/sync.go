package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/agent/podconfig"
	"gantry.dev/gantry/internal/agent/podstatus"
	"gantry.dev/gantry/internal/agent/resize"
	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/volume"
)

// sync looks at everything about the pod, does what is next and says when to look again.
func (w *worker) sync(ctx context.Context, pod *corev1.Pod, removed bool) (time.Duration, error) {
	if err := w.observe(ctx, pod); err != nil {
		return 0, err
	}
	if w.static.Name != "" && w.firstLook() {
		if status := w.agent.statics.finished(ctx, pod); status != nil {
			w.finished, w.reported = true, status
		}
	}
	w.takeEnding(pod)
	if removed || pod.DeletionTimestamp != nil || podstatus.Terminal(pod.Status.Phase) || w.finished {
		return w.terminate(ctx, w.granted(pod), removed)
	}
	if w.failure == nil && !w.counted && !w.seenPod && pod.Status.Phase != corev1.PodRunning {
		if w.failure = w.forbiddenSysctl(pod); w.failure == nil {
			failure, err := w.admitDevices(ctx, pod)
			if err != nil {
				return 0, err
			}
			w.failure = failure
		}
	}
	if w.failure == nil {
		var wait time.Duration
		if w.failure, wait = w.takeCount(pod); wait > 0 {
			return wait, nil
		}
	}
	pod, err := w.settleResize(ctx, pod)
	if err != nil {
		return 0, err
	}
	untilDeadline := w.checkDeadline(pod)
	status := w.report(pod, false)
	if podstatus.Terminal(status.Phase) || w.failure != nil {
		return w.terminate(ctx, pod, removed)
	}
	next, err := w.advance(ctx, pod)
	if untilDeadline > 0 {
		next = min(next, untilDeadline)
	}
	if w.listenAgain {
		next = min(next, listeningPeriod)
	}
	return next, err
}

// observe brings w.observed up to date with the runtime.
func (w *worker) observe(ctx context.Context, pod *corev1.Pod) error {
	if w.cleaned || !w.seenPod {
		w.observed = podstatus.Observed{HasSandbox: false, IPs: w.ips}
		return nil
	}
	if !w.stale.Swap(false) {
		return nil
	}
	s, ok, err := w.agent.status(ctx, string(w.uid))
	if err != nil {
		w.stale.Store(true)
		return fmt.Errorf("reading the pod's containers: %w", err)
	}
	if !ok {
		w.sandbox = false
	}
	w.observed = podstatus.Observed{HasSandbox: w.sandbox, IPs: w.ips, Containers: s.Containers}
	switch {
	case ok && lostShim(s.Containers):
		if err := w.recoverSandbox(ctx, pod, s.Containers); err != nil {
			return err
		}
	case ok && !w.sandbox && len(s.Containers) > 0:
		// Everything has ended by itself while no agent looked; whether the sandbox lives shows
		// when it is ensured before the next start.
		w.observed.HasSandbox = true
	}
	if wasFenced(s.Containers) {
		w.endFenced()
	}
	for i := range s.Containers {
		c := &s.Containers[i]
		if c.State == container.StateExited && c.Message == "" {
			c.Message = w.terminationMessage(pod, *c)
		}
	}
	w.agent.probes.keep(w, s.Containers)
	return nil
}

func unknown(c container.Status) bool { return c.State == container.StateUnknown }

// recoverSandbox removes what would mislead the next start after the sandbox's process was
// lost: containers that nothing is known of, and init containers, which must run again.
func (w *worker) recoverSandbox(ctx context.Context, pod *corev1.Pod, list []container.Status) error {
	w.sandbox, w.observed.HasSandbox = false, false
	w.agent.events.pod(pod, corev1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
	var kept []container.Status
	for _, c := range list {
		init := slices.ContainsFunc(pod.Spec.InitContainers, func(i corev1.Container) bool { return i.Name == c.Name })
		if !init && !unknown(c) {
			kept = append(kept, c)
			continue
		}
		if err := w.agent.runtime.RemoveContainer(ctx, c.ID); err != nil {
			w.stale.Store(true)
			return fmt.Errorf("removing a lost container: %w", err)
		}
	}
	w.observed.Containers = kept
	return nil
}

// lostShim reports whether the process that held the sandbox is gone: containers without a
// known end, and none that runs.
func lostShim(list []container.Status) bool {
	return slices.ContainsFunc(list, unknown) &&
		!slices.ContainsFunc(list, func(c container.Status) bool { return c.State == container.StateRunning })
}

// report makes the pod's status and hands it to the writer.
func (w *worker) report(pod *corev1.Pod, ended bool) corev1.PodStatus {
	w.mu.Lock()
	old := w.reported
	w.mu.Unlock()
	observed := w.observed
	if ended {
		observed.HasSandbox = false
	}
	status := podstatus.Generate(podstatus.Input{
		Pod: pod, Old: old, Observed: observed, Probes: w.agent.probes, Waiting: w.waiting,
		HostIPs: w.agent.opts.NodeIPs, Ended: ended, Failure: w.failure, Now: metav1.Now(), Disruption: w.disruption,
		Has: w.resize.record.Given, HasPod: w.resize.record.GivenPod, Resize: w.resizeConditions(),
	})
	w.agent.devices.Health(w.uid, status.ContainerStatuses)
	ready := slices.ContainsFunc(status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
	if listens := w.listening(pod, ready); listens != nil {
		status.Conditions = append(status.Conditions, *listens)
	}
	if fenced := w.fencedCondition(); fenced != nil {
		status.Conditions = append(status.Conditions, *fenced)
	}
	w.mu.Lock()
	w.reported = &status
	w.mu.Unlock()
	w.agent.statuses.set(w, pod, status, ended)
	return status
}

// checkDeadline fails a pod that was active for longer than it may, and says how long is left.
func (w *worker) checkDeadline(pod *corev1.Pod) time.Duration {
	if pod.Spec.ActiveDeadlineSeconds == nil || w.failure != nil {
		return 0
	}
	w.mu.Lock()
	start := pod.Status.StartTime
	if w.reported != nil && start == nil {
		start = w.reported.StartTime
	}
	w.mu.Unlock()
	allowed := time.Duration(*pod.Spec.ActiveDeadlineSeconds) * time.Second
	if start == nil {
		return allowed
	}
	if left := allowed - time.Since(start.Time); left > 0 {
		return left
	}
	const message = "Pod was active on the node longer than the specified deadline"
	w.failure = &podstatus.Waiting{Reason: "DeadlineExceeded", Message: message}
	w.agent.events.pod(pod, corev1.EventTypeNormal, "DeadlineExceeded", message)
	return 0
}

// advance does what the pod needs next, until it can only wait.
func (w *worker) advance(ctx context.Context, pod *corev1.Pod) (time.Duration, error) {
	for range 1000 { // each turn starts or kills something, so this is a bound, not a limit
		actions := podstatus.Next(pod, w.observed, w.agent.probes)
		changes := w.resizeChanges(pod)
		restartForResize(pod, changes, &actions)
		resizing := w.resize.record.InProgress() && !actions.Stop
		w.finishResize(pod)
		idleNow := len(actions.Kill)+len(actions.Init)+len(actions.Start)+len(actions.Ephemeral) == 0 && !resizing
		if actions.Stop && !actions.Sandbox {
			w.report(pod, false)
			return w.terminate(ctx, pod, false)
		}
		if err := w.prepare(ctx, pod, !idleNow); err != nil {
			w.report(pod, false)
			return 0, err
		}
		if idleNow {
			w.report(pod, false)
			return w.untilRefresh(pod), nil
		}
		for _, kill := range actions.Kill {
			if err := w.killOne(ctx, pod, kill); err != nil {
				return 0, err
			}
		}
		var resizeErr error
		if resizing {
			resizeErr = w.applyResize(ctx, pod, changes)
		}
		started, next, err := w.startAll(ctx, pod, actions)
		w.stale.Store(true)
		if observeErr := w.observe(ctx, pod); observeErr != nil {
			return 0, observeErr
		}
		w.report(pod, false)
		if err = cmp.Or(err, resizeErr); err != nil || !started && !resizing {
			return next, err
		}
		w.agent.probes.keep(w, w.observed.Containers)
	}
	return retryAfter, nil
}

// startAll starts what actions name. next is when something that must wait can be tried again.
func (w *worker) startAll(ctx context.Context, pod *corev1.Pod, actions podstatus.Actions) (started bool, next time.Duration, err error) {
	next = idle
	try := func(c *corev1.Container) (bool, error) {
		wait, err := w.start(ctx, pod, c)
		if err != nil {
			return false, err
		}
		if wait > 0 {
			next = min(next, wait)
			return false, nil
		}
		started = true
		return true, nil
	}
	for _, i := range actions.Ephemeral {
		c := corev1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		if _, err := try(&c); err != nil {
			return started, next, err
		}
	}
	for _, i := range actions.Init {
		c := &pod.Spec.InitContainers[i]
		ok, err := try(c)
		if err != nil || !ok && !podstatus.Restartable(c) {
			return started, next, err
		}
	}
	for _, i := range actions.Start {
		if _, err := try(&pod.Spec.Containers[i]); err != nil {
			return started, next, err
		}
	}
	return started, next, nil
}

// prepare makes what containers need: volumes and, when something is to start, the sandbox,
// side by side.
func (w *worker) prepare(ctx context.Context, pod *corev1.Pod, starting bool) error {
	group, groupCtx := errgroup.WithContext(ctx)
	refresh := w.dirty.Swap(false) || w.volumes == nil || time.Since(w.mountsAt) >= volumeRefresh
	if refresh && (starting || len(w.observed.Running()) > 0) {
		group.Go(func() error { return w.setUpVolumes(groupCtx, pod) })
	}
	if starting && !w.sandbox {
		group.Go(func() error { return w.makeSandbox(groupCtx, pod) })
		group.Go(func() error {
			w.agent.puller.warm(groupCtx, pod)
			return nil
		})
	}
	err := group.Wait()
	if err != nil {
		w.dirty.Store(true)
	}
	return err
}

// volumeRefresh is how often volumes are looked at without an event: tokens age.
const volumeRefresh = 90 * time.Second

func (w *worker) setUpVolumes(ctx context.Context, pod *corev1.Pod) error {
	mounted, err := w.agent.volumes.SetUp(ctx, pod, w.facts())
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		w.agent.events.pod(pod, corev1.EventTypeWarning, "FailedMount", err.Error())
	}
	if err != nil && w.volumes != nil && unreachable(err) {
		w.dirty.Store(true) // what is there serves until the API is back
		return nil
	}
	if err != nil {
		return fmt.Errorf("setting up volumes: %w", err)
	}
	w.volumes, w.mountsAt = mounted, time.Now()
	w.made.Store(&mounted)
	return nil
}

// unreachable reports whether an error is not an answer of the API: it could not be asked.
func unreachable(err error) bool {
	return apierrors.ReasonForError(err) == metav1.StatusReasonUnknown ||
		apierrors.IsServiceUnavailable(err) || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err)
}

// untilRefresh is when an idle pod must be looked at again: its tokens age.
func (w *worker) untilRefresh(pod *corev1.Pod) time.Duration {
	if w.dirty.Load() {
		return retryAfter
	}
	for i := range pod.Spec.Volumes {
		if p := pod.Spec.Volumes[i].Projected; p != nil {
			for _, s := range p.Sources {
				if s.ServiceAccountToken != nil || s.ClusterTrustBundle != nil {
					return volumeRefresh
				}
			}
		}
	}
	return idle
}

func (w *worker) facts() volume.Facts {
	return volume.Facts{
		Field: func(pod *corev1.Pod, path string) (string, error) {
			// Addresses cannot be named in volumes, so none are needed yet.
			return podconfig.Field(pod, path, nil, w.agent.opts.NodeIPs)
		},
		Resource: func(pod *corev1.Pod, ref *corev1.ResourceFieldSelector) (string, error) {
			return podconfig.Resource(pod, nil, ref, w.agent.allocatable())
		},
	}
}

// makeSandbox makes the pod's network and sandbox; both are idempotent.
func (w *worker) makeSandbox(ctx context.Context, pod *corev1.Pod) error {
	a := w.agent
	w.seenPod = true
	w.resize.applied = podconfig.PodResources(pod, a.opts.PodPIDs)
	err := func() error {
		if !pod.Spec.HostNetwork {
			if err := w.connect(ctx, pod); err != nil {
				return err
			}
		}
		if pod.Spec.HostUsers != nil && !*pod.Spec.HostUsers {
			return errors.New("the node's runtime does not support user namespaces: hostUsers must not be false")
		}
		spec := w.sandboxSpec(pod)
		var err error
		if spec.Runtime, err = w.runtimeHandler(ctx, pod); err != nil {
			return err
		}
		if a.opts.KeepLogs != nil {
			if err := a.opts.KeepLogs.Begin(pod); err != nil {
				return err
			}
		}
		if w.cutOff, err = w.lookUpCutOff(ctx, pod, spec.Runtime); err != nil {
			return err
		}
		delete(spec.Annotations, annotationCutOff)
		if w.cutOff != cutOffKeep {
			spec.Annotations[annotationCutOff] = string(w.cutOff)
		}
		return a.runtime.EnsureSandbox(ctx, spec)
	}()
	if err != nil {
		if ctx.Err() == nil {
			a.events.pod(pod, corev1.EventTypeWarning, "FailedCreatePodSandBox", fmt.Sprintf("Failed to create pod sandbox: %v", err))
		}
		return fmt.Errorf("making the sandbox: %w", err)
	}
	w.sandbox = true
	w.observed.HasSandbox, w.observed.IPs = true, w.ips
	return nil
}

// connect gives the pod its addresses. Without the node's pod range it waits.
func (w *worker) connect(ctx context.Context, pod *corev1.Pod) error {
	a := w.agent
	select {
	case <-a.cidrSet:
	case <-ctx.Done():
		return ctx.Err()
	}
	netns, addrs, err := a.network.Setup(ctx, string(w.uid), pod, *a.podCIDRs.Load())
	if err != nil {
		return fmt.Errorf("connecting the pod: %w", err)
	}
	w.namespace.Store(&netns)
	w.ips = textAddresses(addrs)
	return nil
}

func textAddresses(addrs []netip.Addr) []string {
	list := make([]string, len(addrs))
	for i, addr := range addrs {
		list[i] = addr.String()
	}
	return list
}

func (w *worker) sandboxSpec(pod *corev1.Pod) container.Sandbox {
	a := w.agent
	s := container.Sandbox{
		ID:         string(w.uid),
		Namespace:  pod.Namespace,
		Name:       pod.Name,
		HostPID:    pod.Spec.HostPID,
		HostIPC:    pod.Spec.HostIPC,
		ShareProcs: pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace,
		CgroupPath: podconfig.CgroupPath(a.opts.CgroupRoot, pod),
		Resources:  w.resize.applied,
		LogDir:     a.podLogDir(pod.Namespace, pod.Name, pod.UID),
		Labels:     maps.Clone(pod.Labels),
		Annotations: map[string]string{
			annotationIPs: strings.Join(w.ips, ","),
		},
	}
	if w.static.Name != "" {
		s.Annotations[annotationSource] = sourceFile
	}
	if w.cutOff != cutOffKeep {
		s.Annotations[annotationCutOff] = string(w.cutOff)
	}
	if text, err := w.resize.record.Text(); err == nil {
		s.Annotations[resize.Annotation] = text
	}
	if !pod.Spec.HostNetwork {
		s.NetNSPath = *w.namespace.Load()
		s.Hostname, s.Domain = podconfig.Hostname(pod, a.opts.ClusterDomain)
		if pod.Spec.SetHostnameAsFQDN != nil && *pod.Spec.SetHostnameAsFQDN && s.Domain != "" {
			s.Hostname += "." + s.Domain
		}
	}
	if sc := pod.Spec.SecurityContext; sc != nil && len(sc.Sysctls) > 0 {
		s.Sysctls = map[string]string{}
		for _, ctl := range sc.Sysctls {
			s.Sysctls[strings.ReplaceAll(ctl.Name, "/", ".")] = ctl.Value
		}
	}
	return s
}

// terminate stops the pod, reports how it ended, gives back what it held, and deletes it from
// the API when that was asked for.
func (w *worker) terminate(ctx context.Context, pod *corev1.Pod, removed bool) (time.Duration, error) {
	a := w.agent
	if !w.cleaned {
		w.report(pod, false)
		a.probes.stopForTermination(w)
		if err := w.killAll(ctx, pod, removed); err != nil {
			return 0, err
		}
		w.stale.Store(true)
		if err := w.observe(ctx, pod); err != nil {
			return 0, err
		}
		if len(w.observed.Running()) > 0 {
			return 0, fmt.Errorf("%d containers run on after they were stopped", len(w.observed.Running()))
		}
		// The last status deletes the pod from the API; that it is gone must not end the
		// removal half-way.
		w.keepOn()
		w.finished = true
		a.devices.Release(w.uid) // nothing of the pod runs: others may have its devices once the status says so
		w.report(pod, true)
		a.probes.drop(w)
		if err := w.clean(ctx, pod); err != nil {
			a.events.pod(pod, corev1.EventTypeWarning, "FailedKillPod", "error killing pod: "+err.Error())
			return 0, err
		}
		w.cleaned = true
		a.fence.drop(w.uid)
		close(w.ended)
		a.classesChanged()
		a.roomChanged()
	}
	if removed || a.gone(ctx, pod) && a.synced.Load() {
		if err := a.removeFiles(pod.Namespace, pod.Name, pod.UID); err != nil {
			return 0, err
		}
		a.forget(w)
		return never, nil
	}
	w.finished = true
	w.report(pod, true) // with the newest pod: writes the status, then deletes if asked to
	return never, nil
}

// clean gives back what the pod held.
func (w *worker) clean(ctx context.Context, pod *corev1.Pod) error {
	a := w.agent
	if err := a.runtime.RemoveSandbox(ctx, string(w.uid)); err != nil {
		return fmt.Errorf("removing the sandbox: %w", err)
	}
	if !pod.Spec.HostNetwork {
		if err := a.network.Teardown(ctx, string(w.uid)); err != nil {
			return fmt.Errorf("removing the pod's network: %w", err)
		}
	}
	if err := a.tearDownVolumes(ctx, w.uid); err != nil {
		return fmt.Errorf("removing the pod's volumes: %w", err)
	}
	return nil
}

// current is the newest version of the pod.
func (w *worker) current() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod
}

// done reports whether the pod has ended, so that it no longer counts.
func (w *worker) done() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return podstatus.Terminal(w.pod.Status.Phase) || w.reported != nil && podstatus.Terminal(w.reported.Phase)
}

// isGone treats "not found" as success.
func isGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
