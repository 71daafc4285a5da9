package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/agent/nodeapi"
	"gantry.dev/gantry/internal/agent/stats"
)

// Handler makes the kubelet's HTTP API of this node. It neither listens nor authenticates.
func (a *Agent) Handler() (http.Handler, error) {
	cores := a.capacity[corev1.ResourceCPU]
	return nodeapi.New(a, a.runtime, nodeapi.Options{
		NodeName: a.opts.NodeName,
		DialPod:  a.dialPod,
		LogFile: func(pod *corev1.Pod, name string, attempt int) string {
			return filepath.Join(a.podLogDir(pod.Namespace, pod.Name, pod.UID), name, strconv.Itoa(attempt)+".log")
		},
		LogAttempts: a.logAttempts,
		Stats:       a.stats,
		Probes:      a.probes.counts,
		Gateway:     a.opts.Gateway,
		Extra:       a.opts.Extra,
		Cores:       int(cores.Value()),
		HealthErrors: func() error {
			if problem := a.readyErr.Load(); problem != nil {
				return errors.New(*problem)
			}
			return nil
		},
		Logger: a.log,
	})
}

// Stats measures the node and its pods.
func (a *Agent) Stats() *stats.Reader { return a.stats }

// newStats makes what measures the node. A runtime that knows where containers write has a
// method Layer.
func newStats(a *Agent) (*stats.Reader, error) {
	opts := stats.Options{
		NodeName: a.opts.NodeName, Pods: a.Pods, PodsDir: a.opts.PodsDir, LogDir: a.opts.LogDir, ImageDir: a.opts.ImageDir,
		CgroupRoot: a.opts.CgroupRoot, VolumeDir: a.volumeDir,
	}
	if runtime, ok := a.runtime.(interface {
		Layer(ctx context.Context, containerID string) (string, error)
	}); ok {
		opts.Layer = runtime.Layer
	}
	return stats.New(opts)
}

// volumeDir is where a volume of a pod lies; false until it is made.
func (a *Agent) volumeDir(pod *corev1.Pod, name string) (string, bool) {
	a.mu.Lock()
	w := a.workers[pod.UID]
	a.mu.Unlock()
	if w == nil {
		return "", false
	}
	mounts := w.made.Load()
	if mounts == nil {
		return "", false
	}
	m, ok := (*mounts)[name]
	return m.HostPath, ok
}

// logAttempts lists the attempts of a container that have a log.
func (a *Agent) logAttempts(pod *corev1.Pod, name string) []int {
	entries, err := os.ReadDir(filepath.Join(a.podLogDir(pod.Namespace, pod.Name, pod.UID), name))
	if err != nil {
		return nil
	}
	var attempts []int
	for _, e := range entries {
		number, _, ok := strings.Cut(e.Name(), ".log")
		if n, err := strconv.Atoi(number); ok && err == nil {
			attempts = append(attempts, n)
		}
	}
	return attempts
}

// SetRuntimeProblem says why the runtime cannot run pods; empty says that it can. It shows in
// the node's Ready condition with the next report.
func (a *Agent) SetRuntimeProblem(problem string) {
	if problem == "" {
		a.readyErr.Store(nil)
		return
	}
	a.readyErr.Store(&problem)
}

// dialPod connects to a port of a pod's loopback address.
func (a *Agent) dialPod(ctx context.Context, pod *corev1.Pod, port int32) (net.Conn, error) {
	if pod.Spec.HostNetwork {
		return a.opts.Dial(ctx, "tcp", net.JoinHostPort("localhost", strconv.Itoa(int(port))))
	}
	a.mu.Lock()
	w := a.workers[pod.UID]
	a.mu.Unlock()
	if w == nil {
		return nil, fmt.Errorf("pod %s/%s is gone", pod.Namespace, pod.Name)
	}
	netns := w.namespace.Load()
	if netns == nil {
		return nil, fmt.Errorf("pod %s/%s has no network yet", pod.Namespace, pod.Name)
	}
	if a.opts.DialPod != nil {
		return a.opts.DialPod(ctx, *netns, port)
	}
	return dialInNamespace(ctx, *netns, port)
}
