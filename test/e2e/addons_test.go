//go:build linux

package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// addonsApp is an application whose process only prints what addons gave it.
const addonsApp = `
apiVersion: gantry.dev/v1alpha1
kind: App
metadata: {name: shop}
spec:
  image: busybox:e2e
  addons:
    db: {type: postgres, version: "15", backup: daily}
    cache: {type: redis, version: "7"}
  processes:
    worker: {command: "echo $DATABASE_URL; echo $REDIS_URL; trap exit TERM; while :; do sleep 0.2; done"}
`

// TestAddons runs the real postgres and redis.
func TestAddons(t *testing.T) {
	images := addonImages(t)
	c := newCluster(t)
	c.up(t)
	c.load(t, false)
	c.loadAddons(t, images)
	ns := c.namespace(t, "shop")
	eventually(t, "applications are served", 10*time.Second, func() error {
		if r := c.try(t, "get", "apps", "-n", ns); r.code != 0 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	c.apply(t, ns, addonsApp)
	a := &addonsTest{c: c, t: t, ns: ns}
	c.released(t, ns, 1, "Live", "")
	a.environment()
	a.sql("CREATE TABLE items (name text); INSERT INTO items VALUES ('first')")
	a.redis("SET", "greeting", "hello")
	a.terminal()
	a.kill()
	a.roundTrip()
	a.backUp()
	a.removeAndAdd()
}

// addonImages makes the images of postgres and redis, and skips the test where Debian's packages cannot be had.
func addonImages(t *testing.T) string {
	t.Helper()
	folder, err := filepath.Abs("../../.cache/addons")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "../addonimages.sh", folder).CombinedOutput(); err != nil {
		t.Skipf("the images cannot be made of Debian's packages: %v\n%s", err, out)
	}
	return folder
}

// loadAddons gives the node the images, and names them as those of every version.
func (c *cluster) loadAddons(t *testing.T, folder string) {
	t.Helper()
	c.mustGantry(t, "image", "load", filepath.Join(folder, "postgres.tar"))
	c.mustGantry(t, "image", "load", filepath.Join(folder, "redis.tar"))
	const postgres, redis = "docker.io/library/postgres:e2e", "docker.io/library/redis:e2e"
	settings := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: platform}\n" +
		fmt.Sprintf("data: {addon.postgres.15: %q, addon.postgres.17: %[1]q, addon.redis.7: %[2]q}\n", postgres, redis)
	eventually(t, "the platform's namespace is there", 10*time.Second, func() error {
		if r := c.try(t, "get", "namespace", "gantry-system"); r.code != 0 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	c.apply(t, "gantry-system", settings)
}

type addonsTest struct {
	c  *cluster
	t  *testing.T
	ns string
}

// addon runs a command of "gantry addon" that must work.
func (a *addonsTest) addon(stdin string, args ...string) string {
	a.t.Helper()
	r := a.c.gantry(a.t, stdin, append([]string{"addon"}, append(args, "-a", "shop", "-p", a.ns)...)...)
	if r.code != 0 {
		a.t.Fatalf("gantry addon %s: %v", strings.Join(args, " "), r)
	}
	return r.stdout
}

func (a *addonsTest) sql(text string) string { return a.addon(text+";\n", "connect", "db") }

func (a *addonsTest) redis(words ...string) string {
	return a.addon(strings.Join(words, " ")+"\n", "connect", "cache")
}

// holds waits until the data is what was written.
func (a *addonsTest) holds(rows string) {
	a.t.Helper()
	eventually(a.t, "postgres holds "+rows, 60*time.Second, func() error {
		r := a.c.gantry(a.t, "SELECT string_agg(name, ',' ORDER BY name) AS all FROM items;\n", "addon", "connect", "db", "-a", "shop", "-p", a.ns)
		if r.code != 0 || !strings.Contains(r.stdout, " "+rows+"\n") {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
}

func (a *addonsTest) says(greeting string) {
	a.t.Helper()
	eventually(a.t, "redis says "+greeting, 60*time.Second, func() error {
		r := a.c.gantry(a.t, "GET greeting\n", "addon", "connect", "cache", "-a", "shop", "-p", a.ns)
		if r.code != 0 || strings.TrimSpace(r.stdout) != greeting {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
}

// environment looks at what the process was given, and uses it from another pod.
func (a *addonsTest) environment() {
	a.t.Helper()
	eventually(a.t, "the process prints its environment", 30*time.Second, func() error {
		out := a.c.try(a.t, "logs", "-n", a.ns, "-l", "gantry.dev/process=worker").stdout
		if !strings.Contains(out, "postgres://app:") || !strings.Contains(out, "@shop-db:5432/app?sslmode=disable\n") || !strings.Contains(out, "@shop-cache:6379/0\n") {
			return fmt.Errorf("its log is %q", out)
		}
		return nil
	})
	a.c.apply(a.t, a.ns, `
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  restartPolicy: Never
  containers:
  - name: client
    image: docker.io/library/postgres:e2e
    command: [sh, -c, "/usr/lib/postgresql/15/bin/psql -X -At \"$DATABASE_URL\" -c 'SELECT 40 + 2'"]
    envFrom: [{secretRef: {name: shop-db}}]
`)
	if out := a.c.logs(a.t, a.ns, "client"); strings.TrimSpace(out) != "42" {
		a.t.Errorf("psql by DATABASE_URL says %q", out)
	}
}

// terminal runs commands of "gantry exec" and "gantry run" at a terminal, which script(1) makes, and without one.
func (a *addonsTest) terminal() {
	a.t.Helper()
	program, err := exec.LookPath("script")
	if err != nil {
		a.t.Log("terminals are left out: ", err)
		return
	}
	at := func(command string, words string) result {
		line := fmt.Sprintf("stty rows 33 cols 99; %s --data-dir %s %s shop -p %s --process worker -- %s", filepath.Join(a.c.bin, "gantry"), a.c.dir, command, a.ns, words)
		return a.c.run(a.t, "", program, "-qec", line, "/dev/null")
	}
	// The size comes a moment after the program began.
	const size = `sh -c 'test -t 0 && until stty size | grep "33 99"; do sleep 0.1; done; exit 7'`
	for _, command := range []string{"exec", "run"} {
		if r := at(command, size); r.code != 7 || !strings.Contains(r.stdout, "33 99") {
			a.t.Errorf("gantry %s at a terminal: %v", command, r)
		}
		if r := at(command+" --no-tty", `sh -c 'test -t 0 || echo none'`); r.code != 0 || !strings.Contains(r.stdout, "none") {
			a.t.Errorf("gantry %s --no-tty at a terminal: %v", command, r)
		}
		if r := a.c.gantry(a.t, "", command, "shop", "-p", a.ns, "--process", "worker", "--", "sh", "-c", "echo out; test -t 0 || exit 5"); r.code != 5 || r.stdout != "out\n" {
			a.t.Errorf("gantry %s without a terminal: %v", command, r)
		}
	}
	if r := a.c.gantry(a.t, "typed\n", "exec", "shop", "-p", a.ns, "--process", "worker", "--", "sh", "-c", "read word; echo got $word; echo err >&2"); r.stdout != "got typed\n" || !strings.Contains(r.stderr, "err\n") {
		a.t.Errorf("gantry exec with a pipe: %v", r)
	}
	if out := a.c.kubectl(a.t, "get", "pods", "-n", a.ns, "-o", "name"); strings.Contains(out, "run") {
		a.t.Errorf("after run its containers are there: %s", out)
	}
}

// kill ends the pods without a warning.
func (a *addonsTest) kill() {
	a.t.Helper()
	a.c.kubectl(a.t, "delete", "pod", "-n", a.ns, "shop-db-0", "shop-cache-0", "--grace-period=0", "--force")
	a.holds("first")
	a.says("hello")
}

// roundTrip loads what was dumped over what was changed after.
func (a *addonsTest) roundTrip() {
	a.t.Helper()
	dump, data := a.addon("", "dump", "db"), a.addon("", "dump", "cache")
	a.sql("INSERT INTO items VALUES ('second')")
	a.redis("SET", "greeting", "bye")
	a.addon(dump, "load", "db")
	a.addon(data, "load", "cache")
	a.holds("first")
	a.says("hello")
	a.addon("INSERT INTO items VALUES ('text');", "load", "db")
	a.holds("first,text")
	for name, broken := range map[string]string{"db": dump[:len(dump)/2], "cache": data[:len(data)/2]} {
		if r := a.c.gantry(a.t, broken, "addon", "load", name, "-a", "shop", "-p", a.ns); r.code == 0 || !strings.Contains(r.stderr, "nothing was changed") {
			a.t.Errorf("loading half a dump into %s: %v", name, r)
		}
	}
	a.holds("first,text")
	a.says("hello")
}

// backUp makes a backup now, and loads it.
func (a *addonsTest) backUp() {
	a.t.Helper()
	if out := a.addon("", "backup", "now", "db"); !strings.Contains(out, "db is backed up: 20") {
		a.t.Errorf("addon backup now says %q", out)
	}
	var name string
	for _, line := range strings.Split(a.addon("", "backup", "ls", "db"), "\n") {
		if strings.Contains(line, ".dump") {
			name = strings.Fields(line)[0]
		}
	}
	a.sql("DELETE FROM items")
	a.addon("", "load", "db", "--backup", name, "--yes")
	a.holds("first,text")
	eventually(a.t, "the status tells the last backup", 10*time.Second, func() error {
		if out := a.c.kubectl(a.t, "get", "app", "-n", a.ns, "shop", "-o", "jsonpath={.status.addons.db.lastbackup}"); out == "" {
			return fmt.Errorf("it does not")
		}
		return nil
	})
}

// removeAndAdd takes the addons away; who comes back has the data, unless it was removed.
func (a *addonsTest) removeAndAdd() {
	a.t.Helper()
	a.c.kubectl(a.t, "patch", "app", "-n", a.ns, "shop", "--type=merge", "-p", `{"spec":{"addons":null}}`)
	a.c.released(a.t, a.ns, 2, "Live", "")
	a.c.kubectl(a.t, "wait", "-n", a.ns, "--for=delete", "statefulset/shop-db", "pod/shop-db-0", "secret/shop-db", "--timeout=60s")
	a.addon("", "add", "postgres", "--version", "15")
	a.holds("first,text")
	a.addon("", "rm", "db", "--delete-data", "--yes")
	a.c.kubectl(a.t, "wait", "-n", a.ns, "--for=delete", "pvc/shop-db", "--timeout=60s")
	a.addon("", "add", "postgres", "--version", "15")
	if out := a.sql("SELECT count(*) AS tables FROM pg_tables WHERE tablename = 'items'"); !strings.Contains(out, " 0\n") {
		a.t.Errorf("after its data was removed the addon has it: %q", out)
	}
}
