//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestBackup loses a machine, and goes on with its cluster on another one.
func TestBackup(t *testing.T) {
	images := addonImages(t)
	old := newCluster(t)
	old.up(t)
	old.load(t, false)
	old.loadAddons(t, images)
	ns := old.namespace(t, "shop")
	eventually(t, "applications are served", 10*time.Second, func() error {
		if r := old.try(t, "get", "apps", "-n", ns); r.code != 0 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	old.apply(t, ns, addonsApp)
	a := &addonsTest{c: old, t: t, ns: ns}
	old.released(t, ns, 1, "Live", "")
	a.sql("CREATE TABLE items (name text); INSERT INTO items VALUES ('first')")
	a.redis("SET", "greeting", "hello")
	old.apply(t, ns, "apiVersion: v1\nkind: Secret\nmetadata: {name: kept}\nstringData: {word: swordfish}\n")
	old.apply(t, ns, backupVolume)
	old.kubectl(t, "wait", "-n", ns, "--for=condition=Ready", "pod/writer", "--timeout=60s")
	image := old.pushBackupImage(t, ns)

	folder := t.TempDir()
	key, file := filepath.Join(folder, "key"), filepath.Join(folder, "one.backup")
	made := old.mustGantry(t, "backup", "create", "--volumes", "--recovery-key-file", key, file)
	t.Logf("backup create: %s", made)
	for _, want := range []string{"dump of db (postgres)", "dump of cache (redis)", "the volume of " + ns + "/data", "not in it"} {
		if !strings.Contains(made, want) {
			t.Errorf("backup create does not say %q", want)
		}
	}
	if r := old.gantry(t, "", "backup", "create", file); r.code != 2 || !strings.Contains(r.stderr, "there already") {
		t.Errorf("over another backup: %v", r)
	}
	schedule(t, old, filepath.Join(folder, "scheduled"))
	verified := old.mustGantry(t, "backup", "verify", "--recovery-key-file", key, file)
	if !strings.Contains(verified, "the backup is whole") || !strings.Contains(verified, "secrets") {
		t.Errorf("backup verify: %s", verified)
	}
	if r := old.gantry(t, "", "restore", "--recovery-key-file", key, file); r.code == 0 || !strings.Contains(r.stderr, "data dir") && !strings.Contains(r.stderr, "runs") {
		t.Errorf("a restore over the running cluster: %v", r)
	}
	old.mustGantry(t, "down", "--purge", "--yes")

	next := newCluster(t)
	brokenBackups(t, next, file, key)
	killedRestore(t, next, file, key)
	said := next.mustGantry(t, "restore", "--node-name", "next", "--recovery-key-file", key, file)
	t.Logf("restore: %s", said)
	next.up(t)
	next.load(t, false)
	next.mustGantry(t, "image", "load", filepath.Join(images, "postgres.tar"))
	next.mustGantry(t, "image", "load", filepath.Join(images, "redis.tar"))
	restored(t, next, ns, image)
}

// restored holds the new machine's cluster against what the old one had.
func restored(t *testing.T, next *cluster, ns, image string) {
	t.Helper()
	if out := next.kubectl(t, "get", "nodes", "-o", "name"); strings.TrimSpace(out) != "node/next" {
		t.Errorf("the nodes are %q", out)
	}
	if out := next.kubectl(t, "get", "secret", "-n", ns, "kept", "-o", "jsonpath={.data.word}"); out != "c3dvcmRmaXNo" {
		t.Errorf("the Secret holds %q", out)
	}
	b := &addonsTest{c: next, t: t, ns: ns}
	b.holds("first")
	b.says("hello")
	eventually(t, "the application is live", 60*time.Second, func() error {
		if out := next.try(t, "get", "pods", "-n", ns, "-l", "gantry.dev/process=worker", "-o", "jsonpath={.items[*].status.phase}").stdout; out != "Running" {
			return fmt.Errorf("its pods are %q", out)
		}
		return nil
	})
	eventually(t, "the pod without a controller reads its volume", 60*time.Second, func() error {
		if out := next.try(t, "exec", "-n", ns, "writer", "--", "cat", "/data/word").stdout; strings.TrimSpace(out) != "volume" {
			return fmt.Errorf("it reads %q", out)
		}
		return nil
	})
	if out := next.mustGantry(t, "image", "ls"); !strings.Contains(out, image) {
		t.Errorf("the registry does not have %s: %s", image, out)
	}
	eventually(t, "the dumps are removed", 30*time.Second, func() error {
		_, err := os.Stat(filepath.Join(next.dir, "restored"))
		if err == nil {
			return fmt.Errorf("they are still there")
		}
		return nil
	})
}

const backupVolume = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: writer
    image: busybox:e2e
    command: [sh, -c, "[ -e /data/word ] || echo volume > /data/word; while :; do sleep 0.2; done"]
    readinessProbe: {exec: {command: [test, -e, /data/word]}, periodSeconds: 1}
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
`

// pushBackupImage puts an image into the registry that a Deployment names.
func (c *cluster) pushBackupImage(t *testing.T, ns string) string {
	t.Helper()
	out := c.mustGantry(t, "image", "push", busyboxArchive(t), ns+"/hello:v1")
	t.Logf("image push: %s", out)
	c.apply(t, ns, `
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 0
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec: {containers: [{name: hello, image: "registry.gantry.internal/`+ns+`/hello:v1"}]}
`)
	return ns + "/hello"
}

// schedule waits for a scheduled backup.
func schedule(t *testing.T, c *cluster, dir string) {
	t.Helper()
	c.mustGantry(t, "backup", "schedule", "--keep", "1", "* * * * *", dir)
	eventually(t, "a scheduled backup is made", 100*time.Second, func() error {
		r := c.gantry(t, "", "backup", "ls", "--json")
		var items []struct{ Name string }
		if err := json.Unmarshal([]byte(r.stdout), &items); err != nil || len(items) != 1 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	c.mustGantry(t, "backup", "schedule", "off")
}

// brokenBackups must change nothing.
func brokenBackups(t *testing.T, c *cluster, file, key string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(data)
	flipped[len(data)/3] ^= 4
	for name, broken := range map[string][]byte{"truncated": data[:len(data)-1], "half": data[:len(data)/2], "changed": flipped, "nothing": nil} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, broken, 0o600); err != nil {
			t.Fatal(err)
		}
		if r := c.gantry(t, "", "restore", "--recovery-key-file", key, path); r.code == 0 || !strings.Contains(r.stderr, "broken or not whole") {
			t.Errorf("%s: %v", name, r)
		}
	}
	other := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(other, []byte("AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := c.gantry(t, "", "restore", "--recovery-key-file", other, file); r.code == 0 || !strings.Contains(r.stderr, "another recovery key") {
		t.Errorf("with another key: %v", r)
	}
	entries, err := os.ReadDir(c.dir)
	for _, entry := range entries {
		if entry.Name() != "run" {
			t.Errorf("after refusals the data dir has %s, %v", entry.Name(), err)
		}
	}
}

// killedRestore kills a restore at several moments; what is left must neither start nor stand in the way.
func killedRestore(t *testing.T, c *cluster, file, key string) {
	t.Helper()
	for _, after := range []time.Duration{20 * time.Millisecond, 150 * time.Millisecond, 600 * time.Millisecond} {
		ctx, cancel := context.WithCancel(t.Context())
		cmd := c.command(ctx, filepath.Join(c.bin, "gantry"), "--data-dir", c.dir, "restore", "--node-name", "next", "--recovery-key-file", key, file)
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGKILL) }
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(after, cancel)
		_ = cmd.Wait()
		timer.Stop()
		cancel()
		if _, err := os.Stat(filepath.Join(c.dir, ".restoring")); err != nil {
			t.Logf("killed after %v: it had not begun, or was done", after)
			continue
		}
		if r := c.gantry(t, "", "up", "--detach"); r.code == 0 || !strings.Contains(r.stderr, "did not come to its end") {
			t.Errorf("killed after %v: up says %v", after, r)
		}
	}
	if _, err := os.Stat(filepath.Join(c.dir, "etcd")); err == nil {
		t.Skip("this machine restores faster than it is killed")
	}
}
