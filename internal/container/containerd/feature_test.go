//go:build linux

package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/crilog"
)

// forHandlers runs a test with each runtime handler.
func forHandlers(t *testing.T, test func(t *testing.T, handler string)) {
	t.Helper()
	t.Run("shim", func(t *testing.T) { test(t, handlerShim) })
	t.Run("stock", func(t *testing.T) { test(t, handlerRunc) })
}

// oneContainer starts a node with one container.
func oneContainer(t *testing.T, handler, script string, change func(*container.Config)) (*Runtime, container.Sandbox, string) {
	t.Helper()
	dirs := needNode(t)
	r, _ := startRuntime(t, dirs)
	image := loadBusybox(t, r)
	sb := newSandbox(t, r, dirs, "pod-1", func(sb *container.Sandbox) { sb.Runtime = handler })
	return r, sb, runContainer(t, r, sb, image, "main", script, change)
}

func TestLogRotation(t *testing.T) {
	r, _, id := oneContainer(t, handlerShim, "seq 1 20000", func(c *container.Config) { c.LogMaxSize, c.LogMaxFile = 100_000, 3 })
	status := waitExit(t, r, id)
	rotated := crilog.Rotated(status.LogPath)
	if len(rotated) != 2 {
		t.Fatalf("rotated files = %v, want 2", rotated)
	}
	lines := logLines(t, append(rotated, status.LogPath)...)
	for i, line := range lines {
		if want := strconv.Itoa(20000 - len(lines) + i + 1); line != want {
			t.Fatalf("line %d is %q, want %q", i, line, want)
		}
	}
}

func TestExec(t *testing.T) {
	forHandlers(t, func(t *testing.T, handler string) {
		r, _, id := oneContainer(t, handler, "exec sleep 1000", func(c *container.Config) { c.Env = []string{"FROM=pod"} })
		exec := func(ctx context.Context, streams container.Streams, command ...string) (int, error) {
			return r.Exec(ctx, id, container.Exec{Command: command}, streams)
		}
		t.Run("streams and exit code", func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code, err := exec(t.Context(), container.Streams{Stdin: strings.NewReader("input"), Stdout: &stdout, Stderr: &stderr},
				"/bin/sh", "-c", "cat; echo $FROM >&2; exit 3")
			if code != 3 || err != nil || stdout.String() != "input" || stderr.String() != "pod\n" {
				t.Errorf("Exec = %d, %v; stdout %q, stderr %q", code, err, stdout.String(), stderr.String())
			}
		})
		t.Run("much output", func(t *testing.T) {
			var stdout bytes.Buffer
			code, err := exec(t.Context(), container.Streams{Stdout: &stdout}, "/bin/seq", "1", "200000")
			if code != 0 || err != nil || stdout.Len() != 1288895 {
				t.Errorf("Exec = %d, %v; %d bytes, want 1288895", code, err, stdout.Len())
			}
		})
		t.Run("terminal", func(t *testing.T) {
			var stdout bytes.Buffer
			sizes := make(chan container.Size, 1)
			sizes <- container.Size{Width: 91, Height: 37}
			code, err := exec(t.Context(), container.Streams{Stdout: &stdout, TTY: true, Resize: sizes},
				"/bin/sh", "-c", "for i in $(seq 100); do s=$(stty size 2>/dev/null); [ \"$s\" = '37 91' ] && break; sleep 0.05; done; echo $s")
			if code != 0 || err != nil || stdout.String() != "37 91\r\n" {
				t.Errorf("Exec = %d, %v; %q", code, err, stdout.String())
			}
		})
		t.Run("not there", func(t *testing.T) {
			if code, err := exec(t.Context(), container.Streams{}, "/bin/nothing"); err == nil {
				t.Errorf("Exec of what is not there = %d, no error", code)
			} else if !strings.Contains(err.Error(), "/bin/nothing") {
				t.Errorf("Exec: %v", err)
			}
		})
		t.Run("timeout kills", func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if _, err := exec(ctx, container.Streams{}, "/bin/sleep", "987.5"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Exec past its time: %v", err)
			}
			var stdout bytes.Buffer
			if _, err := exec(t.Context(), container.Streams{Stdout: &stdout}, "/bin/ps"); err != nil || strings.Contains(stdout.String(), "987.5") {
				t.Errorf("the process still runs, %v: %s", err, stdout.String())
			}
		})
		t.Run("leftover child", func(t *testing.T) {
			began := time.Now()
			var stdout bytes.Buffer
			code, err := exec(t.Context(), container.Streams{Stdout: &stdout}, "/bin/sh", "-c", "sleep 55 & echo done")
			if code != 0 || err != nil || stdout.String() != "done\n" || time.Since(began) > 30*time.Second {
				t.Errorf("Exec = %d, %v after %v: %q", code, err, time.Since(began), stdout.String())
			}
		})
	})
}

func TestStop(t *testing.T) {
	forHandlers(t, func(t *testing.T, handler string) {
		dirs := needNode(t)
		r, _ := startRuntime(t, dirs)
		image := loadBusybox(t, r)
		sb := newSandbox(t, r, dirs, "pod-1", func(sb *container.Sandbox) { sb.Runtime = handler })
		for name, tc := range map[string]struct {
			script, signal string
			grace          time.Duration
			want           int
		}{
			"polite":         {"trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done", "", time.Minute, 5},
			"own signal":     {"trap 'exit 6' USR1; echo ready; while :; do sleep 0.05; done", "SIGUSR1", time.Minute, 6},
			"deaf":           {"trap '' TERM; echo ready; while :; do sleep 0.05; done", "", 200 * time.Millisecond, 137},
			"no grace given": {"echo ready; while :; do sleep 0.05; done", "", 0, 137},
		} {
			t.Run(name, func(t *testing.T) {
				id := runContainer(t, r, sb, image, strings.ReplaceAll(name, " ", "-"), tc.script, func(c *container.Config) { c.StopSignal = tc.signal })
				status, err := r.Status(t.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				eventually(t, "the container is ready", func() bool { return len(logLines(t, status.LogPath)) > 0 })
				if err := r.Stop(t.Context(), id, tc.grace); err != nil {
					t.Fatal(err)
				}
				if status, err = r.Status(t.Context(), id); err != nil || status.ExitCode != tc.want {
					t.Errorf("exit code %d, %v; want %d", status.ExitCode, err, tc.want)
				}
				if err := r.Remove(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			})
		}
	})
}

func TestOutOfMemory(t *testing.T) {
	forHandlers(t, func(t *testing.T, handler string) {
		r, sb, id := oneContainer(t, handler, "exec dd if=/dev/zero of=/dev/null bs=200M count=1",
			func(c *container.Config) { c.Resources.MemoryLimitBytes = 20 << 20 })
		status := waitExit(t, r, id)
		if status.Reason != "OOMKilled" || !status.OOMKilled || status.ExitCode != 137 {
			t.Errorf("reason %q, OOM %v, exit code %d; want OOMKilled and 137", status.Reason, status.OOMKilled, status.ExitCode)
		}
		seen := map[container.EventType]bool{}
		for !seen[container.EventExited] || !seen[container.EventOOM] {
			select {
			case event := <-r.Events():
				if event.ContainerID != id || event.SandboxID != sb.ID {
					t.Errorf("event %+v is of another container", event)
				}
				seen[event.Type] = true
			case <-time.After(30 * time.Second):
				t.Fatalf("events = %v; want exited and oom", seen)
			}
		}
	})
}

func TestSharedNamespaces(t *testing.T) {
	dirs := needNode(t)
	r, _ := startRuntime(t, dirs)
	image := loadBusybox(t, r)
	output := func(sb container.Sandbox, id, command string) string {
		var stdout bytes.Buffer
		if code, err := r.Exec(t.Context(), id, container.Exec{Command: []string{"/bin/sh", "-c", command}}, container.Streams{Stdout: &stdout}); code != 0 || err != nil {
			t.Fatalf("%s: %q = %d, %v", sb.ID, command, code, err)
		}
		return strings.TrimSpace(stdout.String())
	}
	links := func(sb container.Sandbox, id string) []string {
		return strings.Fields(output(sb, id, "for n in ipc uts pid net; do ls -l /proc/1/ns/$n | awk '{print $NF}'; done"))
	}
	one := newSandbox(t, r, dirs, "pod-1", func(sb *container.Sandbox) { sb.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1"} })
	a := runContainer(t, r, one, image, "a", "exec sleep 1000", nil)
	b := runContainer(t, r, one, image, "b", "exec sleep 1000", nil)
	two := newSandbox(t, r, dirs, "pod-2", func(sb *container.Sandbox) { sb.ShareProcs = true })
	c := runContainer(t, r, two, image, "c", "exec sleep 1000", nil)
	d := runContainer(t, r, two, image, "d", "exec sleep 2000", nil)
	la, lb, lc := links(one, a), links(one, b), links(two, c)
	if la[0] != lb[0] || la[1] != lb[1] || la[2] == lb[2] {
		t.Errorf("namespaces of one pod: %v and %v; want the same ipc and uts, another pid", la, lb)
	}
	if la[0] == lc[0] || la[1] == lc[1] {
		t.Errorf("namespaces of two pods: %v and %v; want others", la, lc)
	}
	if got := output(one, b, "hostname; cat /proc/sys/kernel/shm_rmid_forced"); got != "host-pod-1\n1" {
		t.Errorf("host name and sysctl = %q", got)
	}
	output(one, a, "echo shared > /dev/shm/x")
	if got := output(one, b, "cat /dev/shm/x"); got != "shared" {
		t.Errorf("/dev/shm of the other container = %q", got)
	}
	if got := output(two, d, "ps"); !strings.Contains(got, "sleep 1000") || !strings.Contains(got, "gantry-shim init") {
		t.Errorf("shared PID namespace: %s", got)
	}
	for _, sb := range []container.Sandbox{one, two} {
		if err := r.RemoveSandbox(t.Context(), sb.ID); err != nil {
			t.Fatal(err)
		}
	}
	hostname, err := os.Hostname()
	if err != nil || strings.HasPrefix(hostname, "host-pod") {
		t.Errorf("the node's own name is %q, %v", hostname, err)
	}
}

// TestZombies runs a process 1 that collects none of its children.
func TestZombies(t *testing.T) {
	r, sb, id := oneContainer(t, handlerShim, "for i in $(seq 20); do sleep 0.01 & done; exec sleep 1000", nil)
	zombies := func() int {
		var stdout bytes.Buffer
		if _, err := r.Exec(t.Context(), id, container.Exec{Command: []string{"/bin/sh", "-c", "cat /proc/[0-9]*/stat"}}, container.Streams{Stdout: &stdout}); err != nil {
			t.Fatal(err)
		}
		return strings.Count(stdout.String(), ") Z ")
	}
	eventually(t, "children of the container are zombies", func() bool { return zombies() == 20 })
	pid := mustStatus(t, r, id).PID
	if err := r.RemoveSandbox(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d is still there: %v", pid, err)
	}
	if left := zombiesNamed(t, "sleep"); left != 0 {
		t.Errorf("%d zombies are left on the node", left)
	}
}

func zombiesNamed(t *testing.T, name string) int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(data), "("+name+") Z ") {
			count++
		}
	}
	return count
}

func mustStatus(t *testing.T, r *Runtime, id string) container.Status {
	t.Helper()
	status, err := r.Status(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

func TestAttach(t *testing.T) {
	forHandlers(t, func(t *testing.T, handler string) {
		r, _, id := oneContainer(t, handler, `while read line; do echo "got $line"; [ "$line" = end ] && exit 9; done; exit 1`,
			func(c *container.Config) { c.Stdin = true })
		stdin, input := io.Pipe()
		var stdout lockedBuffer
		done := make(chan error, 1)
		go func() {
			done <- r.Attach(t.Context(), id, container.Streams{Stdin: stdin, Stdout: &stdout, Stderr: io.Discard})
		}()
		for _, line := range []string{"one", "two", "end"} {
			if _, err := fmt.Fprintln(input, line); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("Attach does not end with the container")
		}
		if got, want := stdout.String(), "got one\ngot two\ngot end\n"; got != want {
			t.Errorf("attached output = %q, want %q", got, want)
		}
		if status := waitExit(t, r, id); status.ExitCode != 9 {
			t.Errorf("exit code %d, want 9", status.ExitCode)
		}
		_ = input.Close()
	})
}

// lockedBuffer is a buffer that two goroutines may use.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestSecurity(t *testing.T) {
	dirs := needNode(t)
	r, _ := startRuntime(t, dirs)
	image := loadBusybox(t, r)
	sb := newSandbox(t, r, dirs, "pod-1", nil)
	uid, low := int64(1000), -900
	for name, tc := range map[string]struct {
		change func(*container.Config)
		script string
		want   []string
	}{
		"root by default":  {func(*container.Config) {}, "id -u; id -G", []string{"0", "0"}},
		"user by name":     {func(c *container.Config) { c.Security.UserName = "web" }, "id -u; id -g", []string{"1000", "1000"}},
		"groups of image":  {func(c *container.Config) { c.Security.User = &uid; c.Security.MergeImageGroups = true }, "id -G", []string{"1000 2000"}},
		"groups strict":    {func(c *container.Config) { c.Security.User = &uid; c.Security.SupplementalGroups = []int64{77} }, "id -G", []string{"1000 77"}},
		"read-only root":   {func(c *container.Config) { c.Security.ReadOnlyRootfs = true }, "touch /x 2>/dev/null || echo refused", []string{"refused"}},
		"masked":           {func(*container.Config) {}, "ls /sys/firmware | awk 'END {print NR}'", []string{"0"}},
		"built-in seccomp": {func(c *container.Config) { c.Security.Seccomp = "runtime" }, "awk '/^Seccomp:/{print $2}' /proc/self/status", []string{"2"}},
		"no new rights":    {func(c *container.Config) { c.Security.NoNewPrivileges = true }, "awk '/^NoNewPrivs:/{print $2}' /proc/self/status", []string{"1"}},
		"capabilities": {func(c *container.Config) {
			c.Security.DropCapabilities, c.Security.AddCapabilities = []string{"ALL"}, []string{"NET_ADMIN"}
		}, "awk '/^CapEff:/{print $2}' /proc/self/status", []string{"0000000000001000"}},
		"privileged":    {func(c *container.Config) { c.Security.Privileged = true }, "ls /dev/kmsg; touch /proc/sys/kernel/hostname && echo writable", []string{"/dev/kmsg", "writable"}},
		"low OOM score": {func(c *container.Config) { c.Resources.OOMScoreAdj = &low }, "echo started", []string{"started"}},
		"mount": {func(c *container.Config) {
			c.Mounts = []container.Mount{{HostPath: filepath.Join(filepath.Dir(dirs.root), "vol"), ContainerPath: "/vol", ReadOnly: true}}
		}, "touch /vol/x 2>/dev/null || echo refused", []string{"refused"}},
		"device": {func(c *container.Config) {
			c.Devices = []container.Device{{HostPath: "/dev/full", ContainerPath: "/dev/mine"}}
		}, "echo x 2>/dev/null > /dev/mine || echo full", []string{"full"}},
		"working folder": {func(c *container.Config) { c.WorkingDir = "/new/place" }, "pwd", []string{"/new/place"}},
	} {
		t.Run(name, func(t *testing.T) {
			id := runContainer(t, r, sb, image, strings.ReplaceAll(name, " ", "-"), tc.script, tc.change)
			status := waitExit(t, r, id)
			if got := logLines(t, status.LogPath); !slices.Equal(got, tc.want) {
				t.Errorf("output = %q, want %q", got, tc.want)
			}
			if err := r.Remove(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestStats(t *testing.T) {
	r, sb, id := oneContainer(t, handlerShim, "while :; do :; done", nil)
	eventually(t, "the container uses CPU time", func() bool {
		own, err := r.Stats(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		pod, err := r.SandboxStats(t.Context(), sb.ID)
		if err != nil {
			t.Fatal(err)
		}
		return own.CPUNanos > 50e6 && pod.CPUNanos >= own.CPUNanos && own.WorkingSetBytes > 0 && own.WorkingSetBytes <= own.MemoryBytes && own.Pids == 1
	})
}

func TestErrors(t *testing.T) {
	dirs := needNode(t)
	r, _ := startRuntime(t, dirs)
	image := loadBusybox(t, r)
	sb := newSandbox(t, r, dirs, "pod-1", nil)
	cfg := container.Config{SandboxID: sb.ID, Name: "main", Image: image, Command: []string{"/no/such/program"}, LogPath: filepath.Join(sb.LogDir, "0.log")}
	id, err := r.Create(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context(), id); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("Start of what is not there: %v", err)
	}
	if err := r.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*container.Config){
		"no image":   func(c *container.Config) { c.Image = "nothing:1" },
		"no sandbox": func(c *container.Config) { c.SandboxID = "nothing" },
		"no user":    func(c *container.Config) { c.Security.UserName = "nobody-here" },
		"bad signal": func(c *container.Config) { c.StopSignal = "SIGNOTHING" },
	} {
		bad := cfg
		change(&bad)
		if id, err := r.Create(t.Context(), bad); err == nil {
			t.Errorf("%s: Create = %s, no error", name, id)
		}
	}
	if names := folderNames(filepath.Join(dirs.state, bundlesDir)); len(names) != 0 {
		t.Errorf("bundles are left: %v", names)
	}
	if err := r.Remove(t.Context(), "nothing"); err != nil {
		t.Errorf("Remove of what is not there: %v", err)
	}
}

// TestShimDies kills a pod's shim: the pod fails, alone, and can be made again.
func TestShimDies(t *testing.T) {
	dirs := needNode(t)
	r, _ := startRuntime(t, dirs)
	image := loadBusybox(t, r)
	sb := newSandbox(t, r, dirs, "pod-1", nil)
	other := newSandbox(t, r, dirs, "pod-2", nil)
	id := runContainer(t, r, sb, image, "main", "exec sleep 1000", nil)
	bystander := runContainer(t, r, other, image, "main", "exec sleep 1000", nil)
	proc, err := readShim(dirs.state, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := proc.signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := waitExit(t, r, id); status.Reason != reasonUnknown || status.ExitCode == 0 {
		t.Errorf("after its shim died: %+v", status)
	}
	if state := mustStatus(t, r, bystander).State; state != container.StateRunning {
		t.Errorf("the other pod is %s", state)
	}
	eventually(t, "the sandbox can be made again", func() bool { return r.sandboxes[sb.ID].conn() == nil })
	if err := r.EnsureSandbox(t.Context(), sb); err != nil {
		t.Fatal(err)
	}
	again := runContainer(t, r, sb, image, "main", "exit 3", func(c *container.Config) { c.Attempt = 1 })
	if status := waitExit(t, r, again); status.ExitCode != 3 {
		t.Errorf("exit code %d, want 3", status.ExitCode)
	}
}

// TestSandboxIsCutOff gives up a sandbox while its shim starts: the shim does not stay behind.
func TestSandboxIsCutOff(t *testing.T) {
	dirs := needNode(t)
	r, _ := startRuntime(t, dirs)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	sb := container.Sandbox{
		ID: "cut-off", Namespace: "default", Name: "cut-off", Hostname: "cut-off",
		CgroupPath: dirs.cgroup + "/cut-off", LogDir: filepath.Join(dirs.logs, "cut-off"), NetNSPath: "/proc/self/ns/net",
	}
	if err := r.EnsureSandbox(ctx, sb); err == nil {
		t.Fatal("a sandbox whose maker has given up is made")
	}
	if proc, err := readShim(dirs.state, sb.ID); err == nil && proc.alive() {
		t.Errorf("the shim %d is left", proc.PID)
	}
	if err := r.EnsureSandbox(t.Context(), sb); err != nil {
		t.Errorf("the next try: %v", err)
	}
}

// TestStartIsCutOff gives up starts at every moment of theirs: nothing stays behind that keeps the
// sandbox from being removed.
func TestStartIsCutOff(t *testing.T) {
	dirs := needNode(t)
	r, _ := startRuntime(t, dirs)
	image := loadBusybox(t, r)
	const step = 5 * time.Millisecond
	for i := range 12 {
		sb := newSandbox(t, r, dirs, fmt.Sprintf("cut-off-%d", i), nil)
		id, err := r.Create(t.Context(), container.Config{
			SandboxID: sb.ID, Name: "main", Image: image, Command: []string{"/bin/sleep", "1000"}, LogPath: filepath.Join(dirs.logs, sb.ID, "0.log"),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context()) // no deadline: the shim would hear of it
		timer := time.AfterFunc(time.Duration(i)*step, cancel)
		_ = r.Start(ctx, id)
		timer.Stop()
		cancel()
		if err := r.RemoveSandbox(t.Context(), sb.ID); err != nil {
			t.Errorf("start given up after %v: %v", time.Duration(i)*step, err)
		}
		if _, err := os.Stat(r.bundle(id)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("start given up after %v: the bundle is left: %v", time.Duration(i)*step, err)
		}
	}
}

// TestBundleWithMountPoints removes a root file system's folder with what runc made in it when
// nothing was mounted there any more, but no folder with content.
func TestBundleWithMountPoints(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rootfs")
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "etc"), 0o755), os.WriteFile(filepath.Join(dir, "etc", "hosts"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := removeStubs(dir); err != nil {
		t.Error(err)
	}
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "data"), []byte("precious"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := removeStubs(dir); err == nil {
		t.Error("a folder with content is removed")
	}
	if _, err := os.Stat(filepath.Join(dir, "data")); err != nil {
		t.Error(err)
	}
}

func TestStopAll(t *testing.T) {
	forHandlers(t, func(t *testing.T, handler string) {
		dirs := needNode(t)
		r, stop := startRuntime(t, dirs)
		image := loadBusybox(t, r)
		sb := newSandbox(t, r, dirs, "pod-1", func(sb *container.Sandbox) { sb.Runtime = handler; sb.ShareProcs = handler == handlerShim })
		id := runContainer(t, r, sb, image, "main", "sleep 1000 & sleep 2000", nil)
		pid := mustStatus(t, r, id).PID
		stop()
		if err := unix.Kill(pid, 0); err != nil {
			t.Fatalf("the container ended with the runtime: %v", err)
		}
		// What is not ours stays, and makes it fail.
		foreign := filepath.Join(dirs.root, "foreign")
		if err := os.Mkdir(foreign, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", foreign, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		err := StopAll(t.Context(), dirs.root, dirs.state)
		if err == nil || !strings.Contains(err.Error(), foreign) {
			t.Errorf("StopAll with a foreign mount: %v", err)
		}
		eventually(t, "init collects the killed process", func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) })
		if err := unix.Unmount(foreign, 0); err != nil {
			t.Error(err)
		}
		if err := StopAll(t.Context(), dirs.root, dirs.state); err != nil {
			t.Error(err)
		}
		checkNothingLeft(t, filepath.Dir(dirs.root))
		// And it can be started again: the container is known, and known to have ended.
		r, _ = startRuntime(t, dirs)
		if status := mustStatus(t, r, id); status.State != container.StateExited {
			t.Errorf("after StopAll and a start: %+v", status)
		}
		if err := r.RemoveSandbox(t.Context(), sb.ID); err != nil {
			t.Error(err)
		}
	})
}

func TestExecFoldersComeAndGo(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "execs")
	stop := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.Remove(parent) // as the end of the last exec does
			}
		}
	})
	for i := range 2000 {
		dir := filepath.Join(parent, strconv.Itoa(i))
		if err := makeExecDir(dir); err != nil {
			t.Error(err)
			break
		}
		if err := os.Remove(dir); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	group.Wait()
}
