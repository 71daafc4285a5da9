//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// spread is a Deployment with two pods on each of three machines.
const spread = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 6
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers:
      - name: web
        image: registry.gantry.internal/default/busy:v1
        command: [sh, -c, "echo $WORD from $HOSTNAME; mkdir /www; hostname > /www/index.html; httpd -p 8080 -h /www; exec sleep 100099"]
        env: [{name: WORD, valueFrom: {configMapKeyRef: {name: words, key: word}}}]
        volumeMounts: [{name: words, mountPath: /words}]
      volumes:
      - {name: words, configMap: {name: words}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: words}
data: {word: hello}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`

// TestJoin makes two machines workers of a third, and uses all of them.
func TestJoin(t *testing.T) {
	m := newMachines(t, 3)
	server := m.node[0]
	server.up(t)
	testRefusals(t, m)
	for i := 1; i < 3; i++ {
		steps := m.join(t, 0, i)
		if !matches(`(?s)cluster found.*certificate signed.*node m\d ready after`, steps) {
			t.Errorf("steps of machine %d: %s", i, steps)
		}
	}
	if out := server.mustGantry(t, "node", "ls"); !matches(`(?s)m0 +server +ready .*m1 +worker +ready .*m2 +worker +ready `, out) {
		t.Errorf("node ls: %s", out)
	}

	server.load(t, false)
	server.mustGantry(t, "image", "push", busyboxImage, "default/busy:v1")
	server.apply(t, "default", spread)
	server.kubectl(t, "rollout", "status", "deployment/web", "--timeout=90s")
	pods := func(node int) []string {
		return strings.Fields(server.kubectl(t, "get", "pods", "-l", "app=web", "--field-selector", "spec.nodeName="+m.name(node), "-o", "jsonpath={.items[*].metadata.name}"))
	}
	for i := range 3 {
		on := pods(i)
		if len(on) != 2 {
			t.Fatalf("machine %d has the pods %v", i, on)
		}
		if out := server.kubectl(t, "logs", on[0]); !strings.HasPrefix(out, "hello from "+on[0]) {
			t.Errorf("logs of %s: %q", on[0], out)
		}
		if out := server.kubectl(t, "exec", on[0], "--", "cat", "/words/word"); out != "hello" {
			t.Errorf("exec in %s: %q", on[0], out)
		}
	}
	testWorkerAlone(t, m, pods)
	testDrainAndRemove(t, m, pods)
}

// testRefusals tries what must not become a node.
func testRefusals(t *testing.T, m *machines) {
	t.Helper()
	server, joiner := m.node[0], m.node[1]
	address, token := m.token(t, 0)
	refused := func(what, want string, flags ...string) {
		t.Helper()
		r := joiner.gantry(t, "", append([]string{"up", "--detach"}, flags...)...)
		if r.code == 0 || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: %v; want %q", what, r, want)
		}
	}
	refused("a name that is taken", "there is a node m0", "--node-name", "m0", "--join", address, "--token", token)
	refused("a name of the API's", "a name of the API", "--node-name", "kubernetes", "--join", address, "--token", token)
	cut := strings.LastIndex(token, ".")
	wrongPin := token[:cut+1] + strings.Repeat("A", len(token)-cut-1)
	refused("another cluster's token", "the pin in the token is of another authority", "--node-name", "m1", "--join", address, "--token", wrongPin)
	refused("a flag that contradicts", "--cluster-domain says other.local, but the cluster has cluster.local", "--node-name", "m1", "--cluster-domain", "other.local", "--join", address, "--token", token)
	refused("half a command", "--join and --token go together", "--node-name", "m1", "--join", address)
	refused("nobody there", "does nothing in between drop its port?", "--node-name", "m1", "--join", "10.77.0.99", "--token", token)

	id, _, _ := strings.Cut(token, ".")
	if out := server.mustGantry(t, "token", "ls"); !strings.Contains(out, id) {
		t.Errorf("token ls: %s", out)
	}
	server.mustGantry(t, "token", "revoke", id)
	refused("a revoked token", "has expired or was revoked", "--node-name", "m1", "--join", address, "--token", token)
	_, token = m.token(t, 0)
	id, _, _ = strings.Cut(token, ".")
	server.kubectl(t, "patch", "secret", "-n", "kube-system", "bootstrap-token-"+id, "--type=merge", "-p", `{"stringData":{"expiration":"2020-01-01T00:00:00Z"}}`)
	refused("an expired token", "has expired or was revoked", "--node-name", "m1", "--join", address, "--token", token)
	if out := server.kubectl(t, "get", "nodes", "-o", "name"); strings.TrimSpace(out) != "node/m0" {
		t.Errorf("nodes after refusals: %s", out)
	}
}

// testWorkerAlone kills a worker, then the server, and starts the worker while there is no server.
func testWorkerAlone(t *testing.T, m *machines, pods func(int) []string) {
	t.Helper()
	server, worker := m.node[0], m.node[1]
	containers := func() int {
		n := 0
		for _, cmdline := range m.everything(1) {
			if cmdline == "sleep 100099" {
				n++
			}
		}
		return n
	}
	before := pods(1)
	worker.kill(t, syscall.SIGKILL)
	worker.up(t) // no flags
	if after := pods(1); strings.Join(before, " ") != strings.Join(after, " ") || containers() != 2 {
		t.Errorf("pods %v and %d containers after a crash of the worker, before: %v", after, containers(), before)
	}
	// What it knows is written down a second after it changed.
	eventually(t, "the worker has written down its pods", 10*time.Second, func() error {
		text, err := os.ReadFile(filepath.Join(worker.dir, "known", "Pod.json"))
		for _, name := range before {
			if err == nil && !strings.Contains(string(text), name) {
				err = fmt.Errorf("%s is not in it", name)
			}
		}
		return err
	})
	worker.kill(t, syscall.SIGKILL)
	server.kill(t, syscall.SIGKILL)
	worker.up(t)
	if n := containers(); n != 2 {
		t.Errorf("%d containers run on a worker without a server", n)
	}
	for pid, cmdline := range m.everything(1) {
		if cmdline == "sleep 100099" {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			break
		}
	}
	eventually(t, "a container that ended is started again without a server", 60*time.Second, func() error {
		if n := containers(); n != 2 {
			return fmt.Errorf("%d containers run", n)
		}
		return nil
	})
	server.up(t)
	eventually(t, "the worker is back", 30*time.Second, func() error {
		if after := pods(1); strings.Join(before, " ") != strings.Join(after, " ") {
			return fmt.Errorf("its pods are %v, were %v", after, before)
		}
		if out := server.mustGantry(t, "node", "ls"); !matches(`m1 +worker +ready `, out) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}

// testDrainAndRemove takes a worker away, whose certificates are then no good.
func testDrainAndRemove(t *testing.T, m *machines, pods func(int) []string) {
	t.Helper()
	server := m.node[0]
	if r := server.gantry(t, "", "node", "rm", "m2", "--yes"); r.code != 2 || !strings.Contains(r.stderr, "drain") {
		t.Errorf("node rm of a node with pods: %v", r)
	}
	if r := server.gantry(t, "", "node", "rm", "m0", "--yes", "--force"); r.code != 2 || !strings.Contains(r.stderr, "is a server") {
		t.Errorf("node rm of a server: %v", r)
	}
	server.kubectl(t, "patch", "deployment", "web", "--type=json", "-p", `[{"op":"remove","path":"/spec/template/spec/topologySpreadConstraints"}]`)
	server.kubectl(t, "rollout", "status", "deployment/web", "--timeout=90s")
	server.mustGantry(t, "node", "drain", "m2", "--timeout", "90s")
	if left := pods(2); len(left) != 0 {
		t.Errorf("a drained node has the pods %v", left)
	}
	server.mustGantry(t, "node", "rm", "m2", "--yes")
	gone := m.node[2]
	eventually(t, "the removed node is refused", 20*time.Second, func() error {
		text, err := os.ReadFile(filepath.Join(gone.dir, "log", "gantry.log"))
		if err == nil && !strings.Contains(string(text), "Unauthorized") {
			err = fmt.Errorf("its log does not say so")
		}
		return err
	})
	if out := server.kubectl(t, "get", "nodes", "-o", "name"); strings.Contains(out, "m2") {
		t.Errorf("nodes after a removal: %s", out)
	}
	gone.mustGantry(t, "down", "--purge", "--yes")
	m.join(t, 0, 2)
	if out := server.mustGantry(t, "node", "ls"); !matches(`m2 +worker +ready`, out) {
		t.Errorf("a machine that joined again: %s", out)
	}
}
