package podstatus

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/container"
)

// KillReason says which grace period a kill uses.
type KillReason string

// Why a single container is killed.
const (
	KillOther         KillReason = ""
	KillStartupProbe  KillReason = "StartupProbe"
	KillLivenessProbe KillReason = "LivenessProbe"
)

// Kill is one container to stop.
type Kill struct {
	ID      string
	Name    string
	Message string // for the Killing event
	Reason  KillReason
}

// Actions is what a pod needs next. Indexes point into the spec's lists.
type Actions struct {
	Stop      bool // stop every container: the pod has run its course, or its sandbox is lost
	Sandbox   bool // make the sandbox before anything is started
	Kill      []Kill
	Init      []int
	Start     []int
	Ephemeral []int
}

// Next computes what a pod that is to run needs next. It is the kubelet's computePodActions:
// init containers strictly in order, sidecars kept up, containers restarted by policy.
func Next(pod *corev1.Pod, o Observed, probes Results) Actions {
	if !o.HasSandbox {
		return nextWithoutSandbox(pod, o)
	}
	var actions Actions
	for i := range pod.Spec.EphemeralContainers {
		if _, ok := o.Latest(pod.Spec.EphemeralContainers[i].Name); !ok {
			actions.Ephemeral = append(actions.Ephemeral, i)
		}
	}
	if !nextInit(pod, o, probes, &actions) || actions.Stop {
		return actions
	}
	kept := 0
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		status, ok := o.Latest(c.Name)
		if !ok || status.State != container.StateRunning {
			if wantsRestart(c, pod, o) {
				actions.Start = append(actions.Start, i)
			}
			continue
		}
		message, reason := probeFailure(fmt.Sprintf("Container %s", c.Name), status.ID, probes)
		if message == "" {
			kept++
			continue
		}
		restart := pod.Spec.RestartPolicy != corev1.RestartPolicyNever
		if c.RestartPolicy != nil {
			restart = *c.RestartPolicy != corev1.ContainerRestartPolicyNever
		}
		if restart {
			message += ", will be restarted"
			actions.Start = append(actions.Start, i)
		}
		actions.Kill = append(actions.Kill, Kill{status.ID, c.Name, message, reason})
	}
	if kept == 0 && len(actions.Start) == 0 {
		return Actions{Stop: true}
	}
	return actions
}

func probeFailure(subject, id string, probes Results) (string, KillReason) {
	if r, ok := probes.Result(Liveness, id); ok && r == Failure {
		return subject + " failed liveness probe", KillLivenessProbe
	}
	if r, ok := probes.Result(Startup, id); ok && r == Failure {
		return subject + " failed startup probe", KillStartupProbe
	}
	return "", KillOther
}

func nextWithoutSandbox(pod *corev1.Pod, o Observed) Actions {
	if pod.Spec.RestartPolicy == corev1.RestartPolicyNever && len(o.Containers) > 0 {
		return Actions{Stop: true}
	}
	var start []int
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		once := pod.Spec.RestartPolicy == corev1.RestartPolicyOnFailure
		if c.RestartPolicy != nil {
			once = *c.RestartPolicy == corev1.ContainerRestartPolicyOnFailure
		}
		if status, ok := o.Latest(c.Name); once && ok && status.State == container.StateExited && status.ExitCode == 0 {
			continue
		}
		start = append(start, i)
	}
	if len(start) == 0 {
		return Actions{Stop: true}
	}
	actions := Actions{Sandbox: true, Stop: len(o.Running()) > 0}
	if len(pod.Spec.InitContainers) > 0 {
		actions.Init = []int{0}
		return actions
	}
	actions.Start = start
	return actions
}

// nextInit adds what the init containers need and reports whether all are done (regular ones
// have succeeded, sidecars have started). It walks from the last to the first: the newest
// init container that has a status says how far the pod has come.
func nextInit(pod *corev1.Pod, o Observed, probes Results, actions *Actions) bool {
	if len(pod.Spec.InitContainers) == 0 {
		return true
	}
	initialized := anyMainContainer(pod, o)
	seen := initialized // a later stage was reached, so regular ones before it are done
	last := len(pod.Spec.InitContainers) - 1
	for i := last; i >= 0; i-- {
		c := &pod.Spec.InitContainers[i]
		status, ok := o.Latest(c.Name)
		if !ok {
			if seen && Restartable(c) {
				actions.Init = append([]int{i}, actions.Init...)
			}
			continue
		}
		if seen && !Restartable(c) {
			continue
		}
		step := initStep(pod, o, c, status, probes)
		switch {
		case step.fail:
			*actions = Actions{Stop: true}
			return false
		case step.done && i == last:
			initialized = true
		case step.done && !seen:
			actions.Init = append([]int{i + 1}, actions.Init...)
		}
		if step.kill != nil {
			actions.Kill = append(actions.Kill, *step.kill)
		}
		if step.start {
			actions.Init = append([]int{i}, actions.Init...)
		}
		seen = true
	}
	if !seen {
		actions.Init = append([]int{0}, actions.Init...)
	}
	return initialized
}

type step struct {
	done  bool // the next container may start
	start bool // this one must be started
	fail  bool // the pod cannot go on
	kill  *Kill
}

func initStep(pod *corev1.Pod, o Observed, c *corev1.Container, status container.Status, probes Results) step {
	sidecar := Restartable(c)
	switch status.State {
	case container.StateCreated:
		return step{start: true}
	case container.StateRunning:
		if !sidecar {
			return step{}
		}
		return sidecarStep(c, status, probes)
	case container.StateExited:
		switch {
		case sidecar:
			return step{start: true}
		case status.ExitCode == 0:
			return step{done: true}
		case !wantsRestart(c, pod, o):
			return step{fail: true}
		default:
			return step{start: true}
		}
	default:
		restart := pod.Spec.RestartPolicy != corev1.RestartPolicyNever
		if c.RestartPolicy != nil {
			restart = *c.RestartPolicy != corev1.ContainerRestartPolicyNever
		}
		if !sidecar && !restart {
			return step{fail: true}
		}
		return step{start: true}
	}
}

func sidecarStep(c *corev1.Container, status container.Status, probes Results) step {
	subject := fmt.Sprintf("Init container %s", c.Name)
	if c.StartupProbe != nil {
		r, ok := probes.Result(Startup, status.ID)
		switch {
		case !ok || r == Unknown:
			return step{}
		case r == Failure:
			return step{start: true, kill: &Kill{status.ID, c.Name, subject + " failed startup probe", KillStartupProbe}}
		}
	}
	if r, ok := probes.Result(Liveness, status.ID); ok && r == Failure {
		return step{done: true, start: true, kill: &Kill{status.ID, c.Name, subject + " failed liveness probe", KillLivenessProbe}}
	}
	return step{done: true}
}

// anyMainContainer reports whether an app container was created and has not ended.
func anyMainContainer(pod *corev1.Pod, o Observed) bool {
	for i := range pod.Spec.Containers {
		status, ok := o.Latest(pod.Spec.Containers[i].Name)
		if ok && (status.State == container.StateCreated || status.State == container.StateRunning) {
			return true
		}
	}
	return false
}
