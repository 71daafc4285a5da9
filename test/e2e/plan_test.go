//go:build linux

package e2e

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
)

const plannedManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: planned}
spec:
  replicas: 2
  selector: {matchLabels: {app: planned}}
  template:
    metadata: {labels: {app: planned}}
    spec:
      containers: [{name: main, image: "busybox:e2e", command: [sleep, "100000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: too-large}
spec:
  containers: [{name: main, image: "busybox:e2e", resources: {requests: {cpu: 10k}}}]
`

// testPlan asks what a manifest would do, sees that nothing was done, and why a pod has no node.
func testPlan(t *testing.T, c *cluster) {
	ns := c.namespace(t, "plan")
	r := c.gantry(t, plannedManifest, "plan", "-f", "-", "-p", ns, "--json")
	var plan struct {
		Objects []struct{ Verb, Kind, Namespace, Name string }
		Pods    []struct{ Verb, Namespace, Message string }
	}
	if err := json.Unmarshal([]byte(r.stdout), &plan); r.code != 0 || err != nil {
		t.Fatalf("plan: %v, %v", r, err)
	}
	got := map[string]int{} // other tests change other namespaces meanwhile
	for _, o := range plan.Objects {
		if o.Namespace == ns {
			got[o.Verb+" "+o.Kind+"/"+o.Name]++
		}
	}
	const pending = "pending 0/1 nodes are available: 1 Insufficient cpu."
	for _, pod := range plan.Pods {
		if pod.Namespace != ns {
			continue
		}
		what := strings.TrimSpace(pod.Verb + " " + pod.Message)
		if strings.HasPrefix(what, pending) {
			what = pending
		}
		got[what]++
	}
	if want := map[string]int{"created Deployment/planned": 1, "created": 2, pending: 1}; !maps.Equal(got, want) {
		t.Errorf("the plan is %v, want %v", got, want)
	}
	if made := c.kubectl(t, "get", "all", "-n", ns, "-o", "name"); made != "" {
		t.Errorf("the plan made %s", made)
	}
	c.apply(t, ns, plannedManifest)
	c.kubectl(t, "wait", "--for=condition=PodScheduled=false", "-n", ns, "pod/too-large", "--timeout=30s")
	r = c.gantry(t, "", "why", "pod/too-large", "-p", ns)
	for _, want := range []string{"has no node: 0/1 nodes are available: 1 Insufficient cpu", "NodeResourcesFit: Insufficient cpu", "- ask for at most"} {
		if r.code != 0 || !strings.Contains(r.stdout, want) {
			t.Errorf("why: %v, want %q in it", r, want)
		}
	}
}
