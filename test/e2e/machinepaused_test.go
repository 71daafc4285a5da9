//go:build linux

package e2e

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sharing are two StatefulSets on workers: one that writes to storage which both reach, and one without storage.
const sharing = `
apiVersion: v1
kind: PersistentVolume
metadata: {name: shared}
spec:
  capacity: {storage: 1Mi}
  accessModes: [ReadWriteMany]
  storageClassName: shared
  persistentVolumeReclaimPolicy: Retain
  hostPath: {path: FOLDER}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: shared}
spec: {accessModes: [ReadWriteMany], storageClassName: shared, volumeName: shared, resources: {requests: {storage: 1Mi}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: shared}
spec:
  serviceName: shared
  selector: {matchLabels: {app: shared}}
  template:
    metadata: {labels: {app: shared}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: NotIn, values: [m0]}]}]
      containers: [{name: main, image: "busybox:e2e", command: [sleep, "100301"], volumeMounts: [{name: shared, mountPath: /shared}]}]
      volumes: [{name: shared, persistentVolumeClaim: {claimName: shared}}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: alone}
spec:
  serviceName: alone
  selector: {matchLabels: {app: alone}}
  template:
    metadata: {labels: {app: alone}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: NotIn, values: [m0]}]}]
      containers: [{name: main, image: "busybox:e2e", command: [sleep, "100302"]}]
`

const (
	sharedWriter = "sleep 100301"
	aloneWriter  = "sleep 100302"
)

// TestMachinePaused stops every process of a machine at once, its shims too, as a hypervisor does, and lets them go on. What writes
// to storage that others reach has no second copy until somebody says that the machine is off; then, and when the machine goes on,
// there is one copy of each.
func TestMachinePaused(t *testing.T) {
	if os.Getenv(tourEnv) == "" {
		t.Skipf("%s is not set; \"make tour\" sets it", tourEnv)
	}
	m := newMachines(t, 3)
	server := m.node[0]
	server.up(t)
	for i := 1; i < 3; i++ {
		m.joinWorker(t, i)
		m.node[i].load(t, false)
	}
	server.apply(t, "default", strings.Replace(sharing, "FOLDER", t.TempDir(), 1))
	for _, name := range []string{"shared", "alone"} {
		server.kubectl(t, "rollout", "status", "statefulset/"+name, "--timeout=90s")
	}
	fenced := `jsonpath={.status.conditions[?(@.type=="gantry.dev/fenced")].status} {.status.conditions[?(@.type=="gantry.dev/fenced")].reason}`
	eventually(t, "both are fenced", 30*time.Second, func() error {
		shared := server.kubectl(t, "get", "pod", "shared-0", "-o", fenced)
		if alone := server.kubectl(t, "get", "pod", "alone-0", "-o", fenced); shared != "True SharedStorage" || alone != "True Identity" {
			return fmt.Errorf("shared is %q, alone %q", shared, alone)
		}
		return nil
	})
	// Both on the machine that is paused: the other one goes where shared is.
	home := server.kubectl(t, "get", "pod", "shared-0", "-o", "jsonpath={.spec.nodeName}")
	victim, other := 1, 2
	if home == m.name(2) {
		victim, other = 2, 1
	}
	server.kubectl(t, "cordon", m.name(other))
	server.kubectl(t, "delete", "pod", "alone-0")
	server.kubectl(t, "rollout", "status", "statefulset/alone", "--timeout=60s")
	server.kubectl(t, "uncordon", m.name(other))
	eventually(t, "both are fenced on one machine", 30*time.Second, func() error {
		if alone := server.try(t, "get", "pod", "alone-0", "-o", fenced).stdout; alone != "True Identity" {
			return fmt.Errorf("alone is %q", alone)
		}
		return nil
	})

	m.signal(victim, syscall.SIGSTOP)
	begin := time.Now()
	eventually(t, "what has no storage runs elsewhere", time.Minute, func() error {
		if m.count(other, aloneWriter) == 0 {
			return fmt.Errorf("it does not")
		}
		return nil
	})
	t.Logf("the machine was paused; what has no storage ran elsewhere after %.1f s", time.Since(begin).Seconds())
	if m.count(other, sharedWriter) != 0 || server.kubectl(t, "get", "pod", "shared-0", "-o", "jsonpath={.spec.nodeName}") != home {
		t.Fatal("what writes to shared storage was given away by time")
	}
	server.kubectl(t, "taint", "node", home, "node.kubernetes.io/out-of-service=paused:NoExecute")
	begin = time.Now()
	eventually(t, "somebody said that the machine is off", time.Minute, func() error {
		if m.count(other, sharedWriter) == 0 {
			return fmt.Errorf("what writes to shared storage does not run elsewhere")
		}
		return nil
	})
	t.Logf("with the taint, what writes to shared storage ran elsewhere after %.1f s", time.Since(begin).Seconds())

	m.goOn(t, victim, other)
}

// goOn lets the paused machine go on: in the end there is one copy of each on the other one.
func (m *machines) goOn(t *testing.T, victim, other int) {
	t.Helper()
	server, home := m.node[0], m.name(victim)
	m.signal(victim, syscall.SIGCONT)
	begin := time.Now()
	eventually(t, "the old copies end", 30*time.Second, func() error {
		if n := m.count(victim, sharedWriter) + m.count(victim, aloneWriter); n > 0 {
			return fmt.Errorf("%d run", n)
		}
		return nil
	})
	t.Logf("the machine went on; its old copies had ended after %.2f s", time.Since(begin).Seconds())
	server.kubectl(t, "taint", "node", home, "node.kubernetes.io/out-of-service-")
	eventually(t, "the machine is back", time.Minute, func() error {
		if out := server.kubectl(t, "get", "node", home, "--no-headers"); !strings.Contains(out, " Ready ") {
			return fmt.Errorf("it is %s", out)
		}
		if m.count(other, sharedWriter) != 1 || m.count(other, aloneWriter) != 1 || m.count(victim, sharedWriter)+m.count(victim, aloneWriter) != 0 {
			return fmt.Errorf("there is not one copy of each")
		}
		return nil
	})
}

// count is how many processes of machine i have a command line.
func (m *machines) count(i int, what string) int {
	n := 0
	for _, cmdline := range m.everything(i) {
		if cmdline == what {
			n++
		}
	}
	return n
}
