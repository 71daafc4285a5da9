//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDown stops a node with an application, starts it again, and removes it.
func TestDown(t *testing.T) {
	c := newCluster(t)
	c.up(t)
	c.load(t, false)
	host := t.TempDir()
	ns := c.namespace(t, "down")
	c.apply(t, ns, fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: busybox:e2e
        command: [sh, -c, "echo $HOSTNAME > /host/$HOSTNAME; sleep 100077"]
        ports: [{containerPort: 80}]
        volumeMounts: [{name: host, mountPath: /host}, {name: empty, mountPath: /empty}, {name: memory, mountPath: /memory}]
      volumes:
      - {name: host, hostPath: {path: %s, type: Directory}}
      - {name: empty, emptyDir: {}}
      - {name: memory, emptyDir: {medium: Memory}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80}]}
`, host))
	c.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	files := func() []string {
		found, _ := filepath.Glob(host + "/web-*")
		return found
	}
	eventually(t, "both pods write to the host", 10*time.Second, func() error {
		if found := files(); len(found) != 2 {
			return fmt.Errorf("there is %v", found)
		}
		return nil
	})

	before := strings.TrimSpace(c.kubectl(t, "get", "deployment", "-n", ns, "web", "-o", "jsonpath={.metadata.uid}"))
	c.mustGantry(t, "down")
	c.nothingRuns(t)
	if r := c.gantry(t, "", "status"); r.code != 8 {
		t.Errorf("status of a node that is down: %v", r)
	}
	c.mustGantry(t, "down") // twice is as once

	c.up(t)
	if got := strings.TrimSpace(c.kubectl(t, "get", "deployment", "-n", ns, "web", "-o", "jsonpath={.metadata.uid}")); got != before {
		t.Errorf("the deployment's uid is %q after down and up, was %q", got, before)
	}
	eventually(t, "the pods run again", 45*time.Second, func() error {
		if r := c.try(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=1s"); r.code != 0 {
			return fmt.Errorf("%v", r)
		}
		pids := processes(func(_ int, cmdline string) bool { return cmdline == "sleep 100077" })
		if len(pids) != 2 {
			return fmt.Errorf("%d containers run", len(pids))
		}
		return nil
	})
	if mounts := strings.Join(mountsUnder(t, c.dir), " "); strings.Count(mounts, "empty-dir/memory") != 2 {
		t.Errorf("the volumes in memory are not mounted again: %s", mounts)
	}
	testPurge(t, c, host, files)
}

// testPurge removes everything but what others have put into the data dir.
func testPurge(t *testing.T, c *cluster, host string, files func() []string) {
	foreign, at := t.TempDir(), filepath.Join(c.dir, "foreign")
	precious := filepath.Join(foreign, "precious")
	if err := os.WriteFile(precious, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(foreign, at, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
	if r := c.gantry(t, "", "down", "--purge"); r.code != 2 || !strings.Contains(r.stderr, "--yes") {
		t.Errorf("down --purge without a terminal: %v", r)
	}
	busy, err := os.Open(filepath.Join(at, "precious"))
	if err != nil {
		t.Fatal(err)
	}
	r := c.gantry(t, "", "down", "--purge", "--yes")
	_ = busy.Close()
	if r.code != 1 || !strings.Contains(r.stderr, at+" is still mounted") || !strings.Contains(r.stderr, "nothing was removed") {
		t.Errorf("down --purge with a mount in use: %v", r)
	}
	if _, err := os.Stat(filepath.Join(c.dir, "node.json")); err != nil {
		t.Errorf("a refused purge has removed files: %v", err)
	}
	c.nothingRuns(t)
	c.mustGantry(t, "down", "--purge", "--yes")
	if _, err := os.Stat(c.dir); !os.IsNotExist(err) {
		t.Errorf("the data dir is still there (%v)", err)
	}
	if text, err := os.ReadFile(precious); err != nil || string(text) != "mine" {
		t.Errorf("the file behind a foreign mount: %q, %v", text, err)
	}
	if found := files(); len(found) < 2 {
		t.Errorf("files on a hostPath: %v are left in %s", found, host)
	}
	if mounts := mountsUnder(t, c.dir); len(mounts) > 0 {
		t.Errorf("mounts are left: %v", mounts)
	}
}

// nothingRuns fails the test when the node has left something on its machine but its data dir.
func (c *cluster) nothingRuns(t *testing.T) {
	t.Helper()
	if left := c.processes(); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	for _, mount := range mountsUnder(t, c.dir) {
		if mount != c.dir && !strings.HasPrefix(mount, c.dir+"/foreign") {
			t.Errorf("a mount is left: %s", mount)
		}
	}
	r := c.run(t, "", "ip", "-json", "link")
	var links []struct {
		Name string `json:"ifname"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &links); err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if link.Name != "lo" && link.Name != "eth0" {
			t.Errorf("the link %s is left", link.Name)
		}
	}
	if _, err := exec.LookPath("nft"); err == nil {
		if r := c.run(t, "", "nft", "list", "ruleset"); strings.TrimSpace(r.stdout) != "" {
			t.Errorf("rules are left:\n%s", r.stdout)
		}
	}
	if r := c.run(t, "", "ip", "route"); strings.Contains(r.stdout, "10.244.") || strings.Contains(r.stdout, "10.96.") {
		t.Errorf("routes are left:\n%s", r.stdout)
	}
}

// TestRefusals starts nodes that cannot start. Each says why and leaves nothing behind.
func TestRefusals(t *testing.T) {
	c := newCluster(t)
	other := filepath.Join(c.dir, "fresh") // of a node that never is
	gantry := filepath.Join(c.bin, "gantry")
	// nobody may not look into the folder that the test has made.
	asNobody := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", gantry}
	tmpfs := func(name, options string, flags uintptr) string {
		dir := filepath.Join(c.dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("tmpfs", dir, "tmpfs", flags, options); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
		return dir
	}
	full := tmpfs("full", "size=1m", 0)
	readOnly := tmpfs("ro", "size=1m", syscall.MS_RDONLY)
	broken := filepath.Join(t.TempDir(), "gantry.yaml")
	if err := os.WriteFile(broken, []byte("listen: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var taken net.Listener
	if err := in(c.ns, func() (err error) { taken, err = net.Listen("tcp", "127.0.0.1:7443"); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for _, tc := range []struct {
		name, want string
		code       int
		args       []string
	}{
		{"not root", "gantry up needs root", 1, append(asNobody, "up", "--data-dir", "/tmp/ge-nobody")},
		{"bad flag", "no flag --lisen: did you mean \"--listen\"", 2, []string{gantry, "up", "--data-dir", other, "--lisen", "x"}},
		{"bad value", "--pod-cidr", 2, []string{gantry, "up", "--data-dir", other, "--pod-cidr", "10.0.0.0/99"}},
		{"bad file", "gantry.yaml", 2, []string{gantry, "up", "--data-dir", other, "--config", broken}},
		{"bad environment", "GANTRY_LISTEN", 2, []string{"env", "GANTRY_LISTEN=nowhere", gantry, "up", "--data-dir", other}},
		{"bad command", `"upp" is not a command`, 2, []string{gantry, "upp"}},
		{"port taken", fmt.Sprintf("port 7443 at 127.0.0.1 is in use by .*%d", os.Getpid()), 1, []string{gantry, "up", "--detach", "--data-dir", other, "--listen", "127.0.0.1:7443"}},
		{"no such address", "no network interface of this machine has the address 10.9.9.9", 1, []string{gantry, "up", "--detach", "--data-dir", other, "--listen", "10.9.9.9:7443"}},
		{"read-only data dir", "read-only", 1, []string{gantry, "up", "--detach", "--data-dir", readOnly + "/data"}},
		{"full data dir", "free some space", 1, []string{gantry, "up", "--detach", "--data-dir", full + "/data"}},
		{"data dir is a file", "not a directory", 1, []string{gantry, "up", "--detach", "--data-dir", broken}},
		{"missing archive", "open the archive", 2, []string{gantry, "image", "load", "/nowhere.tar"}},
		{"image build fails", "broken", 3, []string{gantry, "image", "build", "testdata/broken", "--output", filepath.Join(t.TempDir(), "out")}},
		{"no node", "gantry up", 8, []string{gantry, "status", "--data-dir", other}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := c.run(t, "", tc.args[0], tc.args[1:]...)
			if r.code != tc.code || !matches(tc.want, r.stderr) {
				t.Errorf("want exit %d and %q, got %v", tc.code, tc.want, r)
			}
			if strings.Contains(r.stderr, "goroutine ") || strings.Count(r.stderr, "\n") > 12 {
				t.Errorf("the error is no clear line or two: %v", r)
			}
			for _, dir := range []string{other, full + "/data", "/tmp/ge-nobody"} {
				found, _ := filepath.Glob(dir + "/*")
				for _, path := range found {
					if base := filepath.Base(path); base != "run" && base != "log" && base != "node.json" {
						t.Errorf("%s is left", path)
					}
				}
			}
			c.nothingRunsBut(t)
		})
	}
	testSecondUp(t, c)
}

// nothingRunsBut is nothingRuns without the mounts that the test has made.
func (c *cluster) nothingRunsBut(t *testing.T) {
	t.Helper()
	if left := c.processes(); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if r := c.run(t, "", "ip", "-o", "link"); strings.Count(r.stdout, "\n") != 2 {
		t.Errorf("links are left:\n%s", r.stdout)
	}
}

// testSecondUp starts a node on the data dir of one that runs, and gives it a broken manifest.
func testSecondUp(t *testing.T, c *cluster) {
	c.dir = filepath.Join(c.dir, "n") // the folder itself is full of mounts
	t.Cleanup(func() {
		c.gantry(t, "", "down", "--purge", "--yes")
		c.dir = filepath.Dir(c.dir)
	})
	c.up(t)
	pid := fmt.Sprint(c.pid(t))
	if r := c.gantry(t, "", "up"); r.code != 1 || !strings.Contains(r.stderr, pid) {
		t.Errorf("a second up: want exit 1 and %s, got %v", pid, r)
	}
	if r := c.gantry(t, "", "up", "--detach"); r.code != 0 || !strings.Contains(r.stderr, "gantry runs already, process id "+pid) {
		t.Errorf("a second up --detach: %v", r)
	}
	if got := fmt.Sprint(c.pid(t)); got != pid {
		t.Errorf("the process id was %s, is %s", pid, got)
	}
	for manifest, want := range map[string]string{
		"kind: [": "error converting YAML",
		"kind: Pod\napiVersion: v1\nmetadata: {name: x}\nspec: {containers: []}":                                                         "spec.containers: Required value",
		"kind: Pod\napiVersion: v1\nmetadata: {name: x}\nspec: {container: []}":                                                          `unknown field "spec.container"`,
		"kind: Pod\napiVersion: v1\nmetadata: {name: X}\nspec: {containers: [{name: a, image: b}]}":                                      "metadata.name: Invalid value",
		"kind: Service\napiVersion: v1\nmetadata: {name: x}\nspec: {type: NodePort, ports: [{port: 80, nodePort: 1}]}":                   "provided port is not in the valid range",
		"kind: Pod\napiVersion: v1\nmetadata: {name: x, namespace: nowhere}\nspec: {containers: [{name: a, image: b}]}":                  `namespaces "nowhere" not found`,
		"kind: Pod\napiVersion: v1\nmetadata: {name: x}\nspec: {containers: [{name: a, image: b, resources: {limits: {memory: lots}}}]}": "quantities must match",
	} {
		if r := c.gantry(t, manifest, "kubectl", "apply", "-f", "-"); r.code != 1 || !strings.Contains(r.stderr, want) {
			t.Errorf("applying %q: want %q, got %v", manifest, want, r)
		}
	}
	if out := c.kubectl(t, "get", "pods"); strings.TrimSpace(out) != "" {
		t.Errorf("a broken manifest has made pods:\n%s", out)
	}
}
