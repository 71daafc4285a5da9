//go:build linux

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestLogs asks for an application's log over a restart, a release that failed, a process that was killed, Gantry's own
// end, and a request that failed: nothing of it may be missing, and all is in order of time.
func TestLogs(t *testing.T) {
	c := newCluster(t)
	c.up(t)
	c.load(t, false)
	ns := c.namespace(t, "shop")
	eventually(t, "applications are served", 10*time.Second, func() error {
		if r := c.try(t, "get", "apps", "-n", ns); r.code != 0 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	app := func(command string) {
		c.apply(t, ns, fmt.Sprintf(`
apiVersion: gantry.dev/v1alpha1
kind: App
metadata: {name: shop}
spec:
  image: %s
  processes: {web: {port: 8080, command: %q, health: {grace: 20s}}}
`, busyboxImage, command))
	}
	app("echo first begins; trap 'echo first ends; exit 0' TERM; httpd -p 0.0.0.0:8080; while :; do sleep 0.1; done")
	c.released(t, ns, 1, "Live", "")
	app("echo no database; exit 3")
	c.released(t, ns, 2, "Failed", "Crashing")
	c.kill(t, syscall.SIGKILL)
	c.up(t)
	app("echo third begins; httpd -f -p 0.0.0.0:8080")
	c.released(t, ns, 3, "Live", "")
	id := ""
	eventually(t, "the address is served", 20*time.Second, func() error {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1/nothing", nil)
		if err != nil {
			return err
		}
		request.Host = "shop-shop.localhost"
		request.Header.Set("X-Request-Id", "chosen-by-a-client")
		response, err := httpFrom(c.ns).Do(request)
		if err != nil {
			return err
		}
		_ = response.Body.Close()
		id = response.Header.Get("X-Request-Id")
		if response.StatusCode != http.StatusNotFound || response.Header.Get("Server") == "" && id == "" {
			return fmt.Errorf("it answers %d", response.StatusCode)
		}
		if log := c.gantry(t, "", "logs", "shop", "-p", ns).stdout; !strings.Contains(log, id) {
			return fmt.Errorf("no line of request %s", id)
		}
		return nil
	})
	if id == "chosen-by-a-client" {
		t.Error("a client chose the id of its request")
	}
	last := ""
	eventually(t, "the log is whole", 30*time.Second, func() error {
		last = c.mustGantry(t, "logs", "shop", "-p", ns)
		at := -1
		for _, want := range []string{"| first begins", "v1 is Live", "| no database", "v2 is Failed", "| third begins", "v3 is Live", "GET shop-shop.localhost/nothing 404"} {
			next := strings.Index(last, want)
			if next < 0 || next < at {
				return fmt.Errorf("%q is missing, or before what was earlier", want)
			}
			at = next
		}
		if !strings.Contains(last, "| first ends") { // its pod is gone
			return fmt.Errorf("the last line of the first release is missing")
		}
		return nil
	})
	if t.Failed() {
		t.Log(last)
	}
	why := c.mustGantry(t, "why", "request/"+id, "-p", ns)
	if !strings.Contains(why, "404 Not Found") || !strings.Contains(why, "app shop process web") {
		t.Errorf("why request/%s:\n%s", id, why)
	}
	if r := c.gantry(t, "", "why", "request/nobody-knows"); r.code != 1 || !strings.Contains(r.stderr, "no gateway knows") {
		t.Errorf("why of a request that never was: %v", r)
	}
	if tail := c.mustGantry(t, "logs", "shop", "-p", ns, "-n", "2"); strings.Count(tail, "\n") != 2 {
		t.Errorf("the last two lines are\n%s", tail)
	}
}
