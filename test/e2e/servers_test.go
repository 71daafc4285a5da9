//go:build linux

package e2e

import (
	"context"
	"fmt"
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

// serverSpread is a Deployment whose pods need no image: they are made and placed, which is what is looked at.
const serverSpread = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME}
spec:
  replicas: 3
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: "example.invalid/none:1"}]
`

// TestServers: one server grows to three; the one that leads is killed, and the others go on with everything.
func TestServers(t *testing.T) {
	m := newMachines(t, 3)
	m.node[0].up(t)
	command := strings.Fields(strings.TrimSpace(m.node[0].mustGantry(t, "token", "create", "--server")))
	if steps := m.node[1].up(t, command[2:]...); !matches(`(?s)cluster found.*keys taken over.*store added.*store has all data, and a vote.*ready after`, steps) {
		t.Errorf("steps of machine 1: %s", steps)
	}
	m.join(t, 0, 2) // as a worker
	if out := m.node[0].mustGantry(t, "node", "promote", "m2"); !strings.Contains(out, "m2 is a server now") {
		t.Errorf("node promote: %s", out)
	}
	endpoints := func(at *cluster) string {
		return at.kubectl(t, "get", "endpoints", "kubernetes", "-o", "jsonpath={.subsets[*].addresses[*].ip}")
	}
	eventually(t, "three servers behind default/kubernetes", 30*time.Second, func() error {
		if got := endpoints(m.node[2]); got != strings.Join([]string{m.ip(0), m.ip(1), m.ip(2)}, " ") {
			return fmt.Errorf("they are %s", got)
		}
		return nil
	})
	for i, node := range m.node { // each answers with what another was told
		name := fmt.Sprint("said-to-", i)
		node.kubectl(t, "create", "configmap", name)
		m.node[(i+1)%3].kubectl(t, "get", "configmap", name)
	}
	deployed := func(at, by *cluster, name string) {
		t.Helper()
		at.apply(t, "default", strings.ReplaceAll(serverSpread, "NAME", name))
		eventually(t, "pods of "+name+" on nodes", time.Minute, func() error {
			nodes := strings.Fields(by.kubectl(t, "get", "pods", "-l", "app="+name, "-o", "jsonpath={.items[*].spec.nodeName}"))
			if len(nodes) != 3 {
				return fmt.Errorf("they are on %v", nodes)
			}
			return nil
		})
	}
	deployed(m.node[1], m.node[2], "before")

	leader := m.leader(t, 0)
	if leader < 0 {
		t.Fatal("no machine leads")
	}
	rest := []*cluster{m.node[(leader+1)%3], m.node[(leader+2)%3]}
	m.node[leader].kill(t, syscall.SIGKILL)
	begin := time.Now()
	eventually(t, "a write at another server", 30*time.Second, func() error {
		if r := rest[0].try(t, "create", "configmap", "after"); r.code != 0 && !strings.Contains(r.stderr, "already exists") {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	t.Logf("%s was killed; another server took a write after %v", m.name(leader), time.Since(begin).Round(time.Millisecond))
	rest[1].kubectl(t, "get", "configmap", "after", "said-to-0", "said-to-1", "said-to-2")
	deployed(rest[0], rest[1], "after")

	m.node[leader].up(t) // it comes back as what it was
	m.node[leader].kubectl(t, "get", "configmap", "after")
	deployed(m.node[leader], rest[0], "back")
	for _, node := range rest { // the servers heard each other's nodes all the time
		name := m.name(slices.Index(m.node, node))
		if lost := rest[0].kubectl(t, "get", "events", "--field-selector", "reason=NodeNotReady,involvedObject.name="+name, "-o", "name"); lost != "" {
			t.Errorf("node %s was taken for dead: %s", name, lost)
		}
	}
	m.deadServerIsCut(t)
	testShrink(t, m)
}

// waiters is a pod that keeps connections to the API servers and sends nothing. One sleeper holds what they would send.
const waiters = `
apiVersion: v1
kind: Pod
metadata: {name: waiters}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:e2e
    command:
    - sh
    - -c
    - |
      busybox mkfifo /silence
      sleep 1000 >/silence &
      for i in $(seq 24); do (nc $KUBERNETES_SERVICE_HOST 443 </silence >/dev/null; echo ended) & done
      sleep 1000
`

// deadServerIsCut takes the leader's link away. What a pod has of connections to it ends, though nothing says that they are over,
// and its new connections all reach another server.
func (m *machines) deadServerIsCut(t *testing.T) {
	t.Helper()
	leader := m.leader(t, 0)
	from := m.node[(leader+1)%3]
	from.load(t, false)
	from.apply(t, "default", strings.Replace(waiters, "NODE", m.name((leader+1)%3), 1))
	from.pod(t, "default", "waiters", "running", running)
	ended := func() int { return strings.Count(from.kubectl(t, "logs", "waiters"), "ended") }
	connected := func() int {
		return strings.Count(from.kubectl(t, "exec", "waiters", "--", "busybox", "netstat", "-tn"), "ESTABLISHED")
	}
	eventually(t, "24 connections are open", 10*time.Second, func() error {
		if n := connected(); n != 24 || ended() > 0 {
			return fmt.Errorf("%d are, and %d have ended", n, ended())
		}
		return nil
	})
	m.cut(t, leader)
	begin := time.Now()
	eventually(t, "those to the dead server end", 4*time.Second, func() error {
		if ended() == 0 {
			return fmt.Errorf("none has")
		}
		return nil
	})
	t.Logf("connections to a server that was cut off ended after %v", time.Since(begin).Round(10*time.Millisecond))
	for range 8 {
		from.kubectl(t, "exec", "waiters", "--", "sh", "-c", "nc -w 1 $KUBERNETES_SERVICE_HOST 443 </dev/null")
	}
	if n := ended(); n == 24 {
		t.Error("connections to servers that live have ended, too")
	}
	m.mend(t, leader)
}

// leader is the machine that leads, as another one knows it; -1 is none.
func (m *machines) leader(t *testing.T, at int) int {
	t.Helper()
	holder := strings.TrimSpace(m.node[at].try(t, "get", "lease", "-n", "kube-system", "kube-scheduler", "-o", "jsonpath={.spec.holderIdentity}").stdout)
	return slices.IndexFunc(m.node, func(c *cluster) bool { return holder == m.name(slices.Index(m.node, c)) })
}

// testShrink makes servers workers until one is left, while somebody writes all the time.
func testShrink(t *testing.T, m *machines) {
	t.Helper()
	eventually(t, "all three serve after the cut", 20*time.Second, func() error {
		for _, c := range m.node {
			if r := c.try(t, "get", "--raw", "/readyz"); r.code != 0 {
				return fmt.Errorf("readyz: %s", r.stderr)
			}
			if n := strings.Count(c.try(t, "get", "nodes", "--no-headers").stdout, " Ready"); n != 3 {
				return fmt.Errorf("%d nodes are ready", n)
			}
		}
		return nil
	})
	stop, done := make(chan struct{}), make(chan error, 1)
	var written int
	go func() {
		client := m.node[0].client(t)
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("written-", i)}}
			eventual := time.Now().Add(3 * time.Second) // as long as a change of leaders may take
			for {
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				_, err := client.CoreV1().ConfigMaps("default").Create(ctx, config, metav1.CreateOptions{})
				cancel()
				if err == nil || apierrors.IsAlreadyExists(err) {
					written++
					break
				}
				if time.Now().After(eventual) {
					done <- err
					return
				}
			}
		}
	}()
	for _, i := range []int{2, 1} {
		if out := m.node[0].mustGantry(t, "node", "demote", m.name(i), "--yes"); !strings.Contains(out, "is a worker now") {
			t.Errorf("node demote: %s", out)
		}
		if _, err := os.Stat(filepath.Join(m.node[i].dir, "pki", "ca.key")); err == nil {
			t.Errorf("machine %d, a worker now, has the cluster's key", i)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Errorf("writes stopped: %v", err)
	}
	if r := m.node[0].gantry(t, "", "node", "demote", "m0", "--yes"); r.code == 0 || !strings.Contains(r.stderr, "it is the only server") {
		t.Errorf("the only server: %v", r)
	}
	if out := m.node[0].mustGantry(t, "node", "ls"); !matches(`(?s)m0 +server +ready .*m1 +worker +ready .*m2 +worker +ready `, out) {
		t.Errorf("node ls: %s", out)
	}
	if n := strings.Count(m.node[0].kubectl(t, "get", "configmaps", "-o", "name"), "/written-"); n != written {
		t.Errorf("%d writes were taken, %d are there", written, n)
	}
}
