//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestCluster is everything that an unharmed cluster can do. Its parts share one cluster, each has
// a namespace of its own.
func TestCluster(t *testing.T) {
	c := newCluster(t)
	steps := c.up(t)
	for _, step := range []string{`^certificates ready \d+`, `^api ready \d+`, `^node ready \d+`, `^network ready \d+`, `^node \S+ ready after \d+`} {
		if !regexp.MustCompile(`(?m)` + step).MatchString(steps) {
			t.Errorf("up does not print the step %s:\n%s", step, steps)
		}
	}
	if out := c.kubectl(t, "get", "nodes"); !strings.Contains(out, " Ready ") {
		t.Errorf("the node is not Ready when up returns:\n%s", out)
	}
	c.load(t, true)
	for name, test := range map[string]func(*testing.T, *cluster){
		"kubectl": testKubectl,
		"hello":   testHello,
		"names":   testNames, "restarts": testRestarts, "missing images": testMissingImages,
		"configured": testConfigured, "lifecycle": testLifecycle, "rollout": testRollout, "images": testImages,
		"autoscale": testAutoscale, "load balancer": testLoadBalancer, "plan": testPlan,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, c)
		})
	}
}

// testHello deploys the example as scripts/up.sh does.
func testHello(t *testing.T, c *cluster) {
	ns := c.namespace(t, "hello")
	c.loadProgram(t, "../../examples/hello", "hello:e2e")
	manifest, err := os.ReadFile("../../examples/hello/hello.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c.apply(t, ns, strings.Replace(string(manifest), "image: hello:latest", "image: hello:e2e", 1))
	c.kubectl(t, "rollout", "status", "-n", ns, "deployment/hello", "--timeout=60s")
	address := strings.TrimSpace(c.kubectl(t, "get", "service", "-n", ns, "hello", "-o", "jsonpath={.spec.clusterIP}"))
	for _, way := range []struct{ from, url string }{
		{c.ns, "http://" + address + "/hello.json"},
		{c.ns, "http://" + machineIP + ":30080/hello.json"},
		{c.outside, "http://" + machineIP + ":30080/hello.json"},
	} {
		eventually(t, way.url+" answers in "+way.from, 10*time.Second, func() error {
			body, err := fetch(httpFrom(way.from), way.url)
			if err == nil && !strings.Contains(body, `"pod"`) {
				err = fmt.Errorf("it answers %q", body)
			}
			return err
		})
	}
	// From a pod, by name and by address.
	c.kubectl(t, "run", "-n", ns, "ask", "--image", busyboxImage, "--restart=Never", "--", "sh", "-c",
		"wget -qO- http://"+address+"/hello.json && wget -qO- http://hello/hello.json && wget -qO- http://"+machineIP+":30080/hello.json")
	if out := c.logs(t, ns, "ask"); strings.Count(out, `"pod"`) != 3 {
		t.Errorf("the pod got %q, want three answers", out)
	}
}

// testKubectl uses what people use every day.
func testKubectl(t *testing.T, c *cluster) {
	ns := c.namespace(t, "kubectl")
	c.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: shell, labels: {app: shell}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:e2e
    command: [sh, -c, "i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.2; done"]
`)
	c.pod(t, ns, "shell", "ready", running)
	n := []string{"-n", ns}
	for _, tc := range []struct {
		want string // a pattern of its output
		args []string
	}{
		{`Server Version: v1\.36\.3`, []string{"version"}},
		{`(?m)^NAME +STATUS +ROLES +AGE +VERSION +INTERNAL-IP`, []string{"get", "nodes", "-o", "wide"}},
		{`kubectl +shell +1/1 +Running +0 .* 10\.244\.`, []string{"get", "pods", "-A", "-o", "wide"}},
		{`(?m)^kind: Pod$`, []string{"get", "pod", "shell", "-o", "yaml"}},
		{`(?s)Name: +shell.*Events:.*Scheduled.*Started`, []string{"describe", "pod", "shell"}},
		{`(?s)Name:.*Capacity:.*Non-terminated Pods:.*kubectl +shell`, []string{"describe", "node"}},
		{`^tick 0\n`, []string{"logs", "shell", "--limit-bytes=100"}},
		{`^\S+T\S+Z tick \d+\n$`, []string{"logs", "shell", "--tail=1", "--timestamps"}},
		{`^uid=0`, []string{"exec", "shell", "--", "id"}},
		{`(?s)KIND: +Pod.*FIELD: restartPolicy`, []string{"explain", "pod.spec.restartPolicy"}},
		{`(?m)^deployments +deploy +apps/v1 +true +Deployment`, []string{"api-resources"}},
		{`(?m)^apps/v1$`, []string{"api-versions"}},
		{`^yes`, []string{"auth", "can-i", "create", "pods"}},
		{`kubernetes-admin`, []string{"auth", "whoami"}},
		{`is running at`, []string{"cluster-info"}},
		{`shell`, []string{"get", "pods", "-l", "app=shell", "--field-selector", "status.phase=Running", "-o", "name"}},
		{`Pod/shell +Started|Started +Pod/shell`, []string{"events"}},
		{`labeled`, []string{"label", "pod", "shell", "tier=front"}},
		{`annotated`, []string{"annotate", "pod", "shell", "note=hi"}},
		{`patched`, []string{"patch", "pod", "shell", "--type=merge", "-p", `{"metadata":{"labels":{"more":"yes"}}}`}},
	} {
		if out := c.kubectl(t, append(n, tc.args...)...); !regexp.MustCompile(tc.want).MatchString(out) {
			t.Errorf("kubectl %s printed %q, want %s", strings.Join(tc.args, " "), out, tc.want)
		}
	}
	if r := c.try(t, "exec", "-n", ns, "shell", "--", "sh", "-c", "echo out; echo err >&2; exit 7"); r.code != 7 || r.stdout != "out\n" || !strings.HasPrefix(r.stderr, "err\n") {
		t.Errorf("exec of a program that exits 7: %v", r)
	}
	if r := c.gantry(t, "typed", "kubectl", "exec", "-i", "-n", ns, "shell", "--", "cat"); r.stdout != "typed" {
		t.Errorf("exec -i cat: %v", r)
	}
	t.Run("logs -f", func(t *testing.T) { testLogsFollow(t, c, ns) })
	t.Run("exec -it", func(t *testing.T) { testTerminal(t, c, ns) })
	t.Run("cp", func(t *testing.T) { testCopy(t, c, ns) })
}

// testLogsFollow reads on until a line that is written later comes.
func testLogsFollow(t *testing.T, c *cluster, ns string) {
	cmd := c.command(t.Context(), c.bin+"/gantry", "--data-dir", c.dir, "kubectl", "logs", "-f", "--tail=1", "-n", ns, "shell")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	var last int
	for i := range 6 {
		var number int
		if _, err := fmt.Fscanf(out, "tick %d\n", &number); err != nil {
			t.Fatalf("after %d lines: %v", i, err)
		}
		if i > 0 && number != last+1 {
			t.Errorf("line %d follows line %d", number, last)
		}
		last = number
	}
}

// testTerminal runs kubectl exec -it under a terminal.
func testTerminal(t *testing.T, c *cluster, ns string) {
	if _, err := exec.LookPath("script"); err != nil {
		t.Skip("the program script is missing")
	}
	r := c.run(t, "", "script", "-qec", fmt.Sprintf("%s/gantry --data-dir %s kubectl exec -it -n %s shell -- tty", c.bin, c.dir, ns), "/dev/null")
	if r.code != 0 || !strings.Contains(r.stdout, "/dev/pts/") {
		t.Errorf("tty in a terminal: %v", r)
	}
}

func testCopy(t *testing.T, c *cluster, ns string) {
	from, to := t.TempDir()+"/from", t.TempDir()+"/to"
	want := strings.Repeat("0123456789abcdef", 64<<10)
	if err := os.WriteFile(from, []byte(want), 0o600); err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "cp", from, ns+"/shell:/tmp/file")
	c.kubectl(t, "cp", ns+"/shell:/tmp/file", to)
	if got, err := os.ReadFile(to); err != nil || string(got) != want {
		t.Errorf("a file of %d bytes came back with %d (%v)", len(want), len(got), err)
	}
}

// testNames resolves names from a pod and lists pods with client-go.
func testNames(t *testing.T, c *cluster) {
	ns := c.namespace(t, "names")
	c.apply(t, ns, `
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
      - {name: web, image: "app:e2e", args: [serve, ":8080"], ports: [{containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: view}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: default}]
`)
	c.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	ips := strings.Fields(c.kubectl(t, "get", "pods", "-n", ns, "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"))
	service := strings.TrimSpace(c.kubectl(t, "get", "service", "-n", ns, "web", "-o", "jsonpath={.spec.clusterIP}"))
	c.kubectl(t, "run", "-n", ns, "lookup", "--image", appImage, "--restart=Never", "--",
		"lookup", "web", "web.names", "web.names.svc.cluster.local", "kubernetes.default", "headless")
	out := c.logs(t, ns, "lookup")
	for _, want := range []string{
		"web " + service, "web.names " + service, "web.names.svc.cluster.local " + service, "kubernetes.default 10.96.0.1",
	} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("the pod's lookups are\n%swithout %q", out, want)
		}
	}
	for _, ip := range ips {
		if !regexp.MustCompile(`(?m)^headless .*` + regexp.QuoteMeta(ip)).MatchString(out) {
			t.Errorf("the pod's lookups are\n%swithout %s in headless", out, ip)
		}
	}
	c.kubectl(t, "run", "-n", ns, "pods", "--image", appImage, "--restart=Never", "--", "pods")
	if out := c.logs(t, ns, "pods"); !strings.Contains(out, "lookup ") || strings.Count(out, "web-") != 2 {
		t.Errorf("client-go in a pod lists\n%s", out)
	}
}
