//go:build linux

package e2e

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// absenceEnv says how long Gantry is away, such as "60s".
const absenceEnv = "GANTRY_E2E_ABSENCE"

const absenceManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: app:e2e
        args: [serve, ":8080"]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        livenessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 2}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30123}]}
---
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  containers:
  - {name: writer, image: "app:e2e", args: [log, "1000", "1000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: client, image: "busybox:e2e", command: [sleep, "100000"]}
`

// TestAbsence ends the main process while an application serves. Nobody who uses the application
// notices, and the next start takes everything over as it is.
func TestAbsence(t *testing.T) {
	away, err := time.ParseDuration(cmp.Or(os.Getenv(absenceEnv), "20s"))
	if err != nil {
		t.Fatalf("%s: %v", absenceEnv, err)
	}
	c := newCluster(t)
	c.up(t)
	c.load(t, true)
	ns := c.namespace(t, "absence")
	c.apply(t, ns, absenceManifest)
	c.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	c.pod(t, ns, "writer", "ready", running)
	client := c.pod(t, ns, "client", "ready", running)
	service := strings.TrimSpace(c.kubectl(t, "get", "service", "-n", ns, "web", "-o", "jsonpath={.spec.clusterIP}"))
	inPod := c.podNetwork(t, client)
	for _, way := range []struct {
		name   string
		signal syscall.Signal
		away   time.Duration
	}{{"kill -9", syscall.SIGKILL, away}, {"SIGTERM", syscall.SIGTERM, min(away, 5*time.Second)}} {
		t.Run(way.name, func(t *testing.T) {
			before := c.containers(t, ns)
			use := startUse(t, map[string]func() error{
				"cluster address from the machine": get(c.ns, "http://"+service+"/"),
				"cluster address from a pod":       get(inPod, "http://"+service+"/"),
				"node port from outside":           get(c.outside, "http://"+machineIP+":30123/"),
				"name from a pod":                  ask(inPod, "web.absence.svc.cluster.local.", service),
				"name from the machine":            ask(c.ns, "kubernetes.default.svc.cluster.local.", "10.96.0.1"),
			})
			use.during(t, time.Second)
			c.kill(t, way.signal)
			use.during(t, way.away)
			c.up(t)
			use.during(t, 3*time.Second)
			use.stop(t)
			c.sameContainers(t, ns, before)
			testWholeLog(t, c, ns)
		})
	}
	testAdopted(t, c, ns)
}

// testAdopted looks after containers that an earlier process has started.
func testAdopted(t *testing.T, c *cluster, ns string) {
	if out := c.kubectl(t, "exec", "-n", ns, "client", "--", "echo", "hello"); out != "hello\n" {
		t.Errorf("exec in an adopted container prints %q", out)
	}
	// What is written while the end is looked for comes too, as with the kubelet.
	if out := c.kubectl(t, "logs", "-n", ns, "writer", "--tail=2"); !matches(`^line \d+ x+\nline \d+ x+\n`, out) || len(out) > 500_000 {
		t.Errorf("the log of an adopted container ends with %d bytes: %.200q", len(out), out)
	}
	pod := c.pod(t, ns, "writer", "ready", running)
	c.killContainer(t, pod)
	c.pod(t, ns, "writer", "restarted", func(pod *corev1.Pod) bool {
		return running(pod) && pod.Status.ContainerStatuses[0].RestartCount == 1
	})
	c.kubectl(t, "delete", "pod", "-n", ns, "client", "--timeout=30s")
}

// containers are what must not change while nobody restarts anything, by pod and container.
func (c *cluster) containers(t *testing.T, ns string) map[string]string {
	t.Helper()
	pods, err := c.client(t).CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]string)
	for _, pod := range pods.Items {
		for _, s := range pod.Status.ContainerStatuses {
			started := "never"
			if s.State.Running != nil {
				started = s.State.Running.StartedAt.UTC().String()
			}
			found[pod.Name+"/"+s.Name] = fmt.Sprintf("%s at %s started %s, %d restarts, ready %v", s.ContainerID, pod.Status.PodIP, started, s.RestartCount, s.Ready)
		}
	}
	return found
}

func (c *cluster) sameContainers(t *testing.T, ns string, want map[string]string) {
	t.Helper()
	got := c.containers(t, ns)
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s was %s, and is now %s", name, want[name], got[name])
		}
	}
	if len(got) != len(want) {
		t.Errorf("there were %d containers, now %d", len(want), len(got))
	}
}

// processOf is the first process of a pod's first container.
func (c *cluster) processOf(t *testing.T, pod *corev1.Pod) int {
	t.Helper()
	id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
	pids := processes(func(pid int, cmdline string) bool {
		cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		return err == nil && cmdline != "" && strings.Contains(string(cgroup), id)
	})
	lowest := 0
	for pid := range pids {
		if lowest == 0 || pid < lowest {
			lowest = pid
		}
	}
	if lowest == 0 {
		t.Fatalf("no process is in the cgroup of container %s", id)
	}
	return lowest
}

func (c *cluster) podNetwork(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	return fmt.Sprintf("/proc/%d/ns/net", c.processOf(t, pod))
}

func (c *cluster) killContainer(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	if err := syscall.Kill(c.processOf(t, pod), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// use calls functions again and again, and keeps their errors.
type use struct {
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu    sync.Mutex // guards the fields below
	done  map[string]int
	fails []string
}

func startUse(t *testing.T, ways map[string]func() error) *use {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	u := &use{cancel: cancel, done: make(map[string]int)}
	for name, call := range ways {
		u.group.Go(func() {
			ticker := time.NewTicker(20 * time.Millisecond)
			defer ticker.Stop()
			for ctx.Err() == nil {
				err := call()
				u.mu.Lock()
				u.done[name]++
				if err != nil {
					u.fails = append(u.fails, fmt.Sprintf("%s %s: %v", time.Now().UTC().Format("15:04:05.000"), name, err))
				}
				u.mu.Unlock()
				select {
				case <-ctx.Done():
				case <-ticker.C:
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); u.group.Wait() })
	return u
}

// during lets the use go on for a time.
func (u *use) during(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

// stop ends the use; each way must have worked each time.
func (u *use) stop(t *testing.T) {
	t.Helper()
	u.cancel()
	u.group.Wait()
	if len(u.fails) > 0 {
		t.Errorf("%d of %v calls failed:\n%s", len(u.fails), u.done, strings.Join(u.fails[:min(len(u.fails), 20)], "\n"))
	}
	for name, count := range u.done {
		if count < 50 {
			t.Errorf("%s was tried only %d times", name, count)
		}
	}
}

func get(path, url string) func() error {
	client := httpFrom(path)
	client.Timeout = 5 * time.Second
	return func() error {
		body, err := fetch(client, url)
		if err == nil && !strings.HasPrefix(body, "web-") {
			err = fmt.Errorf("answered %q", body)
		}
		return err
	}
}

// ask resolves a name at the cluster's DNS address. Each lookup has one packet: a second one, which
// the resolver would send for a lost first one, counts as a failure.
func ask(path, name, want string) func() error {
	var packets atomic.Int32
	dial := dialIn(path)
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		packets.Add(1)
		return dial(ctx, "udp", "10.96.0.10:53")
	}}
	return func() error {
		packets.Store(0)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		addrs, err := resolver.LookupNetIP(ctx, "ip4", name)
		switch {
		case err != nil:
			return err
		case len(addrs) != 1 || addrs[0].Unmap().String() != want:
			return fmt.Errorf("got %v, want %s", addrs, want)
		case packets.Load() != 1:
			return fmt.Errorf("took %d packets", packets.Load())
		}
		return nil
	}
}

// openLog opens the files of a container's log, oldest first. One that is rotated meanwhile would be missed: then all are
// opened anew.
func openLog(t *testing.T, pattern string) (files []*os.File) {
	t.Helper()
	list := func() []string {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(paths, func(a, b string) int { // the newest has no time in its name
			return cmp.Compare(cmp.Or(strings.TrimPrefix(filepath.Ext(a), ".log"), "z"), cmp.Or(strings.TrimPrefix(filepath.Ext(b), ".log"), "z"))
		})
		return paths
	}
	eventually(t, "the log stands still", 10*time.Second, func() error {
		files = nil
		paths := list()
		for _, path := range paths {
			file, err := os.Open(path)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = file.Close() })
			files = append(files, file)
		}
		if now := list(); !slices.Equal(now, paths) {
			return fmt.Errorf("%v became %v", paths, now)
		}
		return nil
	})
	return files
}

// testWholeLog reads the writer's log, where no line may be missing or broken.
func testWholeLog(t *testing.T, c *cluster, ns string) {
	t.Helper()
	files := openLog(t, filepath.Join(c.dir, "log", "pods", ns+"_writer_*", "writer", "0.log*"))
	next, lines := -1, 0
	for i, file := range files {
		path := file.Name()
		scanner := bufio.NewScanner(file)
		for scanner.Scan() {
			if i == len(files)-1 && len(scanner.Text()) < 1000 {
				break // is being written
			}
			var at, stream, tag, word string
			var number int
			if _, err := fmt.Sscan(scanner.Text(), &at, &stream, &tag, &word, &number); err != nil || stream != "stdout" || tag != "F" || word != "line" {
				t.Fatalf("%s has the line %.80q (%v)", path, scanner.Text(), err)
			}
			if next >= 0 && number != next {
				t.Fatalf("in %s line %d follows line %d, at %s", path, number, next-1, at)
			}
			next = number + 1
			lines++
		}
		if err := scanner.Err(); err != nil {
			t.Fatal(err)
		}
	}
	if lines < 5000 {
		t.Errorf("the log has %d lines in %d files, want thousands", lines, len(files))
	}
}
