//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestNode is what a node does beside running the pods of the API: device plugins, static pods,
// runtime classes; with the main process killed between.
func TestNode(t *testing.T) {
	c := newCluster(t)
	c.up(t)
	c.load(t, false)
	c.loadProgram(t, "../../internal/agent/device/testdata/plugin", "plugin:e2e")
	t.Run("runtime classes", func(t *testing.T) { testRuntimeClasses(t, c) })
	t.Run("static pods", func(t *testing.T) { testStaticPods(t, c) })
	t.Run("devices", func(t *testing.T) { testDevices(t, c) })
}

const pluginManifest = `
apiVersion: v1
kind: Pod
metadata: {name: plugin}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: plugin:e2e
    securityContext: {runAsUser: 0}
    volumeMounts: [{name: plugins, mountPath: /plugins}]
  volumes: [{name: plugins, hostPath: {path: DIR, type: Directory}}]
`

const boardManifest = `
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {app: board}}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:e2e
    command: [sh, -c, "exec 3<>/dev/board && echo $BOARD && cat /board-host && exec sleep 100000"]
    resources: {limits: {example.com/board: 1}}
`

// boards waits until all pods of the application have an end or run, and says which device each
// running one has. No device may have two.
func (c *cluster) boards(t *testing.T, ns string, want int) map[string]string {
	t.Helper()
	has := map[string]string{}
	eventually(t, fmt.Sprintf("%d pods have devices", want), 60*time.Second, func() error {
		has = map[string]string{}
		list, err := c.client(t).CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=board"})
		if err != nil {
			return err
		}
		for i := range list.Items {
			pod := &list.Items[i]
			switch {
			case pod.Status.Phase == corev1.PodFailed && pod.Status.Reason == "UnexpectedAdmissionError":
				if !strings.Contains(pod.Status.Message, "requested number of devices unavailable for example.com/board. Requested: 1, Available: 0, which is unexpected") {
					t.Errorf("%s failed for %q", pod.Name, pod.Status.Message)
				}
			case running(pod) && pod.DeletionTimestamp == nil:
				line, _, _ := strings.Cut(c.try(t, "logs", "-n", ns, pod.Name).stdout, "\n")
				if line == "" {
					return fmt.Errorf("%s says nothing yet", pod.Name)
				}
				has[pod.Name] = line
			default:
				return fmt.Errorf("%s is %s", pod.Name, pod.Status.Phase)
			}
		}
		if len(has) != want {
			return fmt.Errorf("%v", has)
		}
		return nil
	})
	taken := map[string]string{}
	for name, board := range has {
		if other, ok := taken[board]; ok || !strings.HasPrefix(board, "board-") {
			t.Errorf("%s has %q, as %s has", name, board, other)
		}
		taken[board] = name
	}
	return has
}

// testDevices has pods compete for the devices of a real plugin.
func testDevices(t *testing.T, c *cluster) {
	ns := c.namespace(t, "devices")
	node := strings.TrimSpace(c.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"))
	c.apply(t, ns, strings.Replace(pluginManifest, "DIR", filepath.Join(c.dir, "device-plugins"), 1))
	c.waitBoards(t, node, "3", "3")
	create := func(names ...string) {
		var all []string
		for _, name := range names {
			all = append(all, strings.NewReplacer("NAME", name, "NODE", node).Replace(boardManifest))
		}
		c.apply(t, ns, strings.Join(all, "---"))
	}
	create("a", "b", "c", "d", "e", "f")
	first := c.boards(t, ns, 3)
	// The process is killed; the pods run on, and have what they had.
	c.kill(t, syscall.SIGKILL)
	c.up(t)
	create("early") // before, or after, the plugin is back: there is no device for it
	c.waitBoards(t, node, "3", "3")
	eventually(t, "the early pod was refused", 60*time.Second, func() error {
		pod, err := c.client(t).CoreV1().Pods(ns).Get(t.Context(), "early", metav1.GetOptions{})
		if err == nil && pod.Status.Reason != "UnexpectedAdmissionError" {
			err = fmt.Errorf("it is %s", pod.Status.Phase)
		}
		return err
	})
	c.kubectl(t, "delete", "pod", "-n", ns, "early")
	for name, board := range c.boards(t, ns, 3) {
		if first[name] != board {
			t.Errorf("after the kill %s has %s, had %s", name, board, first[name])
		}
	}
	// One goes, and another gets its device.
	freed := slices.Sorted(maps.Keys(first))[0]
	c.kubectl(t, "delete", "pod", "-n", ns, freed)
	create("next")
	if got := c.boards(t, ns, 3)["next"]; got != first[freed] {
		t.Errorf("the next pod has %s, want %s of the pod that went", got, first[freed])
	}
	// A device fails: it counts no more, and its holder's status says so.
	plugin := c.pod(t, ns, "plugin", "ready", running)
	c.signalContainer(t, plugin, syscall.SIGUSR1)
	c.waitBoards(t, node, "3", "2")
	eventually(t, "the holder's status tells of the failed device", 20*time.Second, func() error {
		if out := c.kubectl(t, "get", "pods", "-n", ns, "-o", "jsonpath={.items[*].status.containerStatuses[*].allocatedResourcesStatus}"); !strings.Contains(out, "Unhealthy") {
			return errors.New(out)
		}
		return nil
	})
}

// waitBoards waits until the node reports so many devices.
func (c *cluster) waitBoards(t *testing.T, node, capacity, allocatable string) {
	t.Helper()
	want := capacity + " " + allocatable
	eventually(t, "the node has "+want+" devices", 30*time.Second, func() error {
		r := c.try(t, "get", "node", node, "-o", `jsonpath={.status.capacity.example\.com/board} {.status.allocatable.example\.com/board}`)
		if r.stdout != want {
			return fmt.Errorf("it has %q %s", r.stdout, r.stderr)
		}
		return nil
	})
}

const staticManifest = `
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "busybox:e2e", command: [sh, -c, "echo WORD; exec sleep 100000"]}]
`

// testStaticPods writes, changes and removes a manifest.
func testStaticPods(t *testing.T, c *cluster) {
	node := strings.TrimSpace(c.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"))
	path, name := filepath.Join(c.dir, "manifests", "web.yaml"), "web-"+node
	write := func(word string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(strings.Replace(staticManifest, "WORD", word, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	says := func(word string) {
		t.Helper()
		eventually(t, "the static pod says "+word, 30*time.Second, func() error {
			if r := c.try(t, "logs", "-n", "default", name); strings.TrimSpace(r.stdout) != word {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
	}
	write("one")
	mirror := c.pod(t, "default", name, "ready", running)
	if mirror.Annotations[corev1.MirrorPodAnnotationKey] == "" || mirror.OwnerReferences[0].Kind != "Node" {
		t.Errorf("the mirror has %v and %v", mirror.Annotations, mirror.OwnerReferences)
	}
	says("one")
	container := mirror.Status.ContainerStatuses[0].ContainerID
	c.kubectl(t, "delete", "pod", "-n", "default", name)
	again := c.pod(t, "default", name, "ready again", func(p *corev1.Pod) bool { return running(p) && p.UID != mirror.UID })
	if got := again.Status.ContainerStatuses[0].ContainerID; got != container {
		t.Errorf("the mirror's deletion restarted the pod: %s, was %s", got, container)
	}
	c.kill(t, syscall.SIGKILL)
	write("two") // while nobody looks
	c.up(t)
	says("two")
	c.pod(t, "default", name, "ready", running)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the mirror is gone", 30*time.Second, func() error {
		_, err := c.client(t).CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there, or %w", err)
	})
}

// testRuntimeClasses runs a pod under containerd's own shim, and asks for a runtime that is not there.
func testRuntimeClasses(t *testing.T, c *cluster) {
	ns := c.namespace(t, "classes")
	c.apply(t, ns, `
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: stock}
handler: runc
overhead: {podFixed: {memory: 10Mi}}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: missing}
handler: nosuch
`)
	c.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: stock}
spec:
  runtimeClassName: stock
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "busybox:e2e", command: [sh, -c, "echo hello; exec sleep 100000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: missing}
spec:
  runtimeClassName: missing
  containers: [{name: main, image: "busybox:e2e"}]
`)
	pod := c.pod(t, ns, "stock", "ready", running)
	if got := pod.Spec.Overhead.Memory().String(); got != "10Mi" {
		t.Errorf("the pod's overhead is %s", got)
	}
	if out := c.kubectl(t, "logs", "-n", ns, "stock"); out != "hello\n" {
		t.Errorf("it says %q", out)
	}
	if out := c.kubectl(t, "exec", "-n", ns, "stock", "--", "echo", "in"); out != "in\n" {
		t.Errorf("exec says %q", out)
	}
	if !slices.ContainsFunc(c.commands(), func(line string) bool { return strings.Contains(line, "containerd-shim-runc-v2") }) {
		t.Error("no stock shim runs")
	}
	eventually(t, "an event names the missing runtime", 20*time.Second, func() error {
		out := c.kubectl(t, "get", "events", "-n", ns, "--field-selector", "involvedObject.name=missing,reason=FailedCreatePodSandBox", "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(out, `no runtime for "nosuch" is configured`) {
			return errors.New(out)
		}
		return nil
	})
	c.kubectl(t, "delete", "pod", "-n", ns, "--all")
}

// commands are the command lines of the cluster's processes.
func (c *cluster) commands() []string {
	var lines []string
	for _, line := range c.processes() {
		lines = append(lines, line)
	}
	return lines
}

// signalContainer sends a signal to the first process of a pod's container.
func (c *cluster) signalContainer(t *testing.T, pod *corev1.Pod, signal syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(c.processOf(t, pod), signal); err != nil {
		t.Fatal(err)
	}
}
