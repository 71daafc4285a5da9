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
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/agent/nodeapi"
)

// Usage is what a container uses.
type Usage = nodeapi.Usage

// Handler makes the kubelet's HTTP API of this node. It neither listens nor authenticates.
// usage reads what a container uses; nil reports none.
func (a *Agent) Handler(usage func(ctx context.Context, containerID string) (Usage, error)) (http.Handler, error) {
	return nodeapi.New(a, a.runtime, nodeapi.Options{
		NodeName: a.opts.NodeName,
		DialPod:  a.dialPod,
		LogFile: func(pod *corev1.Pod, name string, attempt int) string {
			return filepath.Join(a.podLogDir(pod.Namespace, pod.Name, pod.UID), name, strconv.Itoa(attempt)+".log")
		},
		LogAttempts: a.logAttempts,
		Usage:       usage,
		NodeUsage:   nodeUsage,
		HealthErrors: func() error {
			if problem := a.readyErr.Load(); problem != nil {
				return errors.New(*problem)
			}
			return nil
		},
		Logger: a.log,
	})
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

// nodeUsage reads what the whole machine uses.
func nodeUsage() (Usage, error) {
	u := Usage{At: time.Now()}
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return u, fmt.Errorf("reading the node's CPU time: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	for i, f := range fields {
		if i == 0 || i == 4 || i == 5 || i > 8 { // without idle, iowait and guest
			continue
		}
		ticks, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return u, fmt.Errorf("reading the node's CPU time: %w", err)
		}
		u.CPUNanos += ticks * uint64(time.Second/100)
	}
	info := memoryInfo()
	u.MemoryBytes = uint64(info["MemTotal"] - info["MemFree"])
	u.WorkingSetBytes = uint64(info["MemTotal"] - info["MemAvailable"])
	return u, nil
}
