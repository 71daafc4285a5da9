//go:build linux

package e2e

import (
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const resizeManifest = `
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: stays
    image: busybox:e2e
    command: [sleep, "100000"]
    resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {cpu: 100m, memory: 64Mi}}
  - name: restarts
    image: busybox:e2e
    command: [sleep, "100000"]
    resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]
    resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {cpu: 100m, memory: 64Mi}}
`

const otherManifest = `
apiVersion: v1
kind: Pod
metadata: {name: other}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "busybox:e2e", command: [sleep, "100000"], resources: {requests: {cpu: %dm}}}]
`

// settledAt waits until a pod has what a change asked for, and says so.
func settledAt(generation int64) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodResizePending || c.Type == corev1.PodResizeInProgress {
				return false
			}
		}
		return p.Status.ObservedGeneration >= generation && running(p)
	}
}

func containerStatus(p *corev1.Pod, name string) corev1.ContainerStatus {
	for _, s := range p.Status.ContainerStatuses {
		if s.Name == name {
			return s
		}
	}
	return corev1.ContainerStatus{}
}

// TestResize changes the resources of containers that run, over the end of the main process too.
func TestResize(t *testing.T) {
	root := ownCgroups(t)
	c := newCluster(t)
	c.extra = []string{"--cgroup-root=" + root}
	c.up(t)
	c.load(t, false)
	ns := c.namespace(t, "resize")
	c.apply(t, ns, resizeManifest)
	before := c.pod(t, ns, "web", "running", running)
	patch := func(text string) int64 {
		t.Helper()
		c.kubectl(t, "patch", "pod", "-n", ns, "web", "--subresource=resize", "--patch", text)
		return c.pod(t, ns, "web", "there", func(*corev1.Pod) bool { return true }).Generation
	}
	limits := func(p *corev1.Pod, name string) string {
		t.Helper()
		cgroup := root + "/kubepods/burstable/pod" + string(p.UID)
		if name != "" {
			cgroup += "/" + strings.TrimPrefix(containerStatus(p, name).ContainerID, "containerd://")
		}
		return fmt.Sprintf("cpu %s shares %s memory %s", cgroupFile(t, "cpu", cgroup, "cpu.cfs_quota_us"), cgroupFile(t, "cpu", cgroup, "cpu.shares"),
			cgroupFile(t, "memory", cgroup, "memory.limit_in_bytes"))
	}
	check := func(p *corev1.Pod, name, want string) {
		t.Helper()
		if got := limits(p, name); got != want {
			t.Errorf("cgroup of %q: %s, want %s", name, got, want)
		}
	}
	check(before, "", "cpu 20000 shares 102 memory 134217728")
	check(before, "stays", "cpu 10000 shares 51 memory 67108864")

	generation := patch(`{"spec":{"containers":[{"name":"stays","resources":{"requests":{"cpu":"100m"},"limits":{"cpu":"200m","memory":"48Mi"}}}]}}`)
	pod := c.pod(t, ns, "web", "resized", settledAt(generation))
	check(pod, "stays", "cpu 20000 shares 102 memory 50331648")
	check(pod, "", "cpu 30000 shares 153 memory 117440512")
	s := containerStatus(pod, "stays")
	if s.RestartCount != 0 || s.ContainerID != containerStatus(before, "stays").ContainerID {
		t.Errorf("the container was restarted: %+v", s)
	}
	if s.Resources.Limits.Memory().String() != "48Mi" || s.AllocatedResources.Cpu().String() != "100m" {
		t.Errorf("its status has %v, allocated %v", s.Resources, s.AllocatedResources)
	}

	generation = patch(`{"spec":{"containers":[{"name":"restarts","resources":{"limits":{"memory":"96Mi"}}}]}}`)
	pod = c.pod(t, ns, "web", "resized by a restart", func(p *corev1.Pod) bool {
		return settledAt(generation)(p) && containerStatus(p, "restarts").RestartCount == 1
	})
	check(pod, "restarts", "cpu 10000 shares 51 memory 100663296")
	if containerStatus(pod, "stays").RestartCount != 0 {
		t.Error("the other container was restarted too")
	}

	// Another pod leaves half of one CPU.
	c.apply(t, ns, fmt.Sprintf(otherManifest, 1000*runtime.NumCPU()-500))
	c.pod(t, ns, "other", "running", running)
	generation = patch(`{"spec":{"containers":[{"name":"stays","resources":{"requests":{"cpu":"1"},"limits":{"cpu":"1"}}}]}}`)
	pod = c.pod(t, ns, "web", "waiting for room", func(p *corev1.Pod) bool { return isTrue(p, corev1.PodResizePending) })
	check(pod, "stays", "cpu 20000 shares 102 memory 50331648")
	c.kill(t, syscall.SIGKILL)
	c.up(t)
	pod = c.pod(t, ns, "web", "waiting still", func(p *corev1.Pod) bool {
		return isTrue(p, corev1.PodResizePending) && p.Status.ObservedGeneration >= generation
	})
	if s := containerStatus(pod, "stays"); s.AllocatedResources.Cpu().String() != "100m" || s.RestartCount != 0 {
		t.Errorf("after the end of the main process it has %v of CPU, %d restarts", s.AllocatedResources.Cpu(), s.RestartCount)
	}
	generation = patch(`{"spec":{"containers":[{"name":"stays","resources":{"requests":{"cpu":"150m"},"limits":{"cpu":"300m"}}}]}}`)
	c.kill(t, syscall.SIGKILL) // in the midst of it, or before, or after: the end is the same
	c.up(t)
	pod = c.pod(t, ns, "web", "resized over the end of the main process", settledAt(generation))
	check(pod, "stays", "cpu 30000 shares 153 memory 50331648")
	if s := containerStatus(pod, "stays"); s.RestartCount != 0 {
		t.Errorf("it was restarted: %+v", s)
	}
}

const drainManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: main, image: "busybox:e2e", command: [sleep, "100000"]}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
`

// TestDrain empties the node as far as a disruption budget lets it, and then wholly.
func TestDrain(t *testing.T) {
	c := newCluster(t)
	c.up(t)
	c.load(t, false)
	ns := c.namespace(t, "drain")
	c.apply(t, ns, drainManifest)
	c.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	eventually(t, "the budget allows one", 30*time.Second, func() error {
		if out := c.kubectl(t, "get", "pdb", "-n", ns, "web", "-o", "jsonpath={.status.disruptionsAllowed}"); out != "1" {
			return fmt.Errorf("it allows %q", out)
		}
		return nil
	})
	node := strings.TrimSpace(c.kubectl(t, "get", "nodes", "-o", "name"))
	drain := []string{"drain", strings.TrimPrefix(node, "node/"), "--ignore-daemonsets", "--delete-emptydir-data"}
	r := c.try(t, append(drain, "--timeout=8s")...)
	if r.code == 0 || !strings.Contains(r.stderr, "Cannot evict pod as it would violate the pod's disruption budget.") {
		t.Errorf("drain with a budget: %v", r)
	}
	if out := c.kubectl(t, "get", node); !strings.Contains(out, "SchedulingDisabled") {
		t.Errorf("the node is not cordoned:\n%s", out)
	}
	if out := c.kubectl(t, "get", "pods", "-n", ns, "--field-selector=status.phase=Running", "-o", "name"); strings.Count(out, "pod/") != 1 {
		t.Errorf("these run:\n%s", out)
	}
	c.kubectl(t, "delete", "pdb", "-n", ns, "web")
	c.kubectl(t, append(drain, "--timeout=60s")...)
	c.kubectl(t, "uncordon", strings.TrimPrefix(node, "node/"))
	c.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
}
