//go:build linux

package build_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/platform/build"
	"gantry.dev/gantry/internal/platform/build/job"
)

// gitNetwork is a network for builds in which nothing is but a git server, at an address of its own.
type gitNetwork struct {
	namespace *os.File
	listener  net.Listener
}

const gitAddress = "198.51.100.7"

func newGitNetwork(t *testing.T, handler http.Handler) *gitNetwork {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	n := &gitNetwork{}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- n.enter()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: n.listener, Config: &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}}
	server.Start()
	t.Cleanup(func() { server.Close(); _ = n.namespace.Close() })
	return n
}

// enter makes the namespace on this thread and listens in it.
func (n *gitNetwork) enter() error {
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		n.namespace, err = os.Open("/proc/thread-self/ns/net")
	}
	if err != nil {
		return err
	}
	for _, args := range []string{"link set lo up", "addr add " + gitAddress + "/32 dev lo"} {
		if out, err := exec.Command("busybox", append([]string{"ip"}, strings.Fields(args)...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	n.listener, err = new(net.ListenConfig).Listen(context.Background(), "tcp4", gitAddress+":80")
	return err
}

// Setup implements build.Network.
func (n *gitNetwork) Setup(context.Context) (string, error) {
	return fmt.Sprintf("/proc/self/fd/%d", n.namespace.Fd()), nil
}

// Teardown implements build.Network.
func (n *gitNetwork) Teardown(context.Context) error { return nil }

// gitRun runs git in a folder, and returns what it says.
func gitRun(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "user.name=a", "-c", "user.email=a@b"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_COMMITTER_DATE=2026-01-02T03:04:05Z")
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestGit builds a folder of a repository, at a branch.
func TestGit(t *testing.T) {
	root, work := t.TempDir(), t.TempDir()
	gitRun(t, work, "init", "-q", "-b", "main")
	if err := os.MkdirAll(filepath.Join(work, "web"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(work, "web", "index.html"), []byte("home"), 0o600); err != nil {
		t.Fatal(err)
	}
	gitRun(t, work, "add", "-A")
	gitRun(t, work, "commit", "-q", "-m", "one")
	commit := gitRun(t, work, "rev-parse", "HEAD")
	gitRun(t, root, "clone", "-q", "--bare", work, "shop.git")
	backend := &cgi.Handler{Path: filepath.Join(gitRun(t, root, "--exec-path"), "git-http-backend"), Root: "/", Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1"}}
	network := newGitNetwork(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "s3cr3t-t0ken" {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	b := newBench(t, func(o *build.EngineOptions) { o.Network = network })
	from := func(url, password string) []job.Event {
		return b.build(map[string]string{"a": ""}, func(r *job.Request) {
			r.Source, r.Path, r.Time = "", "web", time.Time{}
			r.Git = &job.Git{URL: url, Ref: "main", User: "git", Password: password}
		})
	}
	address := "http://" + gitAddress + "/shop.git"
	events := from(address, "s3cr3t-t0ken")
	img, first := b.image(events)
	if files := b.contents(img); files["site/index.html"] != "home" {
		t.Errorf("the image holds %q", files["site/index.html"])
	}
	config, err := img.ConfigFile()
	if err != nil || config.Config.Labels["org.opencontainers.image.revision"] != commit {
		t.Errorf("config = %+v, %v; want the commit %s", config, err, commit)
	}
	if text := transcript(events); !strings.Contains(text, "commit  "+commit) || !strings.Contains(text, "fetching "+address) {
		t.Errorf("the log does not say what was fetched:\n%s", text)
	}
	if _, again := b.image(from(address, "s3cr3t-t0ken")); again != first {
		t.Errorf("built again: %s, want %s", again, first)
	}
	for url, want := range map[string]string{
		address:                     "refuses the credentials",
		b.server.URL + "/shop.git":  "cannot be reached", // this machine's loopback
		"http://192.0.2.9/shop.git": "cannot be reached",
	} {
		events := from(url, "wr0ng-t0ken")
		last := events[len(events)-1]
		if last.Type != job.Failed || !strings.Contains(last.Text, want) || strings.Contains(transcript(events), "wr0ng") {
			t.Errorf("%s: %+v, want %q", url, last, want)
		}
	}
}
