//go:build linux

package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const rolloutManifest = `
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
      - {name: web, image: "app:e2e", args: [serve, ":8080"], env: [{name: VERSION, value: "one"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`

// testRollout changes a deployment in all the usual ways.
func testRollout(t *testing.T, c *cluster) {
	ns := c.namespace(t, "rollout")
	c.apply(t, ns, rolloutManifest)
	run := func(want string, args ...string) {
		t.Helper()
		if out := c.kubectl(t, append(args, "-n", ns)...); !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("kubectl %s printed %q, want %s", strings.Join(args, " "), out, want)
		}
	}
	status := func() {
		t.Helper()
		run("successfully rolled out", "rollout", "status", "deployment/web", "--timeout=60s")
	}
	status()
	run("condition met", "wait", "--for=condition=Available", "deployment/web", "--timeout=30s")
	run("env updated", "set", "env", "deployment/web", "VERSION=two")
	status()
	run(`(?s)REVISION.*1 .*2 `, "rollout", "history", "deployment/web")
	run("rolled back", "rollout", "undo", "deployment/web")
	status()
	run("^one$", "get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[0].env[0].value}")
	run("scaled", "scale", "deployment/web", "--replicas=3")
	status()
	run("^3$", "get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}")
	run("restarted", "rollout", "restart", "deployment/web")
	status()
	r := c.gantry(t, strings.Replace(rolloutManifest, "value: \"one\"", "value: \"three\"", 1), "kubectl", "diff", "-n", ns, "-f", "-")
	if r.code != 1 || !strings.Contains(r.stdout, "three") {
		t.Errorf("kubectl diff: %v", r)
	}
	if r := c.gantry(t, rolloutManifest, "kubectl", "apply", "--server-side", "--force-conflicts", "-n", ns, "-f", "-"); r.code != 0 {
		t.Errorf("apply --server-side: %v", r)
	}
	testPortForward(t, c, ns, "service/web", 80)
	run("deleted", "delete", "deployment", "web", "--cascade=foreground", "--timeout=60s")
	run("^$", "get", "pods,replicasets", "-l", "app=web", "-o", "name")
	c.kubectl(t, "delete", "namespace", ns, "--timeout=60s")
}

// testPortForward asks through kubectl port-forward.
func testPortForward(t *testing.T, c *cluster, ns, target string, port int) {
	t.Helper()
	cmd := c.command(t.Context(), c.bin+"/gantry", "--data-dir", c.dir, "kubectl", "port-forward", "-n", ns, target, fmt.Sprintf("18080:%d", port))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	client := httpFrom(c.ns)
	for range 3 {
		eventually(t, "the forwarded port answers", 15*time.Second, func() error {
			body, err := fetch(client, "http://127.0.0.1:18080/")
			if err == nil && !strings.HasPrefix(body, "web-") {
				err = fmt.Errorf("it answers %q", body)
			}
			return err
		})
	}
}

// testImages lists, removes and uses images by their names.
func testImages(t *testing.T, c *cluster) {
	if out := c.mustGantry(t, "image", "ls"); !regexp.MustCompile(`(?m)^docker.io/library/busybox:e2e +[0-9a-f]{12} +\d`).MatchString(out) {
		t.Errorf("image ls prints\n%s", out)
	}
	c.loadProgram(t, "testdata/app", "app:e2e") // once more is harmless
	if r := c.gantry(t, "", "image", "rm", "no-such:1"); r.code != 1 || !strings.Contains(r.stderr, "no-such:1") {
		t.Errorf("image rm of none: %v", r)
	}
	if r := c.gantry(t, "no archive", "image", "load", "-"); r.code == 0 || r.stderr == "" {
		t.Errorf("image load of no archive: %v", r)
	}
}

// TestOtherMachine starts a copy of a node's data dir on another machine: a mount namespace with
// a machine-id of its own.
func TestOtherMachine(t *testing.T) {
	c := newCluster(t)
	c.up(t)
	c.kill(t, 15)
	script := `echo 0123456789abcdef0123456789abcdef > "$1" && mount --bind "$1" /etc/machine-id && shift && exec "$@"`
	r := c.run(t, "", "unshare", "--mount", "sh", "-c", script, "sh", t.TempDir()+"/machine-id",
		c.bin+"/gantry", "--data-dir", c.dir, "up", "--detach")
	if r.code != 1 || !strings.Contains(r.stderr, "of another machine") || !strings.Contains(r.stderr, c.dir+"/node.json") {
		t.Errorf("up on another machine: %v", r)
	}
	c.up(t)
}

// TestMoved starts a node again under another host name and another address.
func TestMoved(t *testing.T) {
	c := newCluster(t)
	c.up(t)
	c.load(t, true)
	ns := c.namespace(t, "moved")
	c.apply(t, ns, rolloutManifest)
	c.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	before := c.containers(t, ns)
	node := c.kubectl(t, "get", "nodes", "-o", "name")
	if out := c.mustGantry(t, "status"); !strings.Contains(out, machineIP) || !strings.Contains(out, "ready") {
		t.Errorf("gantry status prints\n%s", out)
	}
	if out := c.mustGantry(t, "kubeconfig"); !strings.Contains(out, "client-certificate-data") {
		t.Errorf("gantry kubeconfig prints\n%s", out)
	}
	c.kill(t, 15)
	for _, args := range [][]string{
		{"ip", "addr", "del", machineIP + "/24", "dev", "eth0"},
		{"ip", "addr", "add", "10.77.0.3/24", "dev", "eth0"},
		{"ip", "route", "replace", "default", "via", outsideIP},
	} {
		if r := c.run(t, "", args[0], args[1:]...); r.code != 0 {
			t.Fatalf("%v: %v", args, r)
		}
	}
	r := c.run(t, "", "unshare", "--uts", "sh", "-c", `hostname other && exec "$0" "$@"`, c.bin+"/gantry", "--data-dir", c.dir, "up", "--detach")
	if r.code != 0 {
		t.Fatalf("up with another name and address: %v", r)
	}
	if got := c.kubectl(t, "get", "nodes", "-o", "name"); got != node {
		t.Errorf("the nodes were %q, are %q", node, got)
	}
	eventually(t, "the node has its new address", 20*time.Second, func() error {
		if out := c.kubectl(t, "get", "nodes", "-o", `jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}`); out != "10.77.0.3" {
			return fmt.Errorf("it has %q", out)
		}
		return nil
	})
	c.sameContainers(t, ns, before)
	// The API's Service leads to the new address, and logs come from there.
	c.apply(t, ns, `
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: view}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: default}]
`)
	c.kubectl(t, "run", "-n", ns, "pods", "--image", appImage, "--restart=Never", "--", "pods")
	if out := c.logs(t, ns, "pods"); strings.Count(out, "web-") != 2 {
		t.Errorf("client-go in a pod lists\n%s", out)
	}
	c.pod(t, ns, "pods", "finished", func(pod *corev1.Pod) bool { return pod.Status.HostIP == "10.77.0.3" })
}
