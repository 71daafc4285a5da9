package app

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/app/render"
)

const (
	crashLimit      = 3                // ends before a process is given up
	scheduleGrace   = 10 * time.Second // how long no node may have room
	pullGrace       = 30 * time.Second // how long a registry may fail for no lasting reason
	loopbackGrace   = 2 * time.Second  // how long a process may listen on the loopback address only
	otherPortGrace  = 15 * time.Second // how long it may listen on another port only
	startGrace      = 5 * time.Minute  // how long a pod's start may take outside of its container
	readinessBuffer = 5 * time.Second  // from a container's start to its probe's verdict
)

// verdict is why a release cannot become well. The zero value is: nothing is known against it.
type verdict struct {
	reason  string
	message string
	pod     string // whose log says more; empty: none
	before  bool   // it is the log of the container before
}

func (v verdict) bad() bool { return v.reason != "" }

// judged is a process whose pods are judged.
type judged struct {
	name    string
	process v1alpha1.Process
	port    int32 // where it should listen; 0: nowhere
	said    bool  // no other port will do
}

// judgePods says why the pods of a process will not become ready, if that is certain.
func judgePods(j judged, pods []corev1.Pod, now time.Time) verdict {
	ends, healthy := 0, false
	var worst verdict
	for i := range pods {
		pod := &pods[i]
		if pod.DeletionTimestamp != nil {
			continue
		}
		if podReady(pod) {
			healthy = true
			continue
		}
		if v := judgePod(j, pod, now); v.bad() && !worst.bad() {
			worst = v
		}
		ends += endsOf(pod)
	}
	if worst.bad() {
		return worst
	}
	if ends >= crashLimit && !healthy {
		return crashed(j, pods, ends)
	}
	return verdict{}
}

// judgePod is judgePods for one pod that is not ready.
func judgePod(j judged, pod *corev1.Pod, now time.Time) verdict {
	if v := judgeSchedule(j, pod, now); v.bad() {
		return v
	}
	status := containerStatus(pod)
	if status == nil {
		if now.Sub(pod.CreationTimestamp.Time) > startGrace && scheduled(pod) {
			return verdict{reason: v1alpha1.ReasonUnhealthy, message: fmt.Sprintf("%s: pod %s did not start within %s", j.name, pod.Name, startGrace)}
		}
		return verdict{}
	}
	if v := judgeWaiting(j, pod, status, now); v.bad() {
		return v
	}
	if endsOf(pod) >= crashLimit {
		return crashed(j, []corev1.Pod{*pod}, endsOf(pod))
	}
	if v := judgeHealth(j, pod, status, now); v.bad() {
		return v
	}
	if status.State.Running == nil {
		return verdict{}
	}
	return judgeListening(j, pod, now.Sub(status.State.Running.StartedAt.Time))
}

// judgeSchedule is about a pod that no node has room for.
func judgeSchedule(j judged, pod *corev1.Pod, now time.Time) verdict {
	cond := podCondition(pod, corev1.PodScheduled)
	if cond == nil || cond.Status != corev1.ConditionFalse || cond.Reason != corev1.PodReasonUnschedulable || now.Sub(pod.CreationTimestamp.Time) < scheduleGrace {
		return verdict{}
	}
	reason, todo := v1alpha1.ReasonNoRoom, "make room, add a node, or ask for less cpu and memory in gantry.yaml"
	if strings.Contains(cond.Message, "untolerated taint") || strings.Contains(cond.Message, "were unschedulable") {
		todo = "gantry node ls says what a node is short of, or that it takes no pods; free its disk or memory, uncordon it, or add a node"
	}
	if strings.Contains(cond.Message, "volume") || strings.Contains(cond.Message, "persistentvolumeclaim") {
		reason, todo = v1alpha1.ReasonVolumeNotReady, "look at the volume with: gantry volume ls"
	}
	return verdict{reason: reason, message: fmt.Sprintf("%s: no node can take its pod: %s; %s", j.name, strings.TrimSuffix(cond.Message, "."), todo)}
}

// judgeWaiting is about a container that cannot be started.
func judgeWaiting(j judged, pod *corev1.Pod, status *corev1.ContainerStatus, now time.Time) verdict {
	waiting := status.State.Waiting
	if waiting == nil {
		return verdict{}
	}
	image := func() verdict {
		return verdict{reason: v1alpha1.ReasonImage, message: fmt.Sprintf("%s: image %s cannot be had: %s; check its name and tag, and that this cluster may read it",
			j.name, status.Image, cmp.Or(waiting.Message, waiting.Reason))}
	}
	switch waiting.Reason {
	case "InvalidImageName", "ErrImageNeverPull":
		return image()
	case "ErrImagePull", "ImagePullBackOff":
		text := strings.ToLower(waiting.Message)
		certain := slices.ContainsFunc([]string{"not found", "manifest unknown", "unauthorized", "denied", "forbidden", "no such host"}, func(s string) bool {
			return strings.Contains(text, s)
		})
		if certain || now.Sub(pod.CreationTimestamp.Time) > pullGrace {
			return image()
		}
	case "RunContainerError", "CreateContainerError":
		text := strings.ToLower(waiting.Message)
		certain := slices.ContainsFunc([]string{"no such file", "permission denied", "executable file not found", "is a directory"}, func(s string) bool {
			return strings.Contains(text, s)
		})
		if certain || now.Sub(pod.CreationTimestamp.Time) > pullGrace {
			return verdict{reason: v1alpha1.ReasonCrashing, message: fmt.Sprintf("%s: its command cannot be started: %s", j.name, waiting.Message)}
		}
	case "CreateContainerConfigError":
		reason := v1alpha1.ReasonUnhealthy
		if strings.Contains(strings.ToLower(waiting.Message), "secret") {
			reason = v1alpha1.ReasonSecretMissing
		}
		if now.Sub(pod.CreationTimestamp.Time) > scheduleGrace {
			return verdict{reason: reason, message: fmt.Sprintf("%s: its container cannot be made: %s", j.name, waiting.Message)}
		}
	}
	return verdict{}
}

// judgeHealth is about a container that runs and does not become ready in time, or was ended for that.
func judgeHealth(j judged, pod *corev1.Pod, status *corev1.ContainerStatus, now time.Time) verdict {
	if j.port == 0 {
		return verdict{}
	}
	grace := render.Grace(j.process)
	message := fmt.Sprintf("%s did not become ready within %s: nothing answers on port %d", j.name, grace, j.port)
	if j.process.Health != nil && j.process.Health.Path != "" {
		message = fmt.Sprintf("%s did not become ready within %s: GET %s on port %d has no good answer", j.name, grace, j.process.Health.Path, j.port)
	}
	message += "; correct it, or give it more time with health.grace"
	if last := status.LastTerminationState.Terminated; last != nil && last.FinishedAt.Sub(last.StartedAt.Time) >= grace && !isReadyOnce(status) {
		return verdict{reason: v1alpha1.ReasonUnhealthy, message: message, pod: pod.Name, before: true}
	}
	if running := status.State.Running; running != nil && now.Sub(running.StartedAt.Time) > grace+readinessBuffer {
		return verdict{reason: v1alpha1.ReasonUnhealthy, message: message, pod: pod.Name}
	}
	return verdict{}
}

// isReadyOnce says whether a container has passed its startup.
func isReadyOnce(status *corev1.ContainerStatus) bool {
	return status.Started != nil && *status.Started
}

// judgeListening is about a process that listens where nobody can reach it. ran is for how long it runs.
func judgeListening(j judged, pod *corev1.Pod, ran time.Duration) verdict {
	if j.port == 0 {
		return verdict{}
	}
	sockets := listening(pod)
	reachable, loopback := portsOf(sockets)
	switch {
	case slices.Contains(reachable, j.port):
	case slices.Contains(loopback, j.port) && ran >= loopbackGrace:
		return verdict{reason: v1alpha1.ReasonPort, pod: pod.Name, message: fmt.Sprintf(
			"%s listens on 127.0.0.1:%d, where nobody outside of its container reaches it; let it listen on 0.0.0.0:%d", j.name, j.port, j.port)}
	case len(sockets) > 0 && ran >= min(otherPortGrace, render.Grace(j.process)) && (j.said || len(reachable) != 1):
		return verdict{reason: v1alpha1.ReasonPort, pod: pod.Name, message: fmt.Sprintf(
			"%s should listen on port %d and listens on %s; let it listen on $PORT, or name its port in gantry.yaml", j.name, j.port, listed(sockets))}
	}
	return verdict{}
}

// foundPort is the one port that a process was found to listen on; 0 if there is none or more than one.
func foundPort(pods []corev1.Pod) int32 {
	for i := range pods {
		if reachable, _ := portsOf(listening(&pods[i])); pods[i].DeletionTimestamp == nil && len(reachable) == 1 {
			return reachable[0]
		}
	}
	return 0
}

// listening is where a pod listens, as its node tells.
func listening(pod *corev1.Pod) (out []netip.AddrPort) {
	cond := podCondition(pod, v1alpha1.ConditionListening)
	if cond == nil || cond.Status != corev1.ConditionTrue {
		return nil
	}
	for text := range strings.FieldsSeq(cond.Message) {
		if at, err := netip.ParseAddrPort(text); err == nil {
			out = append(out, at)
		}
	}
	return out
}

// portsOf divides ports into those that others reach and those that only the pod itself does.
func portsOf(sockets []netip.AddrPort) (reachable, loopback []int32) {
	for _, at := range sockets {
		port := int32(at.Port())
		if at.Addr().IsLoopback() {
			loopback = append(loopback, port)
		} else if !slices.Contains(reachable, port) {
			reachable = append(reachable, port)
		}
	}
	return reachable, loopback
}

func listed(sockets []netip.AddrPort) string {
	var out []string
	for _, at := range sockets {
		out = append(out, at.String())
	}
	return strings.Join(out, ", ")
}

// crashed is the verdict about a process that ends again and again.
func crashed(j judged, pods []corev1.Pod, ends int) verdict {
	out := verdict{reason: v1alpha1.ReasonCrashing}
	how := "ended"
	for i := range pods {
		status := containerStatus(&pods[i])
		if status == nil || endsOf(&pods[i]) == 0 {
			continue
		}
		out.pod = pods[i].Name
		last := status.State.Terminated
		if last == nil {
			last, out.before = status.LastTerminationState.Terminated, true
		}
		if status.State.Running == nil && status.State.Terminated == nil && last != nil {
			out.before = true
		}
		if last != nil {
			how = ended(last)
		}
		break
	}
	out.message = fmt.Sprintf("%s ended %d times, the last time %s; its last lines say why", j.name, ends, how)
	return out
}

// ended says how a container ended.
func ended(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason == "OOMKilled":
		return "because it used more memory than it may (raise memory in gantry.yaml)"
	case t.Signal > 0:
		return fmt.Sprintf("by signal %d", t.Signal)
	case t.Reason == "StartError" || t.Reason == "ContainerCannotRun":
		return "before it began: " + strings.TrimSpace(t.Message)
	}
	return fmt.Sprintf("with exit code %d", t.ExitCode)
}

// endsOf is how often the container of a pod has ended.
func endsOf(pod *corev1.Pod) int {
	status := containerStatus(pod)
	if status == nil {
		return 0
	}
	ends := int(status.RestartCount)
	waiting := status.State.Waiting
	if status.State.Terminated != nil || waiting != nil && waiting.Reason == "CrashLoopBackOff" {
		ends++
	}
	return ends
}

func containerStatus(pod *corev1.Pod) *corev1.ContainerStatus {
	for i := range pod.Status.ContainerStatuses {
		if pod.Status.ContainerStatuses[i].Name == render.ContainerName {
			return &pod.Status.ContainerStatuses[i]
		}
	}
	return nil
}

func scheduled(pod *corev1.Pod) bool { return pod.Spec.NodeName != "" }

func podCondition(pod *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == kind {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

func podReady(pod *corev1.Pod) bool {
	cond := podCondition(pod, corev1.PodReady)
	return cond != nil && cond.Status == corev1.ConditionTrue
}
