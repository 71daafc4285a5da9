//go:build linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestNetworkPolicy lets some pods in and no others, also while Gantry is dead, and probes always.
func TestNetworkPolicy(t *testing.T) {
	c := newCluster(t)
	c.up(t)
	c.load(t, false)
	if table := c.policyTable(t); table != "" {
		t.Errorf("without a policy there are rules:\n%s", table)
	}
	ns := c.namespace(t, "policies")
	c.apply(t, ns, policyPods)
	for _, name := range []string{"web", "friend", "stranger"} {
		c.pod(t, ns, name, "ready", running)
	}
	address := strings.TrimSpace(c.kubectl(t, "get", "service", "-n", ns, "web", "-o", "jsonpath={.spec.clusterIP}"))
	web := net.JoinHostPort(strings.TrimSpace(c.kubectl(t, "get", "pod", "-n", ns, "web", "-o", "jsonpath={.status.podIP}")), "8080")
	reach := func(from, to string, want bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("%s reaches %s: %v", from, to, want), 20*time.Second, func() error {
			r := c.try(t, "exec", "-n", ns, from, "--", "busybox", "timeout", "2", "wget", "-qO-", "http://"+to+"/")
			if (r.code == 0) != want {
				return fmt.Errorf("wget: %v", r) // it is stopped when nobody answers
			}
			return nil
		})
	}
	reach("stranger", web, true)
	reach("stranger", address, true)
	c.apply(t, ns, policyObjects)
	reach("stranger", web, false)
	reach("stranger", address, false)
	reach("friend", web, true)
	reach("friend", address, true)

	// A pod that asks at once, and may not ask anybody.
	c.kubectl(t, "run", "-n", ns, "hasty", "--image", busyboxImage, "--restart=Never", "--labels", "app=hasty", "--", "sh", "-c",
		"busybox timeout 2 wget -qO- http://"+web+"/ && echo reached; nslookup web."+ns+".svc.cluster.local && echo named")
	if out := c.logs(t, ns, "hasty"); strings.Contains(out, "reached") || !strings.Contains(out, "named") {
		t.Errorf("the pod that may reach nobody but its node says %q", out)
	}

	// The rules stay while nobody keeps them, and a start does not open them.
	c.kill(t, syscall.SIGKILL)
	if table := c.policyTable(t); !strings.Contains(table, "in/policies/web") {
		t.Errorf("after kill -9 the rules are\n%s", table)
	}
	c.up(t)
	reach("stranger", web, false)
	reach("friend", web, true)
	c.pod(t, ns, "web", "ready still", running)

	c.kubectl(t, "label", "pod", "-n", ns, "stranger", "app=friend", "--overwrite")
	reach("stranger", address, true)
	c.kubectl(t, "delete", "networkpolicy", "-n", ns, "--all")
	c.kubectl(t, "label", "pod", "-n", ns, "stranger", "app=stranger", "--overwrite")
	reach("stranger", web, true)
	eventually(t, "the rules are gone", 10*time.Second, func() error {
		if table := c.policyTable(t); table != "" {
			return fmt.Errorf("there are still\n%s", table)
		}
		return nil
	})
}

// policyTable is what the machine's kernel has for network policies, as the nft program prints it.
func (c *cluster) policyTable(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("needs the nft program (\"make deps\")")
	}
	if _, err := os.Stat(c.ns); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "nsenter", "--net="+c.ns, program, "list", "table", "ip", "gantry-policy").CombinedOutput()
	switch text := string(out); {
	case strings.Contains(text, "No such file"):
		return ""
	case err != nil:
		t.Fatalf("nft list: %v: %s", err, text)
		return ""
	default:
		return text
	}
}

const policyPods = `
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:e2e
    command: [sh, -c, "mkdir -p /tmp/www && echo hello > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www"]
    ports: [{name: web, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /, port: web}, periodSeconds: 1, failureThreshold: 2}
---
apiVersion: v1
kind: Pod
metadata: {name: friend, labels: {app: friend}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "busybox:e2e", command: [sleep, "100000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, labels: {app: stranger}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "busybox:e2e", command: [sleep, "100000"]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: web}]
`

const policyObjects = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: web}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: hasty}
spec:
  podSelector: {matchLabels: {app: hasty}}
  policyTypes: [Egress]
`
