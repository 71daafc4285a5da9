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
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// cluster is a data dir on a machine of its own.
type cluster struct {
	*machine
	dir   string
	extra []string // flags of every up
}

// newCluster makes the machine and the name of the data dir; up starts it. What runs is stopped
// and removed when the test ends.
func newCluster(t *testing.T, flags ...string) *cluster {
	t.Helper()
	m := newMachine(t)
	dir, err := os.MkdirTemp(shortTempDir(), "ge-")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{machine: m, dir: dir, extra: flags}
	t.Cleanup(func() { c.remove(t) })
	return c
}

// shortTempDir is $TMPDIR unless that is long: a socket's path has 108 bytes at most.
func shortTempDir() string {
	if dir := os.TempDir(); len(dir) <= 16 {
		return dir
	}
	return "/tmp"
}

// remove takes the cluster away, by force if need be, and says what the force was needed for.
func (c *cluster) remove(t *testing.T) {
	if t.Failed() {
		c.explain(t)
	}
	r := c.gantry(t, "", "down", "--purge", "--yes")
	if r.code != 0 && !t.Failed() {
		t.Errorf("gantry down --purge: %v", r)
	}
	for pid := range c.processes() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	mounts := mountsUnder(t, c.dir)
	slices.Reverse(mounts)
	for _, mount := range mounts {
		_ = syscall.Unmount(mount, syscall.MNT_DETACH)
	}
	_ = os.RemoveAll(c.dir)
}

// processes are those with the data dir in their command line, and those in the machine's network.
func (c *cluster) processes() map[int]string {
	var ns syscall.Stat_t
	_ = syscall.Stat(c.ns, &ns)
	self := os.Getpid()
	return processes(func(pid int, cmdline string) bool {
		if pid == self {
			return false
		}
		var at syscall.Stat_t
		return strings.Contains(cmdline, c.dir+"/") || strings.HasSuffix(cmdline, c.dir) ||
			syscall.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &at) == nil && at.Ino == ns.Ino && ns.Ino != 0
	})
}

// gantry runs a command on the cluster.
func (c *cluster) gantry(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	return c.run(t, stdin, filepath.Join(c.bin, "gantry"), append([]string{"--data-dir", c.dir}, args...)...)
}

// mustGantry returns the output of a command that must work.
func (c *cluster) mustGantry(t *testing.T, args ...string) string {
	t.Helper()
	r := c.gantry(t, "", args...)
	if r.code != 0 {
		t.Fatalf("gantry %s: %v", strings.Join(args, " "), r)
	}
	return r.stdout
}

// up starts the node in the background and returns its steps.
func (c *cluster) up(t *testing.T, flags ...string) string {
	t.Helper()
	r := c.gantry(t, "", slices.Concat([]string{"up", "--detach"}, c.extra, flags)...)
	if r.code != 0 {
		t.Fatalf("gantry up: %v", r)
	}
	return r.stderr
}

// pid is the main process's.
func (c *cluster) pid(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, "run", "gantry.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// kill ends the main process and waits until it is gone.
func (c *cluster) kill(t *testing.T, signal syscall.Signal) {
	t.Helper()
	pid := c.pid(t)
	if err := syscall.Kill(pid, signal); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the main process ends", 30*time.Second, func() error {
		if len(processes(func(p int, cmdline string) bool { return p == pid && cmdline != "" })) > 0 {
			return fmt.Errorf("process %d is still there", pid)
		}
		return nil
	})
}

// try runs kubectl.
func (c *cluster) try(t *testing.T, args ...string) result {
	t.Helper()
	return c.gantry(t, "", append([]string{"kubectl"}, args...)...)
}

// kubectl runs kubectl, which must work, and returns its standard output.
func (c *cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return c.mustGantry(t, append([]string{"kubectl"}, args...)...)
}

// apply applies manifests.
func (c *cluster) apply(t *testing.T, namespace, manifest string) {
	t.Helper()
	if r := c.gantry(t, manifest, "kubectl", "apply", "-n", namespace, "-f", "-"); r.code != 0 {
		t.Fatalf("kubectl apply: %v", r)
	}
}

// namespace makes one with a name that says the test, and waits for its service account.
func (c *cluster) namespace(t *testing.T, name string) string {
	t.Helper()
	c.kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		if t.Failed() {
			c.explainNamespace(t, name)
		}
	})
	return name
}

// client is client-go with the admin's certificate, from inside of the machine.
func (c *cluster) client(t *testing.T) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(c.rest(t))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func (c *cluster) rest(t *testing.T) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(c.dir, "admin.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	config.Dial, config.QPS, config.Burst = dialIn(c.ns), 1000, 1000
	return config
}

// pod waits until a pod is as it should be, and returns it.
func (c *cluster) pod(t *testing.T, namespace, name, what string, good func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	client := c.client(t)
	var pod *corev1.Pod
	eventually(t, "pod "+name+" is "+what, 45*time.Second, func() (err error) {
		pod, err = client.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err == nil && !good(pod) {
			err = fmt.Errorf("its status is %+v", pod.Status)
		}
		return err
	})
	return pod
}

func running(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodRunning && isTrue(pod, corev1.PodReady)
}

func succeeded(pod *corev1.Pod) bool { return pod.Status.Phase == corev1.PodSucceeded }

func isTrue(pod *corev1.Pod, condition corev1.PodConditionType) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == condition && c.Status == corev1.ConditionTrue
	})
}

// logs waits until a pod has ended well and returns what it said.
func (c *cluster) logs(t *testing.T, namespace, name string) string {
	t.Helper()
	c.pod(t, namespace, name, "finished", func(pod *corev1.Pod) bool {
		if pod.Status.Phase == corev1.PodFailed {
			t.Fatalf("pod %s failed: %s", name, c.try(t, "logs", "-n", namespace, name))
		}
		return succeeded(pod)
	})
	return c.kubectl(t, "logs", "-n", namespace, name)
}

// explain prints what helps to understand a failure.
func (c *cluster) explain(t *testing.T) {
	if text, err := os.ReadFile(filepath.Join(c.dir, "log", "gantry.log")); err == nil {
		lines := strings.Split(string(text), "\n")
		t.Logf("the end of gantry.log:\n%s", strings.Join(lines[max(0, len(lines)-60):], "\n"))
	}
	t.Logf("processes: %v", c.processes())
	t.Logf("pods: %v", c.try(t, "get", "pods", "-A", "-o", "wide", "--request-timeout=5s"))
}

func (c *cluster) explainNamespace(t *testing.T, namespace string) {
	t.Logf("pods: %v", c.try(t, "describe", "pods", "-n", namespace, "--request-timeout=5s"))
	t.Logf("events: %v", c.try(t, "get", "events", "-n", namespace, "--request-timeout=5s"))
}
