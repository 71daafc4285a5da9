//go:build linux

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestApps keeps applications on a real node: a release that serves, one that replaces it under load, and those that
// fail for what a node alone can tell.
func TestApps(t *testing.T) {
	c := newCluster(t)
	c.up(t)
	c.load(t, false)
	c.loadProgram(t, "../../examples/hello", "hello:e2e")
	ns := c.namespace(t, "shop")
	eventually(t, "applications are served", 10*time.Second, func() error {
		if r := c.try(t, "get", "apps", "-n", ns); r.code != 0 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	app := func(image, command, extra string) {
		c.apply(t, ns, fmt.Sprintf(`
apiVersion: gantry.dev/v1alpha1
kind: App
metadata: {name: shop}
spec:
  image: %s
  %s
  processes: {web: {port: 8080, command: %q, health: {grace: 20s}}}
`, image, extra, command))
	}
	begin := time.Now()
	app("hello:e2e", "", "release: {command: /nothing}")
	c.released(t, ns, 1, "Failed", "CommandFailed")
	app("hello:e2e", "", "")
	c.released(t, ns, 2, "Live", "")
	t.Logf("live %s after its first, bad release", time.Since(begin).Round(time.Millisecond))
	address := strings.TrimSpace(c.kubectl(t, "get", "service", "-n", ns, "shop-web", "-o", "jsonpath={.spec.clusterIP}"))
	load := startUse(t, map[string]func() error{"the application": func() error {
		body, err := fetch(httpFrom(c.ns), "http://"+address+"/hello.json")
		if err == nil && !strings.Contains(body, `"pod"`) {
			err = fmt.Errorf("it answers %q", body)
		}
		return err
	}})
	app("hello:e2e", "", "env: {COLOR: red}")
	c.released(t, ns, 3, "Live", "")
	begin = time.Now()
	app(busyboxImage, "httpd -f -p 127.0.0.1:8080", "")
	c.released(t, ns, 4, "Failed", "WrongPort")
	t.Logf("the wrong address was found after %s", time.Since(begin).Round(time.Millisecond))
	app(busyboxImage, "echo no database; exit 3", "")
	c.released(t, ns, 5, "Failed", "Crashing")
	if log := c.kubectl(t, "get", "release", "-n", ns, "shop-v5", "-o", "jsonpath={.status.log}"); !strings.Contains(log, "no database") {
		t.Errorf("the last lines of release 5 are %q", log)
	}
	app("127.0.0.1:1/no/such:1", "", "")
	c.released(t, ns, 6, "Failed", "ImageNotFound")
	load.stop(t)
	if got := c.kubectl(t, "get", "app", "-n", ns, "shop", "-o", "jsonpath={.status.phase} {.status.release}"); got != "Running 3" {
		t.Errorf("the application is %q, want Running 3", got)
	}
}

// released waits until a release of shop is in a phase, for a reason.
func (c *cluster) released(t *testing.T, ns string, number int, phase, reason string) {
	t.Helper()
	want := strings.TrimSpace(phase + " " + reason)
	eventually(t, fmt.Sprintf("release %d is %s", number, want), 90*time.Second, func() error {
		r := c.try(t, "get", "release", "-n", ns, fmt.Sprintf("shop-v%d", number), "-o", "jsonpath={.status.phase} {.status.reason}")
		if got := strings.TrimSpace(r.stdout); got != want {
			return fmt.Errorf("it is %q: %s", got, c.try(t, "get", "release", "-n", ns, fmt.Sprintf("shop-v%d", number), "-o", "jsonpath={.status}").stdout)
		}
		return nil
	})
}
