//go:build linux

package foreign

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"golang.org/x/sys/unix"

	"gantry.dev/gantry/api/v1alpha1"
)

const (
	registryAddress = "127.0.0.1:5000" // containerd speaks plain HTTP to this machine's own
	platformImage   = "gantry:tour"
	tourTask        = "kept over everything"
)

// tour is a developer with the example's source on upstream's machine.
type tour struct {
	*cluster
	folder string // a copy of examples/tasks
	env    []string
	url    string
	load   *load

	removed                             []string // folders of volumes
	ejected, ejectedText, ejectedSecret string
}

// TestTour takes the example application through what becomes of one on a cluster that is not Gantry's: all of the other tour but
// what the gateway does. Each step stands on the one before.
func TestTour(t *testing.T) {
	addons, err := filepath.Abs("../../../.cache/addons")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "../../addonimages.sh", addons).CombinedOutput(); err != nil {
		t.Skipf("the images cannot be made of Debian's packages: %v\n%s", err, out)
	}
	image := filepath.Join(t.TempDir(), "gantry.tar")
	pack := exec.CommandContext(t.Context(), filepath.Join(os.Getenv("GANTRY_TEST_BIN"), "gantry"), "platform", "image", "-t", platformImage, "-o", image)
	if out, err := pack.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	tr := &tour{cluster: start(t, image, filepath.Join(addons, "postgres.tar")), folder: filepath.Join(t.TempDir(), "tasks"), env: goEnvironment(t)}
	if err := os.CopyFS(tr.folder, os.DirFS("../../../examples/tasks")); err != nil {
		t.Fatal(err)
	}
	serveRegistry(t, tr.ns)
	t.Cleanup(func() {
		for _, dir := range tr.removed {
			_ = os.RemoveAll(dir)
		}
		if t.Failed() {
			tr.explainCluster(t)
		}
	})
	for _, step := range []struct {
		name string
		run  func(*tour, *testing.T)
	}{
		{"before the platform", (*tour).before}, {"install", (*tour).install}, {"deploy", (*tour).deploy}, {"CRUD", (*tour).crud},
		{"worker", (*tour).worker}, {"nothing changed", (*tour).unchanged}, {"next release", (*tour).next}, {"crashing release", (*tour).crashing},
		{"build that fails", (*tour).failedBuild}, {"rollback", (*tour).rollback}, {"settings", (*tour).settings}, {"pod removed", (*tour).podRemoved},
		{"controller removed", (*tour).controllerRemoved}, {"sleep is refused", (*tour).sleep}, {"remove and undo", (*tour).removeAndUndo},
		{"eject", (*tour).eject}, {"uninstall", (*tour).uninstall},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(tr, t) }) {
			break
		}
	}
	if tr.load != nil {
		tr.load.stop()
	}
}

// goEnvironment keeps the caches of go, whose home the developer has not.
func goEnvironment(t *testing.T) []string {
	t.Helper()
	home := t.TempDir()
	env := []string{"HOME=" + home, "XDG_CONFIG_HOME=" + home, "USER=ann", "PATH=" + os.Getenv("PATH")}
	out, err := exec.CommandContext(t.Context(), "go", "env", "-json", "GOCACHE", "GOMODCACHE", "GOPATH", "GOFLAGS").Output()
	if err != nil {
		t.Skipf("the example is compiled by this machine's go: %v", err)
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

// inside runs f in the machine's network namespace. The thread goes back to its own: one that ended would take the programs with it
// that it has started (Pdeathsig).
func inside(ns string, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer func() { _ = before.Close() }()
	there, err := os.Open(ns)
	if err != nil {
		return err
	}
	defer func() { _ = there.Close() }()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	err = f()
	if back := unix.Setns(int(before.Fd()), unix.CLONE_NEWNET); back != nil {
		panic(back) // the thread must not be used for anything else
	}
	return err
}

// serveRegistry runs a registry on the machine.
func serveRegistry(t *testing.T, ns string) {
	t.Helper()
	var listener net.Listener
	err := inside(ns, func() (err error) {
		listener, err = net.Listen("tcp", registryAddress)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: registry.New(), ReadHeaderTimeout: time.Minute}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() { _ = server.Close(); <-ended })
}

// client asks from the machine.
func (c *cluster) client() *http.Client {
	dial := func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = inside(c.ns, func() error {
			conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
}

// gantry runs a command in the application's folder and returns what it said and its exit code.
func (tr *tour) gantry(t *testing.T, stdin string, args ...string) (out string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 4*time.Minute)
	defer cancel()
	all := append([]string{"--net=" + tr.ns, filepath.Join(tr.bin, "gantry")}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", all...)
	cmd.Dir, cmd.Env, cmd.Stdin = tr.folder, tr.env, strings.NewReader(stdin)
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	begun := time.Now()
	err := cmd.Run()
	exit, failed := errors.AsType[*exec.ExitError](err)
	if failed {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	t.Logf("gantry %s: %.1fs, exit %d\n%.3000s", strings.Join(args, " "), time.Since(begun).Seconds(), code, text.String())
	return text.String(), code
}

// wants runs a command that must end with a code, and returns all it said.
func (tr *tour) wants(t *testing.T, code int, args ...string) string {
	t.Helper()
	out, got := tr.gantry(t, "", args...)
	if got != code {
		t.Fatalf("gantry %s: exit %d, want %d", strings.Join(args, " "), got, code)
	}
	return out
}

func (tr *tour) mustKubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := tr.kubectl(t.Context(), stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// app is the application as the API has it.
func (tr *tour) app(t *testing.T) *v1alpha1.App {
	t.Helper()
	one := &v1alpha1.App{}
	if err := json.Unmarshal([]byte(tr.mustKubectl(t, "", "get", "app", "tasks", "-o", "json")), one); err != nil {
		t.Fatal(err)
	}
	return one
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

// fetch asks the application.
func (tr *tour) fetch(path string) (string, error) {
	response, err := tr.client().Get(tr.url + path)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	var text bytes.Buffer
	_, err = text.ReadFrom(response.Body)
	if err == nil && response.StatusCode >= 300 {
		err = fmt.Errorf("%s", response.Status)
	}
	return text.String(), err
}

// serves waits until the Service answers with a version, and nothing but it.
func (tr *tour) serves(t *testing.T, version string) {
	t.Helper()
	tr.eventually(t, "version "+version+" serves alone", func() error {
		for range 10 {
			if got, err := tr.fetch("/version"); err != nil || got != version+"\n" {
				return fmt.Errorf("it answers %q, %w", got, err)
			}
		}
		return nil
	})
}

// explainCluster logs what the cluster has of the application.
func (tr *tour) explainCluster(t *testing.T) {
	for _, args := range [][]string{
		{"get", "all,ingress,pvc,pv", "-A", "-o", "wide"}, {"get", "apps,releases", "-A", "-o", "yaml"}, {"get", "events", "-A", "--sort-by=.lastTimestamp"},
		{"logs", "-n", "gantry-system", "deployment/gantry-platform", "--tail=60"}, {"describe", "pods", "-n", "gantry-system"},
		{"describe", "pods"}, {"logs", "-l", "gantry.dev/app=tasks", "--tail=20", "--prefix"},
	} {
		out, err := tr.kubectl(context.WithoutCancel(t.Context()), "", args...)
		t.Logf("kubectl %s: %v\n%.12000s", strings.Join(args, " "), err, out)
	}
}
