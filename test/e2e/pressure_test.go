//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// neighbourManifest is a pod that must not notice what others do: it counts once in a tenth of a
// second, and serves.
const neighbourManifest = `
apiVersion: v1
kind: Pod
metadata: {name: neighbour}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: count
    image: busybox:e2e
    command: [sh, -c, "n=0; while true; do n=$((n+1)); echo $n; sleep 0.1; done"]
    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 100m, memory: 16Mi}}
  - name: serve
    image: busybox:e2e
    command: [httpd, -f, -p, "8080", -h, /etc]
    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 100m, memory: 16Mi}}
    readinessProbe: {httpGet: {path: /passwd, port: 8080}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 3}
`

const floodsManifest = `
apiVersion: v1
kind: Pod
metadata: {name: memory}
spec:
  restartPolicy: Never
  containers:
  - name: bomb
    image: busybox:e2e
    command: [sh, -c, 'x=0123456789; while true; do x="$x$x"; done']
    resources: {limits: {memory: 32Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: fork}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - {name: bomb, image: "busybox:e2e", command: [sh, -c, "bomb() { bomb | bomb & }; bomb; sleep 1000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: volume}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: filler, image: "busybox:e2e", command: [sh, -c, "head -c 4000000 /dev/zero > /data/x; sleep 1000"], volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, emptyDir: {sizeLimit: 1Mi}}]
---
apiVersion: v1
kind: Pod
metadata: {name: layer}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: filler
    image: busybox:e2e
    command: [sh, -c, "head -c 4000000 /dev/zero > /home/x; sleep 1000"]
    resources: {limits: {ephemeral-storage: 1Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: log}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: flood, image: "busybox:e2e", command: [sh, -c, "seq 1 300000; echo over; sleep 1000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: cpu}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: hog, image: "busybox:e2e", command: [sh, -c, "for i in 1 2 3 4; do while true; do :; done & done; wait"]}
`

// TestIsolation runs pods that take all they can get beside one that must not notice.
func TestIsolation(t *testing.T) {
	root := ownCgroups(t)
	c := newCluster(t)
	c.extra = []string{"--cgroup-root=" + root, "--pod-max-pids=64", "--container-log-max-size=128Ki", "--container-log-max-files=3"}
	c.up(t)
	c.load(t, false)
	ns := c.namespace(t, "isolation")
	c.apply(t, ns, neighbourManifest)
	neighbour := c.pod(t, ns, "neighbour", "ready", running)
	gantry := c.pid(t)
	c.apply(t, ns, floodsManifest)

	t.Run("classes", func(t *testing.T) { testClasses(t, root) })
	t.Run("memory", func(t *testing.T) {
		pod := c.pod(t, ns, "memory", "killed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		s := pod.Status.ContainerStatuses[0].State.Terminated
		if s == nil || s.Reason != "OOMKilled" || s.ExitCode != 137 {
			t.Errorf("it ended with %+v", s)
		}
	})
	t.Run("fork", func(t *testing.T) {
		pod := c.pod(t, ns, "fork", "started", func(p *corev1.Pod) bool { return p.Status.Phase != corev1.PodPending })
		cgroup := root + "/kubepods/besteffort/pod" + string(pod.UID)
		if got := cgroupFile(t, "pids", cgroup, "pids.max"); got != "64" {
			t.Fatalf("its limit of processes is %q", got)
		}
		c.kubectl(t, "delete", "pod", "-n", ns, "fork", "--wait", "--timeout=60s")
	})
	for name, want := range map[string]string{
		"volume": `Usage of EmptyDir volume "data" exceeds the limit "1Mi". `,
		"layer":  "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ",
	} {
		t.Run(name, func(t *testing.T) {
			pod := c.pod(t, ns, name, "evicted", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
			if pod.Status.Reason != "Evicted" || pod.Status.Message != want {
				t.Errorf("it is %s, %q", pod.Status.Reason, pod.Status.Message)
			}
		})
	}
	t.Run("log", func(t *testing.T) {
		pod := c.pod(t, ns, "log", "running", running)
		eventually(t, "everything is logged", 60*time.Second, func() error {
			if out := c.kubectl(t, "logs", "-n", ns, "log", "--tail=1"); strings.TrimSpace(out) != "over" {
				return fmt.Errorf("the last line is %q", out)
			}
			return nil
		})
		files, err := filepath.Glob(filepath.Join(c.dir, "log", "pods", ns+"_log_"+string(pod.UID), "flood", "*"))
		if err != nil || len(files) != 3 {
			t.Fatalf("its log is %v, %v", files, err)
		}
		for _, file := range files {
			if info, err := os.Stat(file); err != nil || info.Size() > 256<<10 {
				t.Errorf("%s: %v, %v", file, info.Size(), err)
			}
		}
	})
	t.Run("neighbour", func(t *testing.T) { testNeighbour(t, c, ns, neighbour) })
	if now := c.pid(t); now != gantry {
		t.Errorf("the main process %d was replaced by %d", gantry, now)
	}
}

// testNeighbour looks for what the others did to a pod: nothing.
func testNeighbour(t *testing.T, c *cluster, ns string, before *corev1.Pod) {
	pod := c.pod(t, ns, "neighbour", "ready", running)
	for i, s := range pod.Status.ContainerStatuses {
		if s.RestartCount != 0 || s.ContainerID != before.Status.ContainerStatuses[i].ContainerID {
			t.Errorf("container %s was restarted: %+v", s.Name, s)
		}
	}
	for i := range before.Status.Conditions {
		was := before.Status.Conditions[i]
		if now := pod.Status.Conditions[i]; was.Type == corev1.PodReady && !now.LastTransitionTime.Equal(&was.LastTransitionTime) {
			t.Errorf("it was not ready for a while: since %v, and before since %v", now.LastTransitionTime, was.LastTransitionTime)
		}
	}
	lines := strings.Fields(c.kubectl(t, "logs", "-n", ns, "neighbour", "-c", "count"))
	first, err := strconv.Atoi(lines[0])
	if err != nil || len(lines) < 10 {
		t.Fatalf("it has said %q", lines)
	}
	for i, line := range lines {
		if line != strconv.Itoa(first+i) {
			t.Fatalf("line %d of its log is %q", i, line)
		}
	}
}

// testClasses reads the cgroups above the pods.
func testClasses(t *testing.T, root string) {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		if got := cgroupFile(t, "", root+"/kubepods/besteffort", "cpu.weight"); got != "1" {
			t.Errorf("the weight of best-effort pods is %s", got)
		}
		return
	}
	if got := cgroupFile(t, "cpu", root+"/kubepods/besteffort", "cpu.shares"); got != "2" {
		t.Errorf("the share of best-effort pods is %s", got)
	}
	// One burstable pod, with a limit of memory and no request of CPU.
	eventually(t, "the share of burstable pods is theirs", 10*time.Second, func() error {
		if got := cgroupFile(t, "cpu", root+"/kubepods/burstable", "cpu.shares"); got != "2" {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
	if got := cgroupFile(t, "memory", root+"/kubepods", "memory.limit_in_bytes"); len(got) > 12 {
		t.Errorf("the limit of all pods' memory is %s", got)
	}
}

// cgroupFile reads one file of a cgroup, of v1's hierarchy or v2's.
func cgroupFile(t *testing.T, controller, cgroup, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, cgroup, file))
	if err != nil && controller != "" {
		text, err = os.ReadFile(filepath.Join("/sys/fs/cgroup", cgroup, file))
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// ownCgroups names a root for cgroups of the test's own. Call it before the cluster is made: what
// is left is removed after it.
func ownCgroups(t *testing.T) string {
	root := fmt.Sprintf("/ge-%d-%s", os.Getpid(), t.Name())
	t.Cleanup(func() { removeCgroups(t, root) })
	return root
}

// removeCgroups removes the empty cgroups that a cluster with a root of its own leaves.
func removeCgroups(t *testing.T, root string) {
	for _, pattern := range []string{"/sys/fs/cgroup/*" + root, "/sys/fs/cgroup" + root} {
		found, _ := filepath.Glob(pattern)
		for _, dir := range found {
			var dirs []string
			_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			slices.Reverse(dirs)
			for _, d := range dirs {
				if err := os.Remove(d); err != nil {
					t.Errorf("a cgroup is left: %v", err)
				}
			}
		}
	}
}

const hungryManifest = `
apiVersion: v1
kind: Pod
metadata: {name: modest}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: "busybox:e2e", command: [sleep, "100000"], resources: {requests: {memory: 16Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: "busybox:e2e", command: [sh, -c, "head -c 230000000 /dev/zero > /mem/x; sleep 100000"], volumeMounts: [{name: mem, mountPath: /mem}]}
  volumes: [{name: mem, emptyDir: {medium: Memory}}]
`

// TestMemoryPressure gives pods 300 MiB together, of which 100 are to stay free.
func TestMemoryPressure(t *testing.T) {
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	root := ownCgroups(t)
	c := newCluster(t)
	reserved := info.Totalram*uint64(info.Unit) - 300<<20
	c.extra = []string{"--cgroup-root=" + root, fmt.Sprintf("--system-reserved=memory=%d", reserved), "--eviction-pressure-transition-period=5s"}
	c.up(t)
	c.load(t, false)
	ns := c.namespace(t, "pressure")
	c.apply(t, ns, hungryManifest)
	hungry := c.pod(t, ns, "hungry", "evicted", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if hungry.Status.Reason != "Evicted" || !strings.HasPrefix(hungry.Status.Message, "The node was low on resource: memory. Threshold quantity: 100Mi, available: ") ||
		!strings.Contains(hungry.Status.Message, "Container main was using ") || !isTrue(hungry, corev1.DisruptionTarget) {
		t.Errorf("it is %+v", hungry.Status)
	}
	nodes, err := c.client(t).CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := nodes.Items[0].Status.Allocatable.Memory().Value(); got != 200<<20 {
		t.Errorf("pods may have %d bytes, want 200 MiB", got)
	}
	if !slices.ContainsFunc(nodes.Items[0].Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeMemoryPressure && c.Status == corev1.ConditionTrue
	}) {
		t.Errorf("the node's conditions are %+v", nodes.Items[0].Status.Conditions)
	}
	eventually(t, "the pressure is over", 60*time.Second, func() error {
		node, err := c.client(t).CoreV1().Nodes().Get(t.Context(), nodes.Items[0].Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type == corev1.NodeMemoryPressure && condition.Status != corev1.ConditionFalse {
				return fmt.Errorf("the node has %+v, taints %v", condition, node.Spec.Taints)
			}
		}
		if len(node.Spec.Taints) > 0 {
			return fmt.Errorf("the node has taints %v", node.Spec.Taints)
		}
		return nil
	})
	if pod := c.pod(t, ns, "modest", "running", running); pod.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the modest pod is %+v", pod.Status)
	}
}

const fillerManifest = `
apiVersion: v1
kind: Pod
metadata: {name: filler}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: "busybox:e2e", command: [sh, -c, "while true; do head -c 8000000 /dev/zero >> /data/x; sleep 0.2; done"], volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: modest}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: "busybox:e2e", command: [sleep, "100000"]}
`

// TestDiskPressure has the data dir on a small file system of its own.
func TestDiskPressure(t *testing.T) {
	root := ownCgroups(t)
	c := newCluster(t)
	if err := syscall.Mount("tmpfs", c.dir, "tmpfs", 0, "size=700m,mode=0755"); err != nil {
		t.Skipf("a small file system cannot be made: %v", err)
	}
	c.extra = []string{"--cgroup-root=" + root, "--eviction-hard=nodefs.available<200Mi", "--eviction-pressure-transition-period=5s"}
	c.up(t)
	c.load(t, false)
	ns := c.namespace(t, "disk")
	c.apply(t, ns, fillerManifest)
	filler := c.pod(t, ns, "filler", "evicted", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if filler.Status.Reason != "Evicted" || !strings.HasPrefix(filler.Status.Message, "The node was low on resource: ephemeral-storage. Threshold quantity: 200Mi, available: ") {
		t.Errorf("it is %+v", filler.Status)
	}
	modest := c.pod(t, ns, "modest", "running", running)
	if modest.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("its neighbour is %+v", modest.Status)
	}
	var fs syscall.Statfs_t
	eventually(t, "the disk is free again", 30*time.Second, func() error {
		if err := syscall.Statfs(c.dir, &fs); err != nil {
			return err
		}
		if free := fs.Bavail * uint64(fs.Bsize); free < 200<<20 {
			return fmt.Errorf("%d bytes are free", free)
		}
		return nil
	})
}
