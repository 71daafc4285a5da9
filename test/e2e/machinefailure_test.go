//go:build linux

package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// failing is a Deployment on all machines and a StatefulSet on a worker.
const failing = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: main, image: registry.gantry.internal/default/busy:v1, command: [sleep, "100201"]}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: NotIn, values: [m0]}]}]
      containers: [{name: main, image: registry.gantry.internal/default/busy:v1, command: [sleep, "100202"]}]
`

// TestMachineFailure cuts machines off in several ways while their agents are dead, stopped or alive: their stateful pod
// never runs twice, and runs elsewhere in the end. What comes back is ready and keeps its pods.
func TestMachineFailure(t *testing.T) {
	m := newMachines(t, 3)
	server := m.node[0]
	server.up(t)
	for i := 1; i < 3; i++ {
		m.joinWorker(t, i)
	}
	server.load(t, false)
	server.mustGantry(t, "image", "push", busyboxImage, "default/busy:v1")
	server.apply(t, "default", failing)
	server.kubectl(t, "rollout", "status", "deployment/web", "--timeout=90s")
	server.kubectl(t, "rollout", "status", "statefulset/db", "--timeout=90s")
	for _, way := range []struct {
		name      string
		fail, end func(t *testing.T, i int)
	}{
		{"cut off, and the agent killed", func(t *testing.T, i int) {
			m.cut(t, i)
			m.node[i].kill(t, syscall.SIGKILL)
		}, func(t *testing.T, i int) {
			m.mend(t, i)
			m.node[i].up(t)
		}},
		{"nothing reaches it, and the agent stopped", func(t *testing.T, i int) {
			m.cutTo(t, 0, i)
			if err := syscall.Kill(m.node[i].pid(t), syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		}, func(t *testing.T, i int) {
			m.mendTo(t, 0, i)
			if err := syscall.Kill(m.node[i].pid(t), syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}},
		{"it reaches nobody", func(t *testing.T, i int) { m.cutTo(t, i, 0) }, func(t *testing.T, i int) { m.mendTo(t, i, 0) }},
	} {
		t.Run(way.name, func(t *testing.T) {
			eventually(t, "all nodes are ready, and the stateful pod is fenced", time.Minute, func() error {
				if out := server.kubectl(t, "get", "nodes", "--no-headers"); strings.Count(out, " Ready ") != 3 {
					return fmt.Errorf("nodes are\n%s", out)
				}
				out := server.kubectl(t, "get", "pod", "db-0", "-o", `jsonpath={.status.phase} {.status.conditions[?(@.type=="gantry.dev/fenced")].status}`)
				if out != "Running True" {
					return fmt.Errorf("db-0 is %s", out)
				}
				return nil
			})
			m.loseDB(t, way.fail, way.end)
		})
	}
}

// loseDB lets the machine that runs the stateful pod fail and come back.
func (m *machines) loseDB(t *testing.T, fail, end func(t *testing.T, i int)) {
	t.Helper()
	server := m.node[0]
	home := server.kubectl(t, "get", "pod", "db-0", "-o", "jsonpath={.spec.nodeName}")
	victim, other := 1, 2
	if home == m.name(2) {
		victim, other = 2, 1
	}
	count := m.count
	const db = "sleep 100202"
	if count(victim, db) != 1 {
		t.Fatalf("the stateful pod does not run on %s", home)
	}
	var unready, moved time.Duration
	fail(t, victim)
	failed := time.Now()
	eventually(t, "the stateful pod runs elsewhere", 2*time.Minute, func() error {
		there, here := count(other, db), count(victim, db) // in this order: the old one must have ended before
		if there > 0 && here > 0 {
			t.Fatal("the stateful pod runs twice")
		}
		if unready == 0 && strings.Contains(server.kubectl(t, "get", "node", home, "--no-headers"), "NotReady") {
			unready = time.Since(failed)
		}
		if there == 0 {
			return fmt.Errorf("it does not")
		}
		moved = time.Since(failed)
		return nil
	})
	server.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
	t.Logf("not ready after %v, stateful pod elsewhere after %v", unready, moved)
	end(t, victim)
	eventually(t, "the machine is back", time.Minute, func() error {
		if out := server.kubectl(t, "get", "node", home, "--no-headers"); !strings.Contains(out, " Ready ") {
			return fmt.Errorf("it is %s", out)
		}
		if count(victim, db) != 0 || count(other, db) != 1 {
			return fmt.Errorf("the stateful pod runs %d times on it and %d times elsewhere", count(victim, db), count(other, db))
		}
		return nil
	})
}

// joinWorker makes machine i a worker of the first.
func (m *machines) joinWorker(t *testing.T, i int) {
	t.Helper()
	words := strings.Fields(m.node[0].mustGantry(t, "token", "create"))
	var flags []string
	for at, word := range words {
		if (word == "--join" || word == "--token") && at+1 < len(words) {
			flags = append(flags, word, words[at+1])
		}
	}
	m.node[i].up(t, flags...)
}
