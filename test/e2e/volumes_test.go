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

	corev1 "k8s.io/api/core/v1"
)

// keeper writes a line when it starts, and shows what was written before.
const keeper = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: keeper
    image: busybox:e2e
    command: [sh, -c, "cat /data/log; echo $HOSTNAME >> /data/log; echo mine > /own/file; trap exit TERM; while :; do sleep 0.2; done"]
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: data, mountPath: /own, subPath: own}
  volumes:
  - name: data
    persistentVolumeClaim: {claimName: data}
`

const claim = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
`

// TestVolumes keeps data over pods, restarts and kills of the node, and removes it with its claim.
func TestVolumes(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.up(t)
	c.load(t, false)
	ns := c.namespace(t, "storage")

	if out := c.kubectl(t, "get", "storageclass", "--no-headers"); !strings.HasPrefix(out, "local (default)") ||
		!strings.Contains(out, "gantry.dev/local") || !strings.Contains(out, "WaitForFirstConsumer") {
		t.Errorf("storage classes:\n%s", out)
	}
	c.apply(t, ns, claim)
	c.claimIs(t, ns, "data", "Pending", "waiting for first consumer")
	c.apply(t, ns, fmt.Sprintf(keeper, "first"))
	c.pod(t, ns, "first", "runs", running)
	folder := c.onlyFolder(t)
	c.kubectl(t, "-n", ns, "delete", "pod", "first", "--grace-period=1")

	c.kill(t, syscall.SIGKILL)
	c.up(t)
	c.apply(t, ns, fmt.Sprintf(keeper, "second"))
	c.pod(t, ns, "second", "runs", running)
	eventually(t, "the second pod reads what the first has written", 20*time.Second, func() error {
		if got := c.kubectl(t, "-n", ns, "logs", "second"); got != "first\n" {
			return fmt.Errorf("it has read %q", got)
		}
		return nil
	})
	if data, err := os.ReadFile(filepath.Join(folder, "own", "file")); err != nil || string(data) != "mine\n" {
		t.Errorf("below the subPath is %q, %v", data, err)
	}
	if out := c.kubectl(t, "get", "pv", "--no-headers"); !strings.Contains(out, "Bound") || !strings.Contains(out, ns+"/data") || !strings.Contains(out, "1Gi") {
		t.Errorf("volumes:\n%s", out)
	}

	// More space is acknowledged.
	c.kubectl(t, "-n", ns, "patch", "pvc", "data", "-p", `{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`)
	eventually(t, "the claim has 2Gi", 20*time.Second, func() error {
		if got := c.kubectl(t, "-n", ns, "get", "pvc", "data", "-o", "jsonpath={.status.capacity.storage}"); got != "2Gi" {
			return fmt.Errorf("it has %s", got)
		}
		return nil
	})

	// A claim that is deleted waits for its pod; then the data goes, whatever is killed meanwhile.
	c.kubectl(t, "-n", ns, "delete", "pvc", "data", "--wait=false")
	if got := c.kubectl(t, "-n", ns, "get", "pvc", "data", "-o", "jsonpath={.status.phase}"); got != "Bound" {
		t.Errorf("a claim in use is %s", got)
	}
	c.kubectl(t, "-n", ns, "delete", "pod", "second", "--grace-period=1")
	c.kill(t, syscall.SIGKILL)
	c.up(t)
	eventually(t, "the data is removed", 30*time.Second, func() error {
		if entries, err := os.ReadDir(filepath.Dir(folder)); err != nil || len(entries) > 0 {
			return fmt.Errorf("there are %v, %w", entries, err)
		}
		if out := c.kubectl(t, "get", "pv,pvc", "-A", "--no-headers"); strings.TrimSpace(out) != "" {
			return fmt.Errorf("there are\n%s", out)
		}
		return nil
	})
	testStatefulSet(t, c, ns)
	testEphemeralVolume(t, c, ns)
	testImageVolume(t, c, ns)
	testDeletedClassStaysDeleted(t, c)
}

// claimIs waits for a claim's phase and the text of an event about it.
func (c *cluster) claimIs(t *testing.T, ns, name, phase, event string) {
	t.Helper()
	eventually(t, "claim "+name+" is "+phase, 20*time.Second, func() error {
		out := c.kubectl(t, "-n", ns, "describe", "pvc", name)
		if !strings.Contains(out, phase) || !strings.Contains(out, event) {
			return fmt.Errorf("it is\n%s", out)
		}
		return nil
	})
}

// onlyFolder is the folder of the only local volume.
func (c *cluster) onlyFolder(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(c.dir, "volumes"))
	if err != nil || len(entries) != 1 {
		t.Fatalf("folders of volumes: %v, %v; want one", entries, err)
	}
	return filepath.Join(c.dir, "volumes", entries[0].Name())
}

// testStatefulSet gives each pod a claim of its own, which outlives the pod and goes with the set.
func testStatefulSet(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 2
  serviceName: db
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete, whenScaled: Retain}
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: db
        image: busybox:e2e
        command: [sh, -c, "echo $HOSTNAME >> /data/log; trap exit TERM; while :; do sleep 0.2; done"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOncePod], resources: {requests: {storage: 1Mi}}}
`)
	c.pod(t, ns, "db-1", "runs", running)
	before := c.pod(t, ns, "db-0", "runs", running)
	c.kubectl(t, "-n", ns, "delete", "pod", "db-0", "--grace-period=1")
	c.pod(t, ns, "db-0", "runs again", func(pod *corev1.Pod) bool { return pod.UID != before.UID && running(pod) })
	eventually(t, "the next db-0 has the data of the first", 20*time.Second, func() error {
		if got := c.kubectl(t, "-n", ns, "exec", "db-0", "--", "cat", "/data/log"); got != "db-0\ndb-0\n" {
			return fmt.Errorf("it reads %q", got)
		}
		return nil
	})
	c.kubectl(t, "-n", ns, "delete", "statefulset", "db")
	eventually(t, "the claims and their data go with the set", time.Minute, func() error {
		if entries, err := os.ReadDir(filepath.Join(c.dir, "volumes")); err != nil || len(entries) > 0 {
			return fmt.Errorf("there are %v, %w", entries, err)
		}
		return nil
	})
}

func testEphemeralVolume(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: scratch}
spec:
  restartPolicy: Never
  securityContext: {runAsUser: 1234, fsGroup: 4321}
  containers:
  - name: c
    image: busybox:e2e
    command: [sh, -c, "echo x > /scratch/f && stat -c '%u %g' /scratch/f"]
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  volumes:
  - name: scratch
    ephemeral:
      volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}
`)
	c.pod(t, ns, "scratch", "succeeds", succeeded)
	if got := c.logs(t, ns, "scratch"); got != "1234 4321\n" {
		t.Errorf("a file in the volume belongs to %q, want user 1234 and group 4321", got)
	}
	c.onlyFolder(t)
	c.kubectl(t, "-n", ns, "delete", "pod", "scratch")
	eventually(t, "the volume goes with its pod", 30*time.Second, func() error {
		if entries, err := os.ReadDir(filepath.Join(c.dir, "volumes")); err != nil || len(entries) > 0 {
			return fmt.Errorf("there are %v, %w", entries, err)
		}
		return nil
	})
}

// testImageVolume mounts an image's files into a container of another.
func testImageVolume(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: image}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: busybox:e2e
    command: [sh, -c, "test -x /tools/bin/busybox && test -x /sub/busybox && ! touch /tools/x 2>/dev/null && echo fine"]
    volumeMounts:
    - {name: tools, mountPath: /tools}
    - {name: tools, mountPath: /sub, subPath: bin}
  volumes:
  - name: tools
    image: {reference: busybox:e2e, pullPolicy: IfNotPresent}
`)
	c.pod(t, ns, "image", "succeeds", succeeded)
	if got := c.logs(t, ns, "image"); got != "fine\n" {
		t.Errorf("the container says %q", got)
	}
	c.kubectl(t, "-n", ns, "delete", "pod", "image")
}

func testDeletedClassStaysDeleted(t *testing.T, c *cluster) {
	c.kubectl(t, "delete", "storageclass", "local")
	c.kill(t, syscall.SIGTERM)
	c.up(t)
	if r := c.try(t, "get", "storageclass", "local"); r.code == 0 {
		t.Errorf("the deleted class is back: %v", r)
	}
}
