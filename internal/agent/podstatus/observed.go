package podstatus

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/container"
)

// Observed is what the node knows of one pod.
type Observed struct {
	HasSandbox bool // the sandbox exists, with its network
	IPs        []string
	Containers []container.Status // of the pod's sandbox, any order
}

// Latest returns the newest container of a name.
func (o Observed) Latest(name string) (container.Status, bool) {
	all := o.Named(name)
	if len(all) == 0 {
		return container.Status{}, false
	}
	return all[0], true
}

// Named returns all containers of a name, newest first.
func (o Observed) Named(name string) []container.Status {
	var all []container.Status
	for _, c := range o.Containers {
		if c.Name == name {
			all = append(all, c)
		}
	}
	slices.SortStableFunc(all, func(a, b container.Status) int {
		return cmp.Or(cmp.Compare(b.Attempt, a.Attempt), b.CreatedAt.Compare(a.CreatedAt))
	})
	return all
}

// Running returns the containers that have a process or may have one.
func (o Observed) Running() []container.Status {
	var running []container.Status
	for _, c := range o.Containers {
		if c.State == container.StateRunning {
			running = append(running, c)
		}
	}
	return running
}

// Kind is one of the three kinds of probe.
type Kind string

// The kinds of probe, spelled as events spell them.
const (
	Liveness  Kind = "Liveness"
	Readiness Kind = "Readiness"
	Startup   Kind = "Startup"
)

// Result is what a probe found after its thresholds were applied.
type Result int

// The results of a probe.
const (
	Unknown Result = iota
	Success
	Failure
)

// Results is read access to what the probes found.
type Results interface {
	// Result is the last decided result for a container; false while there is none.
	Result(kind Kind, containerID string) (Result, bool)
}

// NoResults is the Results of a pod without probes.
type NoResults struct{}

// Result implements Results.
func (NoResults) Result(Kind, string) (Result, bool) { return Unknown, false }

// Restartable reports whether an init container is a sidecar: started in order like an init
// container, then kept running.
func Restartable(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// Container returns the container of that name from the pod's spec, of whatever kind.
func Container(pod *corev1.Pod, name string) *corev1.Container {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return &pod.Spec.InitContainers[i]
		}
	}
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return &pod.Spec.Containers[i]
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			c := corev1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
			return &c
		}
	}
	return nil
}

// Terminal reports whether a phase is the last one of a pod.
func Terminal(phase corev1.PodPhase) bool {
	return phase == corev1.PodFailed || phase == corev1.PodSucceeded
}

// ShouldRestart reports whether a container that exited with code starts again, by the
// container's own rules and policy first, then the pod's policy.
func ShouldRestart(c *corev1.Container, policy corev1.RestartPolicy, code int32) bool {
	if c.RestartPolicy != nil {
		for _, rule := range c.RestartPolicyRules {
			if rule.ExitCodes == nil {
				continue
			}
			in := slices.Contains(rule.ExitCodes.Values, code)
			matches := in == (rule.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn)
			if matches && rule.Action == corev1.ContainerRestartRuleActionRestart {
				return true
			}
			if matches {
				break
			}
		}
		switch *c.RestartPolicy {
		case corev1.ContainerRestartPolicyAlways:
			return true
		case corev1.ContainerRestartPolicyOnFailure:
			return code != 0
		case corev1.ContainerRestartPolicyNever:
			return false
		}
	}
	switch policy {
	case corev1.RestartPolicyOnFailure:
		return code != 0
	case corev1.RestartPolicyNever:
		return false
	default:
		return true
	}
}

// wantsRestart reports whether the container is to be started (again), back-off aside.
func wantsRestart(c *corev1.Container, pod *corev1.Pod, o Observed) bool {
	if pod.DeletionTimestamp != nil {
		return false
	}
	status, ok := o.Latest(c.Name)
	if !ok {
		return true
	}
	switch status.State {
	case container.StateRunning:
		return false
	case container.StateExited:
		return ShouldRestart(c, pod.Spec.RestartPolicy, int32(status.ExitCode))
	default:
		return true
	}
}
