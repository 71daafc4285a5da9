//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// upgradeEnv says that there is time for whole upgrades.
const upgradeEnv = "GANTRY_TEST_UPGRADE"

// brokenProgram says a version as gantry does, and then does something else.
const brokenProgram = "#!/bin/sh\ncase \"$1\" in version) echo '{\"version\": \"dev\"}';; *) %s;; esac\n"

// newerProgram is the program under test as another file: what is appended to it changes nothing but its hash.
func newerProgram(t *testing.T, bin string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(bin, "gantry"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "gantry")
	if err := os.WriteFile(path, append(text, "newer"...), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func writeProgram(t *testing.T, name, do string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, fmt.Appendf(nil, brokenProgram, do), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// runs is the file of the main process's program.
func (c *cluster) runs(t *testing.T) string {
	t.Helper()
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", c.pid(t)))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRollingUpgrade changes the program of a server and a worker under load, to one that works and to some that do not.
func TestRollingUpgrade(t *testing.T) {
	if os.Getenv(upgradeEnv) == "" {
		t.Skipf("it takes more than a minute: %s is not set; \"make skew\" sets it", upgradeEnv)
	}
	m := newMachines(t, 2)
	server := m.node[0]
	server.up(t)
	m.join(t, 0, 1)
	ns := server.namespace(t, "upgrade")
	for _, node := range m.node {
		node.load(t, true)
	}
	eventually(t, "the Gateway is programmed", 60*time.Second, func() error {
		if r := server.try(t, "wait", "-n", "gantry-system", "gateway/gantry", "--for=condition=Programmed", "--timeout=1s"); r.code != 0 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	server.apply(t, ns, gatewayManifest)
	server.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	client := server.throughGateway(t, m.world)
	eventually(t, "the gateway answers", 30*time.Second, func() error {
		body, err := fetch(client, "http://web.localhost/")
		if err == nil && !strings.HasPrefix(body, "web-") {
			err = fmt.Errorf("it answers %q", body)
		}
		return err
	})
	before := server.containers(t, ns)
	load := startLoad(client, "http://web.localhost/", 4)
	load.until(t, 100)

	testBrokenPrograms(t, m)
	load.until(t, 100)

	newer := newerProgram(t, server.bin)
	begun, pid := time.Now(), server.pid(t)
	r := server.gantry(t, "", "upgrade", newer, "--yes")
	if r.code != 0 || !matches(`(?s)m0 upgraded from .*m1 upgraded from `, r.stdout) {
		t.Fatalf("upgrade: %v", r)
	}
	t.Logf("two machines upgraded in %v", time.Since(begun).Round(time.Millisecond))
	for _, node := range m.node {
		if path := node.runs(t); !strings.HasPrefix(path, node.dir+"/bin/gantry-") {
			t.Errorf("after the upgrade %s runs", path)
		}
	}
	if now := server.pid(t); now != pid {
		t.Errorf("the server's process was %d and is %d", pid, now)
	}
	load.until(t, 100)
	if r := server.gantry(t, "", "upgrade", newer, "--json"); r.code != 0 || strings.Count(r.stdout, `"result": "same"`) != 2 {
		t.Errorf("the same upgrade again: %v", r)
	}
	path := server.runs(t)
	server.kill(t, syscall.SIGKILL) // the next start is of the old file and runs the new program
	server.up(t)
	if now := server.runs(t); now != path {
		t.Errorf("after a start %s runs, want %s", now, path)
	}
	load.until(t, 100)
	load.stop(t)
	server.sameContainers(t, ns, before)
	if lost := server.kubectl(t, "get", "events", "--field-selector", "reason=NodeNotReady", "-o", "jsonpath={.items[*].involvedObject.name}"); strings.Contains(lost, "m1") {
		t.Errorf("nodes were taken for dead: %s", lost)
	}
}

// testBrokenPrograms tries to change to what does not work: the machine goes back by itself.
func testBrokenPrograms(t *testing.T, m *machines) {
	t.Helper()
	server := m.node[0]
	for _, test := range []struct{ name, do, want string }{
		{"ends", "exit 3", "it ended before it was ready"},
		{"hangs", "exec sleep 100088", "it was not ready in time"},
	} {
		r := server.gantry(t, "", "upgrade", writeProgram(t, test.name, test.do), "--yes", "--timeout", "8s")
		if r.code != 5 || !strings.Contains(r.stderr, "m0: the new program did not work there: "+test.want) {
			t.Errorf("a program that %s: %v", test.name, r)
		}
		server.kubectl(t, "wait", "--for=condition=Ready", "node", "--all", "--timeout=30s")
	}
	nothing := filepath.Join(t.TempDir(), "nothing")
	if err := os.WriteFile(nothing, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := server.gantry(t, "", "upgrade", nothing, "--yes"); r.code == 0 || !strings.Contains(r.stderr, "this machine cannot run the program") {
		t.Errorf("no program: %v", r)
	}
	far := filepath.Join(t.TempDir(), "far")
	if err := os.WriteFile(far, []byte("#!/bin/sh\necho '{\"version\": \"v99.0.0\"}'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := server.gantry(t, "", "upgrade", far, "--yes")
	var version struct{ Version string }
	if err := json.Unmarshal([]byte(server.mustGantry(t, "version", "--json")), &version); err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(version.Version, "v") && (r.code == 0 || !strings.Contains(r.stderr, "more than one minor version")) {
		t.Errorf("a version that is far away: %v", r)
	}
}
