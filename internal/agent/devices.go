package agent

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/agent/device"
	"gantry.dev/gantry/internal/agent/podstatus"
	"gantry.dev/gantry/internal/container"
)

// newDevices makes the manager of the node's devices.
func (a *Agent) newDevices() (*device.Manager, error) {
	return device.New(device.Options{
		Roots: a.opts.PluginRoots, Checkpoint: a.opts.DeviceFile,
		Changed: a.reportSoon,
		HealthChanged: func(pods []types.UID) {
			for _, uid := range pods {
				a.wake(uid)
			}
		},
		Pods:   a.activePods,
		Logger: a.log,
	})
}

func (a *Agent) runDevices(ctx context.Context) {
	_ = a.devices.Run(ctx) // ends with ctx alone
}

// reportSoon has the node's status reported without waiting for its turn.
func (a *Agent) reportSoon() {
	select {
	case a.nodeNews <- struct{}{}:
	default:
	}
}

// wake makes the worker of a pod look at it.
func (a *Agent) wake(uid types.UID) {
	a.mu.Lock()
	w := a.workers[uid]
	a.mu.Unlock()
	if w != nil {
		w.notify()
	}
}

// activePods are those that have not ended.
func (a *Agent) activePods() []*corev1.Pod {
	return slices.DeleteFunc(a.Pods(), func(pod *corev1.Pod) bool { return podstatus.Terminal(pod.Status.Phase) })
}

// admitDevices gives a new pod its devices, or says why it cannot have them.
func (w *worker) admitDevices(ctx context.Context, pod *corev1.Pod) (*podstatus.Waiting, error) {
	a := w.agent
	err := a.devices.Allocate(ctx, pod)
	if err == nil || ctx.Err() != nil {
		return nil, ctx.Err()
	}
	const reason = "UnexpectedAdmissionError"
	message := fmt.Sprintf("Allocate failed due to %v, which is unexpected", err)
	a.events.pod(pod, corev1.EventTypeWarning, reason, message)
	return &podstatus.Waiting{Reason: reason, Message: "Pod was rejected: " + message}, nil
}

// addDevices gives a container what its devices need. The pod's own environment and mounts win.
func (w *worker) addDevices(ctx context.Context, pod *corev1.Pod, c *corev1.Container, config *container.Config) error {
	if len(c.Resources.Limits) == 0 {
		return nil
	}
	grant, err := w.agent.devices.Prepare(ctx, pod, c)
	if err != nil {
		return err
	}
	config.Env = slices.Concat(grant.Env, config.Env)
	config.Devices = append(config.Devices, grant.Devices...)
	config.Hooks = append(config.Hooks, grant.Hooks...)
	for _, m := range grant.Mounts {
		if !slices.ContainsFunc(config.Mounts, func(o container.Mount) bool { return o.ContainerPath == m.ContainerPath }) {
			config.Mounts = append(config.Mounts, m)
		}
	}
	for k, v := range grant.Annotations {
		if config.Annotations == nil {
			config.Annotations = map[string]string{}
		}
		config.Annotations[k] = v
	}
	return nil
}

// addDeviceCapacity lays the devices over a node's capacity and what can be given of it. What
// others have put there (an administrator's patch) stays; a resource whose plugin is gone for
// long is zero, so that one sees that a plugin managed it.
func (a *Agent) addDeviceCapacity(status *corev1.NodeStatus, old corev1.ResourceList) {
	capacity, allocatable, gone := a.devices.Capacity()
	for name, q := range old {
		if _, own := status.Capacity[name]; !own && device.IsExtended(name) {
			status.Capacity[name], status.Allocatable[name] = q, q
		}
	}
	for name, q := range capacity {
		status.Capacity[name] = q
		status.Allocatable[name] = allocatable[name]
	}
	for _, name := range gone {
		q := status.Capacity[corev1.ResourceName(name)]
		q.Set(0)
		status.Capacity[corev1.ResourceName(name)], status.Allocatable[corev1.ResourceName(name)] = q, q
	}
}
