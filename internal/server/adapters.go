package server

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/agent"
	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/containerd"
	"gantry.dev/gantry/internal/network/podnet"
	"gantry.dev/gantry/internal/network/policy"
	"gantry.dev/gantry/internal/network/service"
)

// runtimePart gives the agent the runtime in the agent's words.
type runtimePart struct{ *containerd.Runtime }

var _ agent.Runtime = runtimePart{}

// Events implements agent.Sandboxes.
func (r runtimePart) Events(context.Context) <-chan container.Event { return r.Runtime.Events() }

// Status implements agent.SandboxReader.
func (r runtimePart) Status(ctx context.Context, id string) (container.SandboxStatus, bool, error) {
	status, err := r.Sandbox(ctx, id)
	if errors.Is(err, containerd.ErrNotFound) {
		return container.SandboxStatus{}, false, nil
	}
	return status, err == nil, err
}

// CreateContainer implements agent.Containers.
func (r runtimePart) CreateContainer(ctx context.Context, config container.Config) (string, error) {
	return r.Create(ctx, config)
}

// StartContainer implements agent.Containers.
func (r runtimePart) StartContainer(ctx context.Context, id string) error { return r.Start(ctx, id) }

// StopContainer implements agent.Containers.
func (r runtimePart) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	return r.Stop(ctx, id, grace)
}

// RemoveContainer implements agent.Containers.
func (r runtimePart) RemoveContainer(ctx context.Context, id string) error { return r.Remove(ctx, id) }

// Exec implements agent.Streamer.
func (r runtimePart) Exec(ctx context.Context, id string, cmd []string, streams container.Streams) (int, error) {
	return r.Runtime.Exec(ctx, id, container.Exec{Command: cmd}, streams)
}

// imagesPart gives the agent the runtime's images in the agent's words.
type imagesPart struct{ *containerd.Runtime }

var _ agent.Images = imagesPart{}

// Pull implements agent.Images.
func (i imagesPart) Pull(ctx context.Context, ref string, credentials []container.Credentials) (container.Image, error) {
	return i.Runtime.Pull(ctx, ref, container.PullOptions{Credentials: credentials})
}

// networkPart makes the pod network once the node's pod range is known. A pod is covered by network policies before it is
// connected.
type networkPart struct {
	options  func(podCIDR netip.Prefix) podnet.Options
	policies *policy.Enforcer

	mu      sync.Mutex // guards the field below
	network *podnet.Network
}

var _ agent.PodNetwork = (*networkPart)(nil)

// prepared returns the network, making it for the first of the node's ranges.
func (n *networkPart) prepared(ctx context.Context, podCIDRs []string) (*podnet.Network, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.network != nil {
		return n.network, nil
	}
	if len(podCIDRs) == 0 {
		return nil, errNoPodCIDR
	}
	cidr, err := netip.ParsePrefix(podCIDRs[0])
	if err != nil {
		return nil, fmt.Errorf("reading the node's pod range: %w", err)
	}
	network, err := podnet.New(n.options(cidr))
	if err != nil {
		return nil, err
	}
	if err := network.Prepare(ctx); err != nil {
		return nil, err
	}
	n.network = network
	return network, nil
}

// Setup implements agent.PodNetwork.
func (n *networkPart) Setup(ctx context.Context, podUID string, pod *corev1.Pod, podCIDRs []string) (string, []netip.Addr, error) {
	network, err := n.prepared(ctx, podCIDRs)
	if err != nil {
		return "", nil, err
	}
	path, addrs, err := network.SetupCovered(ctx, podnet.Request{
		UID: podUID, HostPorts: hostPorts(pod),
		Cover: func(ctx context.Context, addrs []netip.Addr, isNew bool) error {
			return n.policies.Cover(ctx, podUID, pod, addrs, isNew)
		},
	})
	if err != nil {
		n.policies.Uncover(podUID) // it has no network now
	}
	return path, addrs, err
}

func hostPorts(pod *corev1.Pod) []podnet.HostPort {
	var ports []podnet.HostPort
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if p.HostPort != 0 {
				addr, _ := netip.ParseAddr(p.HostIP)
				ports = append(ports, podnet.HostPort{
					HostIP: addr, Protocol: string(p.Protocol), HostPort: uint16(p.HostPort), PodPort: uint16(p.ContainerPort),
				})
			}
		}
	}
	return ports
}

// Teardown implements agent.PodNetwork.
func (n *networkPart) Teardown(ctx context.Context, podUID string) error {
	n.mu.Lock()
	network := n.network
	n.mu.Unlock()
	if network == nil {
		return errNoPodCIDR
	}
	if err := network.Teardown(ctx, podUID); err != nil {
		return err
	}
	n.policies.Uncover(podUID)
	return nil
}

// resetConnections tells clients on this node that their connections are over.
func (n *networkPart) resetConnections(ctx context.Context, list []service.Connection) error {
	n.mu.Lock()
	network := n.network
	n.mu.Unlock()
	if network == nil {
		return nil
	}
	connections := make([]podnet.Connection, len(list))
	for i, c := range list {
		connections[i] = podnet.Connection(c)
	}
	return network.Reset(ctx, connections)
}

// Reconcile implements agent.PodNetwork. Before the network is made there is nothing to remove
// that the next call would not.
func (n *networkPart) Reconcile(ctx context.Context, keep []string) error {
	n.mu.Lock()
	network := n.network
	n.mu.Unlock()
	if network == nil {
		return nil
	}
	set := make(map[string]bool, len(keep))
	for _, uid := range keep {
		set[uid] = true
	}
	return network.Reconcile(ctx, set)
}
