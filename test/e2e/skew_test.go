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

// skewEnv names the folder of an older gantry and its kubectl: "make skew".
const skewEnv = "GANTRY_SKEW_BIN"

func olderBin(t *testing.T) string {
	t.Helper()
	bin := os.Getenv(skewEnv)
	if bin == "" {
		t.Skipf("%s does not say where an older gantry is; \"make skew\" does", skewEnv)
	}
	return bin
}

// TestSkewMachines has a server and a worker of different versions, both ways.
func TestSkewMachines(t *testing.T) {
	older := olderBin(t)
	for _, test := range []struct {
		name string
		old  int // the machine with the older program
	}{{"older server", 0}, {"older worker", 1}} {
		t.Run(test.name, func(t *testing.T) {
			m := newMachines(t, 2)
			m.node[test.old].bin = older
			server := m.node[0]
			server.up(t)
			m.join(t, 0, 1)
			for _, node := range m.node {
				node.load(t, true)
			}
			ns := server.namespace(t, "skew")
			server.apply(t, ns, rolloutManifest)
			server.kubectl(t, "scale", "-n", ns, "deployment/web", "--replicas=6")
			server.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=90s")
			pods := server.kubectl(t, "get", "pods", "-n", ns, "--field-selector", "spec.nodeName=m1", "-o", "jsonpath={.items[*].metadata.name}")
			if len(strings.Fields(pods)) == 0 {
				t.Fatal("the worker has no pods")
			}
			for _, pod := range strings.Fields(pods) {
				server.kubectl(t, "logs", "-n", ns, pod)
			}
			before := server.containers(t, ns)
			m.node[1].kill(t, syscall.SIGTERM)
			m.node[1].up(t)
			server.kubectl(t, "wait", "--for=condition=Ready", "node", "--all", "--timeout=30s")
			server.sameContainers(t, ns, before)
			server.kubectl(t, "rollout", "restart", "-n", ns, "deployment/web")
			server.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=90s")
			if out := server.kubectl(t, "get", "nodes", "--no-headers"); strings.Count(out, " Ready ") != 2 {
				t.Errorf("nodes: %s", out)
			}
		})
	}
}

// TestSkewData opens a data dir of the older version with the newer one, and with the older one again.
func TestSkewData(t *testing.T) {
	older := olderBin(t)
	c := newCluster(t)
	newer := c.bin
	c.bin = older
	c.up(t)
	c.load(t, true)
	ns := c.namespace(t, "skew")
	c.apply(t, ns, rolloutManifest)
	c.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	before := c.containers(t, ns)
	for i, bin := range []string{newer, older, newer} {
		c.kill(t, syscall.SIGTERM)
		c.bin = bin
		c.up(t)
		c.kubectl(t, "wait", "--for=condition=Ready", "node", "--all", "--timeout=30s")
		c.sameContainers(t, ns, before)
		for j := range i {
			c.kubectl(t, "get", "configmap", "-n", ns, fmt.Sprint("by-", j))
		}
		c.kubectl(t, "create", "configmap", "-n", ns, fmt.Sprint("by-", i))
		eventually(t, "a pod's log is read", 20*time.Second, func() error {
			if r := c.try(t, "logs", "-n", ns, "deployment/web"); r.code != 0 {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
	}
}
