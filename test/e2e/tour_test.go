//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/api/v1alpha1"
)

const (
	tourURL  = "https://tasks.localhost"
	tourTask = "kept over everything"
)

// tour is a developer with the example's source on the machine.
type tour struct {
	*cluster
	folder string // a copy of examples/tasks
	client *http.Client
	env    []string // of the command line
	load   *taskLoad
	all    []*cluster                                // the machines
	lost   func(method string, begun time.Time) bool // of taskLoad
	reach  func(t *testing.T) *http.Client           // makes client
}

// TestTour takes the example application through everything that becomes of one. Each step stands on the one before.
func TestTour(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("the example is compiled by this machine's go, which is missing")
	}
	images := addonImages(t)
	c := newCluster(t)
	c.up(t)
	c.loadAddons(t, images)
	tr := newTour(t, c)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("status: %v", tr.gantry(t, "status", "tasks"))
			c.explainNamespace(t, "default")
		}
	})
	for _, step := range []struct {
		name string
		run  func(*tour, *testing.T)
	}{
		{"deploy", (*tour).deploy}, {"CRUD", (*tour).crud}, {"worker", (*tour).worker}, {"nothing changed", (*tour).unchanged}, {"preview", (*tour).preview},
		{"canary", (*tour).canary}, {"bad release", (*tour).badRelease}, {"crashing release", (*tour).crashingRelease}, {"build that fails", (*tour).failedBuild},
		{"rollback", (*tour).rollback}, {"pod killed", (*tour).podKilled}, {"gantry killed", (*tour).gantryKilled},
		{"sleep", (*tour).sleep}, {"remove and undo", (*tour).removeAndUndo},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(tr, t) }) {
			break
		}
	}
	if tr.load != nil {
		tr.load.stop()
	}
}

// newTour is a developer before the first command, on machine c.
func newTour(t *testing.T, c *cluster) *tour {
	t.Helper()
	tr := &tour{cluster: c, folder: filepath.Join(t.TempDir(), "tasks"), env: goEnvironment(t), all: []*cluster{c}}
	tr.reach = func(t *testing.T) *http.Client { return c.throughGateway(t, c.outside) }
	if err := os.CopyFS(tr.folder, os.DirFS("../../examples/tasks")); err != nil {
		t.Fatal(err)
	}
	return tr
}

// goEnvironment keeps the caches of go, whose home the machine has not.
func goEnvironment(t *testing.T) []string {
	t.Helper()
	home := t.TempDir()
	env := []string{"HOME=" + home, "XDG_CONFIG_HOME=" + home, "USER=ann"}
	out, err := exec.Command("go", "env", "-json", "GOCACHE", "GOMODCACHE", "GOPATH", "GOPROXY", "GOFLAGS").Output()
	if err != nil {
		t.Fatalf("go env: %v", err)
	}
	values := map[string]string{}
	if err := json.Unmarshal(out, &values); err != nil {
		t.Fatal(err)
	}
	values["GOPROXY"] = "off" // what the example needs is in the cache of whoever tested it
	for key, value := range values {
		env = append(env, key+"="+value)
	}
	return env
}

// gantry runs a command in the application's folder.
func (tr *tour) gantry(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 4*time.Minute)
	defer cancel()
	cmd := tr.command(ctx, filepath.Join(tr.bin, "gantry"), append([]string{"--data-dir", tr.dir}, args...)...)
	cmd.Dir, cmd.Env = tr.folder, append(cmd.Env, tr.env...)
	begun := time.Now()
	r := runCommand(t, cmd, "")
	t.Logf("gantry %s: %.1fs, %.1500s", strings.Join(args, " "), time.Since(begun).Seconds(), r.String())
	return r
}

// wants runs a command that must end with a code and returns all it said.
func (tr *tour) wants(t *testing.T, code int, args ...string) string {
	t.Helper()
	r := tr.gantry(t, args...)
	if r.code != code {
		t.Fatalf("gantry %s: exit %d, want %d", strings.Join(args, " "), r.code, code)
	}
	return r.stdout + r.stderr
}

// edit changes the source. Each change must hit.
func (tr *tour) edit(t *testing.T, file string, pairs ...string) {
	t.Helper()
	path := filepath.Join(tr.folder, file)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		if !strings.Contains(string(text), pairs[i]) {
			t.Fatalf("%s has no %q", file, pairs[i])
		}
		text = []byte(strings.Replace(string(text), pairs[i], pairs[i+1], 1))
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func versionLine(version string) string { return fmt.Sprintf("const version = %q", version) }

// release is the newest one, as the API has it.
func (tr *tour) release(t *testing.T) *v1alpha1.Release {
	t.Helper()
	r := tr.gantry(t, "release", "show", "--json")
	var release v1alpha1.Release
	if err := json.Unmarshal([]byte(r.stdout), &release); r.code != 0 || err != nil {
		t.Fatalf("release show: %v, %v", r, err)
	}
	return &release
}

// serves waits until the address answers with a version, and nothing but it.
func (tr *tour) serves(t *testing.T, version string) {
	t.Helper()
	eventually(t, "version "+version+" serves alone", 60*time.Second, func() error {
		for range 10 {
			got, err := fetch(tr.client, tourURL+"/version")
			if err != nil || got != version+"\n" {
				return fmt.Errorf("it answers %q, %v", got, err)
			}
		}
		return nil
	})
}

// deploy takes the source to an address, with its migrations, in one command.
func (tr *tour) deploy(t *testing.T) {
	out := tr.wants(t, 0, "deploy")
	if !strings.Contains(out, "://tasks.localhost\n") {
		t.Error("deploy does not say the address")
	}
	tr.client = tr.reach(t)
	tr.serves(t, "1.0")
	if page, err := fetch(tr.client, tourURL+"/"); err != nil || !strings.Contains(page, "<h1>Tasks</h1>") {
		t.Errorf("the page is %.300s, %v", page, err)
	}
	if release := tr.release(t); release.Status.Phase != v1alpha1.ReleaseLive || release.Spec.Number != 1 {
		t.Errorf("release v%d is %s, want v1 live", release.Spec.Number, release.Status.Phase)
	}
	if out := tr.wants(t, 0, "ps"); strings.Count(out, "web") < 2 || !strings.Contains(out, "worker") {
		t.Error("ps does not show two of web and a worker")
	}
}

// crud uses the application, and leaves one task there.
func (tr *tour) crud(t *testing.T) {
	load := &taskLoad{client: tr.client, url: tourURL, kept: tourTask}
	load.reset()
	if !load.ask("POST", "/api/tasks", `{"title":"`+tourTask+`"}`, http.StatusCreated, func([]byte) bool { return true }) {
		t.Fatalf("a task cannot be made: %v", load.example)
	}
	load.read()
	load.write()
	load.check(t, "CRUD")
	if n := load.written.Load(); n != 1 {
		t.Errorf("%d of 1 tasks were made, changed, read and removed", n)
	}
	load.ask("PATCH", "/api/tasks/999999", `{"done":true}`, http.StatusNotFound, func([]byte) bool { return true })
	load.check(t, "what is not there")
}

// worker waits for what only the worker writes.
func (tr *tour) worker(t *testing.T) {
	eventually(t, "the worker wrote a digest", 90*time.Second, func() error {
		text, err := fetch(tr.client, tourURL+"/api/digests")
		if err == nil && !strings.Contains(text, `"created":`) {
			err = fmt.Errorf("there is %s", text)
		}
		return err
	})
	eventually(t, "logs show web and worker", 20*time.Second, func() error {
		out := tr.gantry(t, "logs")
		if out.code != 0 || !strings.Contains(out.stdout, `"listening"`) || !strings.Contains(out.stdout, `"worked"`) {
			return fmt.Errorf("exit %d", out.code)
		}
		return nil
	})
}

// unchanged deploys the same source again, which makes no release.
func (tr *tour) unchanged(t *testing.T) {
	tr.wants(t, 0, "deploy")
	if release := tr.release(t); release.Spec.Number != 1 {
		t.Errorf("the same source made release v%d", release.Spec.Number)
	}
}

// preview deploys a copy with data of its own, which ends by itself.
func (tr *tour) preview(t *testing.T) {
	tr.wants(t, 0, "deploy", "--preview", "try", "--ttl", "1h")
	const url = "https://tasks-try.localhost"
	if body, err := fetch(tr.client, url+"/version"); err != nil || body != "1.0\n" {
		t.Errorf("the preview answers %q, %v", body, err)
	}
	if tasks, err := fetch(tr.client, url+"/api/tasks"); err != nil || strings.Contains(tasks, tourTask) {
		t.Errorf("the preview has the tasks %s, %v; want none of the application's", tasks, err)
	}
	var app v1alpha1.App
	if err := json.Unmarshal([]byte(tr.gantry(t, "status", "tasks-try", "--json").stdout), &app); err != nil {
		t.Fatalf("status --json: %v", err)
	}
	expires := app.Spec.Expires
	if app.Name != "tasks-try" || app.Status.Phase != v1alpha1.AppRunning || app.Status.Release != 1 || app.Spec.Addons["db"].Type != "postgres" ||
		expires == nil || time.Until(expires.Time) > time.Hour || time.Until(expires.Time) < 30*time.Minute {
		t.Errorf("status --json: %+v, %+v", app.Spec, app.Status)
	}
	var all struct {
		Apps []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(tr.gantry(t, "status", "--json").stdout), &all); err != nil {
		t.Errorf("status --json: %v", err)
	}
	tr.wants(t, 0, "app", "rm", "tasks-try", "--yes")
	tr.serves(t, "1.0")
}

// canary takes a release through its steps by hand, under load.
func (tr *tour) canary(t *testing.T) {
	tr.load = startTaskLoad(tr.client, tourURL, tourTask, 4, tr.lost)
	tr.load.more(t, 50)
	tr.edit(t, "main.go", versionLine("1.0"), versionLine("2.0"))
	tr.edit(t, "gantry.yaml", "every: 1m", "every: 0s")
	tr.wants(t, 0, "deploy")
	release := tr.release(t)
	if release.Status.Phase != v1alpha1.ReleaseCanary || release.Status.Canary == nil || release.Status.Canary.Weight != 10 {
		t.Fatalf("release v%d is %s (%+v), want a canary with 10%%", release.Spec.Number, release.Status.Phase, release.Status.Canary)
	}
	tr.load.more(t, 200)
	if seen := tr.load.versions(); !slices.Equal(seen, []string{"1.0", "2.0"}) {
		t.Errorf("versions %v answer beside the canary", seen)
	}
	for range 3 {
		tr.wants(t, 0, "promote")
	}
	if release := tr.release(t); release.Status.Phase != v1alpha1.ReleaseLive {
		t.Errorf("the promoted release is %s", release.Status.Phase)
	}
	tr.serves(t, "2.0")
	tr.load.more(t, 100)
	tr.load.check(t, "canary that is promoted")
}

// badRelease deploys a version that cannot list the tasks: it is given up by itself, and the others' requests are all answered.
func (tr *tour) badRelease(t *testing.T) {
	tr.edit(t, "main.go", versionLine("2.0"), versionLine("3.0-bad"))
	tr.edit(t, "gantry.yaml", "every: 0s", "every: 2m")
	tr.edit(t, "store.go", "where archived is null order by done", "where archiv is null order by done")
	tr.wants(t, 6, "deploy")
	release := tr.release(t)
	if release.Status.Phase != v1alpha1.ReleaseAborted || release.Status.Reason != v1alpha1.ReasonAnalysis {
		t.Errorf("the bad release is %s (%s)", release.Status.Phase, release.Status.Reason)
	}
	tr.serves(t, "2.0")
	tr.load.check(t, "bad release", "3.0-bad")
	tr.load.more(t, 100)
	tr.load.check(t, "after the bad release")
	tr.edit(t, "store.go", "where archiv is null order by done", "where archived is null order by done")
}

// crashingRelease deploys one that ends at its start: the deploy ends with the reason and its last words.
func (tr *tour) crashingRelease(t *testing.T) {
	tr.edit(t, "main.go", versionLine("3.0-bad"), versionLine("3.1-crash"), "case \"serve\":\n", "case \"serve\":\n\t\tpanic(\"no flux capacitor\")\n")
	out := tr.wants(t, 5, "deploy")
	if !strings.Contains(out, "no flux capacitor") {
		t.Error("deploy does not show the last words")
	}
	tr.serves(t, "2.0")
	tr.load.more(t, 50)
	tr.load.check(t, "crashing release")
	tr.edit(t, "main.go", "panic(\"no flux capacitor\")\n", "\n")
}

// failedBuild deploys what does not compile.
func (tr *tour) failedBuild(t *testing.T) {
	tr.edit(t, "main.go", versionLine("3.1-crash"), "const version = 3")
	if out := tr.wants(t, 3, "deploy"); !strings.Contains(out, "serve.go:") {
		t.Error("the build's failure does not name the file")
	}
	tr.load.more(t, 50)
	tr.load.check(t, "build that fails")
	tr.edit(t, "main.go", "const version = 3", versionLine("2.0"))
}

// rollback brings the first release back, under load.
func (tr *tour) rollback(t *testing.T) {
	tr.wants(t, 0, "rollback", "v1")
	release := tr.release(t)
	if release.Status.Phase != v1alpha1.ReleaseLive {
		t.Errorf("the rollback is %s", release.Status.Phase)
	}
	tr.serves(t, "1.0")
	tr.load.more(t, 50)
	tr.load.check(t, "rollback")
}

// podKilled kills a container's process, and removes another pod without a grace. What only reads must not notice.
func (tr *tour) podKilled(t *testing.T) {
	tr.load.writing.Store(false) // a write that was cut off cannot be repeated by anybody but its sender
	tr.load.more(t, 50)          // the last write is done
	tr.load.check(t, "before a pod is killed")
	victims := tr.programs("tasks serve")
	if len(victims) < 2 {
		t.Fatalf("the web processes are %v", victims)
	}
	if err := syscall.Kill(victims[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	tr.load.more(t, 200)
	tr.ready(t)
	tr.load.check(t, "container killed")
	pods, err := tr.cluster.client(t).CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: v1alpha1.LabelProcess + "=web"})
	if err != nil || len(pods.Items) == 0 {
		t.Fatalf("the pods: %v", err)
	}
	tr.kubectl(t, "delete", "pod", pods.Items[0].Name, "--grace-period=0", "--force")
	tr.load.more(t, 200)
	tr.ready(t)
	tr.load.check(t, "pod removed by force")
	tr.load.writing.Store(true)
	pods, err = tr.cluster.client(t).CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: v1alpha1.LabelProcess + "=web"})
	if err != nil || len(pods.Items) == 0 {
		t.Fatalf("the pods: %v", err)
	}
	tr.kubectl(t, "delete", "pod", pods.Items[0].Name)
	tr.load.more(t, 200)
	tr.ready(t)
	tr.load.check(t, "pod removed in order")
}

// programs are the pids of the containers' processes that run a command.
func (tr *tour) programs(command string) []int {
	var pids []int
	for pid := range processes(func(pid int, cmdline string) bool {
		if !strings.HasSuffix(cmdline, command) {
			return false
		}
		// Of this cluster: its parent is a shim with the data dir in its command line.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		var state string
		var parent int
		if _, err := fmt.Sscan(rest, &state, &parent); err != nil {
			return false
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", parent))
		return err == nil && slices.ContainsFunc(tr.all, func(c *cluster) bool { return strings.Contains(string(line), c.dir) })
	}) {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// ready waits until all web pods are ready again.
func (tr *tour) ready(t *testing.T) {
	t.Helper()
	tr.kubectl(t, "rollout", "status", "deployment/tasks-web", "--timeout=90s")
}

// gantryKilled kills the main process and starts it anew. The requests that write go on, too.
func (tr *tour) gantryKilled(t *testing.T) {
	written := tr.load.written.Load()
	tr.cluster.kill(t, syscall.SIGKILL)
	tr.load.more(t, 300)
	tr.cluster.up(t)
	tr.load.more(t, 200)
	tr.ready(t)
	tr.load.check(t, "gantry killed")
	if tr.load.written.Load() == written {
		t.Error("nothing was written meanwhile")
	}
	tr.wants(t, 0, "status", "tasks")
}

// sleep lets the application go to zero, and wakes it by a request.
func (tr *tour) sleep(t *testing.T) {
	tr.load.stop()
	tr.load = nil
	tr.edit(t, "main.go", versionLine("2.0"), versionLine("4.0"))
	tr.edit(t, "gantry.yaml", "    scale: 2\n", "    scale: {min: 0, max: 2, idle: 3s}\n", "strategy: canary, steps: [10, 50, 100], every: 2m, errors: 1%, sample: 50", "strategy: rolling")
	tr.wants(t, 0, "deploy")
	eventually(t, "it sleeps", 2*time.Minute, func() error {
		if pids := tr.programs("tasks serve"); len(pids) > 0 {
			return fmt.Errorf("%d web processes run", len(pids))
		}
		return nil
	})
	begun := time.Now()
	body, err := fetch(tr.client, tourURL+"/version")
	if err != nil || body != "4.0\n" {
		t.Fatalf("the first request is answered by %q, %v", body, err)
	}
	t.Logf("from zero to the first answer: %v", time.Since(begun))
	load := startTaskLoad(tr.client, tourURL, tourTask, 2, tr.lost)
	load.more(t, 100)
	load.stop()
	load.check(t, "awake again")
}

// removeAndUndo removes the application and brings it back with its data.
func (tr *tour) removeAndUndo(t *testing.T) {
	tr.wants(t, 0, "app", "rm", "tasks", "--yes")
	eventually(t, "it is gone", 90*time.Second, func() error {
		if body, err := fetch(tr.client, tourURL+"/version"); err == nil {
			return fmt.Errorf("it answers %q", body)
		}
		if pids := append(tr.programs("tasks serve"), tr.programs("tasks work")...); len(pids) > 0 {
			return fmt.Errorf("%d processes run", len(pids))
		}
		return nil
	})
	tr.wants(t, 0, "app", "undo", "tasks")
	tr.serves(t, "4.0")
	if text, err := fetch(tr.client, tourURL+"/api/tasks"); err != nil || !strings.Contains(text, tourTask) {
		t.Errorf("the tasks are %s, %v", text, err)
	}
}
