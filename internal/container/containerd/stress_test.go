//go:build linux

package containerd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/gobuild"
)

// TestManyAtOnce makes and removes pods side by side while others are listed.
func TestManyAtOnce(t *testing.T) {
	dirs := needNode(t)
	r, _ := startRuntime(t, dirs)
	image := loadBusybox(t, r)
	var group errgroup.Group
	group.SetLimit(8)
	for i := range 24 {
		group.Go(func() error {
			sb := container.Sandbox{ID: fmt.Sprintf("pod-%d", i), Name: "x", Hostname: "x", NetNSPath: "/proc/self/ns/net", CgroupPath: fmt.Sprintf("%s/pod-%d", dirs.cgroup, i)}
			if err := r.EnsureSandbox(t.Context(), sb); err != nil {
				return err
			}
			id, err := r.Create(t.Context(), container.Config{
				SandboxID: sb.ID, Name: "main", Image: image, Command: []string{"/bin/sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i)},
				LogPath: filepath.Join(dirs.logs, sb.ID, "0.log"),
			})
			if err != nil {
				return err
			}
			if err := r.Start(t.Context(), id); err != nil {
				return err
			}
			status, err := r.Wait(t.Context(), id)
			if err != nil {
				return err
			}
			if _, err := r.List(t.Context()); err != nil {
				return err
			}
			data, err := os.ReadFile(status.LogPath)
			if err != nil {
				return err
			}
			if status.ExitCode != i || !bytes.HasSuffix(data, fmt.Appendf(nil, " F %d\n", i)) {
				return fmt.Errorf("pod %d: exit code %d, log %q", i, status.ExitCode, data)
			}
			return r.RemoveSandbox(t.Context(), sb.ID)
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// TestRestartWithManyPods takes over more pods than are looked at side by side.
func TestRestartWithManyPods(t *testing.T) {
	dirs := needNode(t)
	r, stop := startRuntime(t, dirs)
	image := loadBusybox(t, r)
	want := map[string]int{}
	for i := range 10 {
		sb := newSandbox(t, r, dirs, fmt.Sprintf("pod-%d", i), nil)
		id := runContainer(t, r, sb, image, "main", "exec sleep 1000", nil)
		want[id] = mustStatus(t, r, id).PID
	}
	stop()
	r, _ = startRuntime(t, dirs)
	for id, pid := range want {
		if status := mustStatus(t, r, id); status.PID != pid || status.State != container.StateRunning {
			t.Errorf("after the restart: %s with PID %d, want running with %d", status.State, status.PID, pid)
		}
	}
}

// TestReboot starts on what a machine that lost its power has on disk: records and
// bundles, and none of the processes, mounts and cgroups.
func TestReboot(t *testing.T) {
	dirs := needNode(t)
	r, stop := startRuntime(t, dirs)
	image := loadBusybox(t, r)
	sb := newSandbox(t, r, dirs, "pod-1", nil)
	id := runContainer(t, r, sb, image, "main", "exec sleep 1000", nil)
	stop()
	if err := StopAll(t.Context(), dirs.root, dirs.state); err != nil {
		t.Fatal(err)
	}
	if err := removeCgroup(sb.CgroupPath); err != nil {
		t.Fatal(err)
	}
	r, _ = startRuntime(t, dirs)
	if status := mustStatus(t, r, id); status.State != container.StateExited || status.Reason != reasonUnknown {
		t.Errorf("after a reboot: %+v", status)
	}
	if err := r.EnsureSandbox(t.Context(), sb); err != nil {
		t.Fatal(err)
	}
	again := runContainer(t, r, sb, image, "main", "hostname; exit 3", func(c *container.Config) { c.Attempt = 1 })
	if status := waitExit(t, r, again); status.ExitCode != 3 {
		t.Errorf("exit code %d, want 3", status.ExitCode)
	}
	if err := r.RemoveSandbox(t.Context(), sb.ID); err != nil {
		t.Error(err)
	}
}

// TestSecondRuntimeIsRefused starts two runtimes on the same folders.
func TestSecondRuntimeIsRefused(t *testing.T) {
	dirs := needNode(t)
	r, _ := startRuntime(t, dirs)
	began := time.Now()
	second, err := New(r.opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil {
		t.Error("a second runtime runs on the same folders")
	}
	if _, err := second.List(t.Context()); !errors.Is(err, ErrStopped) {
		t.Errorf("List of a runtime that did not start: %v", err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it was refused after %v", took)
	}
}

// TestGoImage builds an image from Go source and runs it as its nonroot user.
func TestGoImage(t *testing.T) {
	dirs := needNode(t)
	r, _ := startRuntime(t, dirs)
	source := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":  "module example.com/hello\n\ngo 1.24\n",
		"main.go": "package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n)\n\nfunc main() {\n\tf, err := os.CreateTemp(\"\", \"x\")\n\tfmt.Println(os.Getuid(), f != nil, err)\n\tos.Exit(4)\n}\n",
	} {
		if err := os.WriteFile(filepath.Join(source, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var archive bytes.Buffer
	result, err := gobuild.Build(t.Context(), gobuild.Options{Dir: source, Name: "hello:dev"}, &archive)
	if err != nil {
		t.Fatal(err)
	}
	found, err := r.Import(t.Context(), &archive, container.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].ID != result.ID || found[0].User != "65532:65532" {
		t.Errorf("Import = %+v, want ID %s", found, result.ID)
	}
	sb := newSandbox(t, r, dirs, "pod-1", nil)
	id := runContainer(t, r, sb, "hello:dev", "main", "", func(c *container.Config) { c.Command = nil })
	status := waitExit(t, r, id)
	if got := logLines(t, status.LogPath); status.ExitCode != 4 || len(got) != 1 || got[0] != "65532 true <nil>" {
		t.Errorf("exit code %d, output %q", status.ExitCode, got)
	}
}
