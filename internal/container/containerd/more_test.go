//go:build linux

package containerd

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gantry.dev/gantry/internal/container"
)

// TestTerminal runs a container with a terminal and attaches to it.
func TestTerminal(t *testing.T) {
	r, _, id := oneContainer(t, handlerShim, "read line; echo got $line; stty size",
		func(c *container.Config) { c.TTY, c.Stdin, c.StdinOnce = true, true, true })
	stdin, input := io.Pipe()
	defer input.Close()
	sizes := make(chan container.Size, 1)
	sizes <- container.Size{Width: 91, Height: 37}
	var stdout lockedBuffer
	done := make(chan error, 1)
	go func() {
		done <- r.Attach(t.Context(), id, container.Streams{Stdin: stdin, Stdout: &stdout, TTY: true, Resize: sizes})
	}()
	if _, err := io.WriteString(input, "hello\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("Attach does not end with the container")
	}
	waitExit(t, r, id)
	if got := stdout.String(); !strings.Contains(got, "got hello\r\n") {
		t.Errorf("terminal showed %q", got)
	}
}

// TestStdinOnce ends a container's input with the first attach session, and not before.
func TestStdinOnce(t *testing.T) {
	r, _, id := oneContainer(t, handlerShim, "cat; echo end", func(c *container.Config) { c.Stdin, c.StdinOnce = true, true })
	var stdout bytes.Buffer
	if err := r.Attach(t.Context(), id, container.Streams{Stdin: strings.NewReader("all of it\n"), Stdout: &stdout}); err != nil {
		t.Error(err)
	}
	if status := waitExit(t, r, id); status.ExitCode != 0 || stdout.String() != "all of it\nend\n" {
		t.Errorf("exit code %d, output %q", status.ExitCode, stdout.String())
	}
	if err := r.Attach(t.Context(), id, container.Streams{Stdout: &stdout}); err == nil {
		t.Error("Attach to a container that has ended succeeded")
	}
}

// TestHostNamespaces runs a pod with the node's own namespaces and leaves children behind.
func TestHostNamespaces(t *testing.T) {
	forHandlers(t, func(t *testing.T, handler string) {
		dirs := needNode(t)
		r, _ := startRuntime(t, dirs)
		image := loadBusybox(t, r)
		sb := newSandbox(t, r, dirs, "pod-1", func(sb *container.Sandbox) {
			sb.Runtime, sb.HostPID, sb.HostIPC, sb.NetNSPath, sb.Hostname = handler, true, true, "", ""
		})
		name, err := os.Hostname()
		if err != nil {
			t.Fatal(err)
		}
		id := runContainer(t, r, sb, image, "main", "hostname; sleep 4711.5 & exec sleep 4711.5", nil)
		path := mustStatus(t, r, id).LogPath
		eventually(t, "the container logs", func() bool { return len(logLines(t, path)) > 0 })
		if got := logLines(t, path); !slices.Equal(got, []string{name}) {
			t.Errorf("host name in the container = %q, want %q", got, name)
		}
		if err := r.RemoveSandbox(t.Context(), sb.ID); err != nil {
			t.Fatal(err)
		}
		commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range commands {
			if data, err := os.ReadFile(file); err == nil && strings.Contains(string(data), "sleep\x004711.5") {
				t.Errorf("%s is left", file)
			}
		}
	})
}

// TestNativeSnapshotter runs a container where overlayfs does not work.
func TestNativeSnapshotter(t *testing.T) {
	dirs := needNode(t)
	r, stop := startRuntime(t, dirs)
	image := loadBusybox(t, r) // unpacked for the other one
	opts := r.opts
	stop()
	opts.Snapshotter = snapshotterNative
	r = runWith(t, opts)
	sb := newSandbox(t, r, dirs, "pod-1", nil)
	id := runContainer(t, r, sb, image, "main", "touch /x && exit 3", nil)
	if status := waitExit(t, r, id); status.ExitCode != 3 {
		t.Errorf("exit code %d, want 3", status.ExitCode)
	}
	if err := r.RemoveSandbox(t.Context(), sb.ID); err != nil {
		t.Error(err)
	}
}

// TestLongStatePath uses the longest state path that is allowed.
func TestLongStatePath(t *testing.T) {
	forHandlers(t, func(t *testing.T, handler string) {
		dirs := needNode(t)
		r, stop := startRuntime(t, dirs)
		opts := r.opts
		stop()
		opts.State = filepath.Dir(dirs.root) + "/"
		opts.State += strings.Repeat("s", maxStatePath-len(opts.State))
		t.Cleanup(func() {
			if err := StopAll(context.Background(), dirs.root, opts.State); err != nil {
				t.Error(err)
			}
		})
		r = runWith(t, opts)
		image := loadBusybox(t, r)
		sb := newSandbox(t, r, dirs, "pod-1", func(sb *container.Sandbox) { sb.Runtime = handler })
		id := runContainer(t, r, sb, image, "main", "exit 3", func(c *container.Config) { c.TTY = true })
		if status := waitExit(t, r, id); status.ExitCode != 3 {
			t.Errorf("exit code %d, want 3", status.ExitCode)
		}
		if err := r.RemoveSandbox(t.Context(), sb.ID); err != nil {
			t.Error(err)
		}
	})
}

// TestNewRefuses checks options.
func TestNewRefuses(t *testing.T) {
	good := Options{Root: "/r", State: "/s", Runc: "/runc", Shim: "/shim"}
	if _, err := New(good); err != nil {
		t.Errorf("New(%+v): %v", good, err)
	}
	for name, change := range map[string]func(*Options){
		"relative root":       func(o *Options) { o.Root = "r" },
		"no state":            func(o *Options) { o.State = "" },
		"long state":          func(o *Options) { o.State = "/" + strings.Repeat("s", maxStatePath) },
		"same":                func(o *Options) { o.State = o.Root },
		"unknown snapshotter": func(o *Options) { o.Snapshotter = "zfs" },
		"no runc":             func(o *Options) { o.Runc = "" },
	} {
		bad := good
		change(&bad)
		if _, err := New(bad); err == nil {
			t.Errorf("%s: New(%+v) succeeded", name, bad)
		}
	}
}
