//go:build linux

package containerd

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/crilog"
)

// runChild runs a runtime in a process of its own, with the folders that the environment
// names, until the process is killed. It says READY when it is.
func runChild() error {
	base := os.Getenv(childEnv)
	dirs := testDirs{root: filepath.Join(base, "root"), state: filepath.Join(base, "st"), logs: filepath.Join(base, "log")}
	opts, err := dirs.options(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	r, err := New(opts)
	if err != nil {
		return err
	}
	ctx := context.Background()
	go func() {
		<-r.Ready()
		for _, id := range strings.Fields(os.Getenv(childEnv + "_START")) {
			if err := r.Start(ctx, id); err != nil {
				fmt.Println("ERROR", err)
			}
		}
		fmt.Println("READY")
	}()
	return r.Run(ctx)
}

// startChild starts runChild, lets it start containers and waits until it is ready.
func startChild(t *testing.T, dirs testDirs, start ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+filepath.Dir(dirs.root), childEnv+"_START="+strings.Join(start, " "))
	cmd.Stderr = os.Stderr
	// Should this process die, nothing of it may stay.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "READY" {
		t.Fatalf("child said %q, %v", line, err)
	}
	return cmd
}

// TestKillMainProcess kills the process that runs the runtime while a container logs about
// a megabyte a second: it keeps running, is not blocked, loses no line, and the next
// runtime has it with the same process. One that ends meanwhile keeps its exit code.
func TestKillMainProcess(t *testing.T) {
	for name, handler := range map[string]string{"shim": handlerShim, "stock": handlerRunc} {
		t.Run(name, func(t *testing.T) { testKillMainProcess(t, handler) })
	}
}

func testKillMainProcess(t *testing.T, handler string) {
	dirs := needNode(t)
	r, stop := startRuntime(t, dirs)
	image := loadBusybox(t, r)
	sb := newSandbox(t, r, dirs, "pod-1", func(sb *container.Sandbox) { sb.Runtime = handler })
	create := func(name, script string) container.Status {
		id, err := r.Create(t.Context(), container.Config{
			SandboxID: sb.ID, Name: name, Image: image, Command: []string{"/bin/sh", "-c", script},
			LogPath: filepath.Join(sb.LogDir, name+".log"), LogMaxSize: 1 << 20, LogMaxFile: 50,
			Labels: map[string]string{"name": name},
		})
		if err != nil {
			t.Fatal(err)
		}
		status, err := r.Status(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return status
	}
	// 100 bytes a line, 100 lines each 10 ms.
	logger := create("logger", `awk 'BEGIN { for (i = 0; ; i++) { printf "%08d %091d\n", i, 0; if (i % 100 == 99) { fflush(); system("sleep 0.01") } } }'`)
	ender := create("ender", "sleep 1; echo bye; exit 42")
	stop()

	child := startChild(t, dirs, logger.ID, ender.ID)
	eventually(t, "the container logs", func() bool { return len(logLines(t, logger.LogPath)) > 500 })
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	pid := findProcess(t, "awk", "printf \"%08d")
	if handler == handlerShim {
		before := countLines(t, logger.LogPath)
		eventually(t, "the container logs on without a main process", func() bool { return countLines(t, logger.LogPath) > before+3000 })
	}
	eventually(t, "the other container ends while nobody watches", func() bool { return processOf(t, "echo bye") == 0 })

	r, _ = startRuntime(t, dirs)
	status, err := r.Status(t.Context(), logger.ID)
	if err != nil {
		t.Fatal(err)
	}
	if status.State != container.StateRunning || !isAncestor(status.PID, pid) {
		t.Errorf("after the restart: %s with PID %d; want running and above process %d", status.State, status.PID, pid)
	}
	if status.Labels["name"] != "logger" || status.StartedAt.IsZero() {
		t.Errorf("after the restart: %+v", status)
	}
	if status := waitExit(t, r, ender.ID); status.ExitCode != 42 || status.Reason != "Error" {
		t.Errorf("ended meanwhile: exit code %d, reason %q; want 42, Error", status.ExitCode, status.Reason)
	}
	// What a stock shim's container says last, with nobody there to read it, is lost.
	if got := logLines(t, ender.LogPath); handler == handlerShim && !slices.Equal(got, []string{"bye"}) {
		t.Errorf("log of the container that ended meanwhile = %q", got)
	}
	before := countLines(t, logger.LogPath)
	eventually(t, "the container logs on after the restart", func() bool { return countLines(t, logger.LogPath) > before+1000 })
	if err := r.Stop(t.Context(), logger.ID, 0); err != nil {
		t.Fatal(err)
	}
	lines := logLines(t, append(crilog.Rotated(logger.LogPath), logger.LogPath)...)
	for i, line := range lines {
		if !strings.HasPrefix(line, fmt.Sprintf("%08d ", i)) || len(line) != 100 {
			if i == len(lines)-1 {
				break // cut by the kill
			}
			t.Fatalf("line %d is %q: a line was lost or torn", i, line)
		}
	}
	t.Logf("%d lines, none lost", len(lines))
	if err := r.RemoveSandbox(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
}

func countLines(t *testing.T, path string) int {
	t.Helper()
	return len(logLines(t, append(crilog.Rotated(path), path)...))
}

// findProcess returns the process with all words in its command line.
func findProcess(t *testing.T, words ...string) int {
	t.Helper()
	pid := processOf(t, words...)
	if pid == 0 {
		t.Fatalf("no process has %q in its command line", words)
	}
	return pid
}

// processOf is findProcess, with 0 for none.
func processOf(t *testing.T, words ...string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		data, err := os.ReadFile("/proc/" + entry.Name() + "/cmdline")
		if err == nil && !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(string(data), word) }) {
			return pid
		}
	}
	return 0
}

// isAncestor reports whether pid is process or above it.
func isAncestor(pid, process int) bool {
	for process > 1 {
		if process == pid {
			return true
		}
		data, err := os.ReadFile("/proc/" + strconv.Itoa(process) + "/stat")
		if err != nil {
			return false
		}
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		process, _ = strconv.Atoi(fields[1])
	}
	return false
}
