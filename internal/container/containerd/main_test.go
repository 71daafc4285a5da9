//go:build linux

package containerd

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/programs"
)

// testImage is the name of the image that the tests run: a static busybox.
const testImage = "docker.io/library/busybox:test"

// childEnv makes this test program a runtime of its own, to be killed by a test.
const childEnv = "GANTRY_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if err := runChild(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// testDirs are the folders of one test's node.
type testDirs struct{ root, state, logs, cgroup string }

// needNode skips a test where containers cannot run and returns folders for one.
func needNode(t testing.TB) testDirs {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("busybox-static is not installed")
	}
	// Not t.TempDir: its path is too long for sockets.
	base, err := os.MkdirTemp("/var/tmp", "gr")
	if err != nil {
		t.Fatal(err)
	}
	dirs := testDirs{
		root:   filepath.Join(base, "root"),
		state:  filepath.Join(base, "st"),
		logs:   filepath.Join(base, "log"),
		cgroup: "/" + filepath.Base(base),
	}
	t.Cleanup(func() {
		if err := StopAll(context.Background(), dirs.root, dirs.state); err != nil {
			t.Errorf("StopAll: %v", err)
		}
		if err := removeCgroup(dirs.cgroup); err != nil {
			t.Error(err)
		}
		checkNothingLeft(t, base)
		if !t.Failed() {
			if err := os.RemoveAll(base); err != nil {
				t.Error(err)
			}
		}
	})
	return dirs
}

// checkNothingLeft fails if a mount or process of the test's node is there.
func checkNothingLeft(t testing.TB, base string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, base) {
			t.Errorf("a mount is left: %s", line)
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		exe, err := os.Readlink("/proc/" + entry.Name() + "/exe")
		if err == nil && strings.HasPrefix(exe, base) {
			t.Errorf("process %s is left: %s", entry.Name(), exe)
		}
		stat, err := os.ReadFile("/proc/" + entry.Name() + "/stat")
		if err == nil && strings.Contains(string(stat), ") Z "+fmt.Sprint(os.Getpid())+" ") {
			t.Errorf("a zombie of this process is left: %s", stat)
		}
	}
}

// options returns the settings of a test's node.
func (d testDirs) options(logger *slog.Logger) (Options, error) {
	paths, err := programs.Open(filepath.Join(filepath.Dir(d.root), "bin"))
	if err != nil {
		return Options{}, err
	}
	if err := paths.Unpack(programs.Runc, programs.Shim, programs.RuncShim); err != nil {
		return Options{}, err
	}
	runc, err := paths.Path(programs.Runc)
	if err != nil {
		return Options{}, err
	}
	shim, err := paths.Path(programs.Shim)
	if err != nil {
		return Options{}, err
	}
	runcShim, err := paths.Path(programs.RuncShim)
	if err != nil {
		return Options{}, err
	}
	return Options{
		Root: d.root, State: d.state, Runc: runc, Shim: shim, RuncShim: runcShim,
		Logger: logger, CollectAfter: 50 * time.Millisecond,
	}, nil
}

// startRuntime runs a Runtime until the test ends or stop is called.
func startRuntime(t testing.TB, dirs testDirs) (r *Runtime, stop func()) {
	t.Helper()
	opts, err := dirs.options(slog.New(slog.NewTextHandler(testWriter{t}, nil)))
	if errors.Is(err, programs.ErrNotBuiltIn) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return runOptions(t, opts)
}

// runWith runs a Runtime with options of a test's own until the test ends.
func runWith(t testing.TB, opts Options) *Runtime {
	t.Helper()
	r, _ := runOptions(t, opts)
	return r
}

func runOptions(t testing.TB, opts Options) (r *Runtime, stop func()) {
	t.Helper()
	r, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("Run does not return")
		}
	}
	t.Cleanup(stop)
	select {
	case <-r.Ready():
	case err := <-done:
		done <- err
		t.Fatalf("Run: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("the runtime is not ready")
	}
	return r, stop
}

// testWriter passes log lines to the test.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// busyboxArchive returns a docker archive with a static busybox.
func busyboxArchive(t testing.TB, ref string, config v1.Config) []byte {
	t.Helper()
	binary, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	add := func(header tar.Header, data []byte) {
		header.Size = int64(len(data))
		if err := w.WriteHeader(&header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "proc/", "sys/", "dev/", "tmp/"} {
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, binary)
	for _, applet := range []string{"sh", "sleep", "cat", "echo", "dd", "ls", "id", "hostname", "kill", "ps", "tail", "head", "env", "stty", "seq", "yes", "ipcs", "touch", "true", "awk"} {
		add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n"))
	add(tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:\nweb:x:1000:\nextra:x:2000:web\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data := layer.Bytes()
	blob, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, blob)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", "amd64", config
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := tarball.Write(tag, img, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// loadBusybox imports the test image and returns its ID.
func loadBusybox(t testing.TB, r *Runtime) string {
	t.Helper()
	archive := busyboxArchive(t, testImage, v1.Config{Cmd: []string{"/bin/sh"}, Env: []string{"FROM=image"}})
	found, err := r.Import(t.Context(), bytes.NewReader(archive), container.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 {
		t.Fatalf("Import found %d images, want 1", len(found))
	}
	return found[0].ID
}

// newSandbox makes a sandbox of the test's node.
func newSandbox(t testing.TB, r *Runtime, dirs testDirs, id string, change func(*container.Sandbox)) container.Sandbox {
	t.Helper()
	sb := container.Sandbox{
		ID: id, Namespace: "default", Name: id, Hostname: "host-" + id,
		CgroupPath: dirs.cgroup + "/" + id, LogDir: filepath.Join(dirs.logs, id),
		NetNSPath: "/proc/self/ns/net", // the node's own, by a path of its own
	}
	if change != nil {
		change(&sb)
	}
	if err := r.EnsureSandbox(t.Context(), sb); err != nil {
		t.Fatal(err)
	}
	return sb
}

// runContainer creates and starts a container that runs a shell script.
func runContainer(t testing.TB, r *Runtime, sb container.Sandbox, image, name, script string, change func(*container.Config)) string {
	t.Helper()
	cfg := container.Config{
		SandboxID: sb.ID, Name: name, Image: image, ImageRef: testImage,
		Command: []string{"/bin/sh", "-c", script},
		LogPath: filepath.Join(sb.LogDir, name, "0.log"),
	}
	if change != nil {
		change(&cfg)
	}
	id, err := r.Create(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return id
}

// waitExit waits for a container's end.
func waitExit(t testing.TB, r *Runtime, id string) container.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	status, err := r.Wait(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// eventually polls until ok or a deadline.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("gave up waiting: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// logLines returns the text of a container's log, whole lines only.
func logLines(t testing.TB, paths ...string) []string {
	t.Helper()
	var lines []string
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if !strings.HasSuffix(line, "\n") {
				break // being written at the moment
			}
			fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
			if len(fields) != 4 {
				t.Fatalf("line %q is not in the CRI format", line)
			}
			lines = append(lines, fields[3])
		}
	}
	return lines
}
