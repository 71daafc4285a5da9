//go:build linux

package lifecycle

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// helperEnv makes the test binary play another gantry process.
const helperEnv = "_LIFECYCLE_TEST_HELPER"

func TestMain(m *testing.M) {
	if role := os.Getenv(helperEnv); role != "" {
		os.Exit(helper(role, os.Args[1:]))
	}
	os.Exit(m.Run())
}

func helper(role string, args []string) int {
	starter, err := FindStarter()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, stop := WithSignals(context.Background(), os.Exit)
	defer stop()
	switch role {
	case "hold": // hold the data dir until asked to stop
		lock, err := Acquire(args[0])
		if err != nil {
			starter.Failed(err)
			fmt.Println(err)
			return 1
		}
		fmt.Println("holding")
		NewSteps(starter).Say("lock taken")
		starter.Ready()
		<-ctx.Done()
		if lock.Unlock() != nil {
			return 1
		}
	case "stubborn": // take the first signal and go on
		fmt.Println("up")
		<-ctx.Done()
		fmt.Println("asked")
		select {}
	case "fail":
		fmt.Println("some log line")
		NewSteps(starter).Say("one %d", 1)
		starter.Failed(errors.New("it is\nbroken"))
		return 1
	case "die":
		fmt.Fprintln(os.Stderr, "panic: something")
		return 7
	}
	return 0
}

// startHelper runs the test binary in a role and returns it with its output.
func startHelper(t *testing.T, role string, args ...string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+role)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd, bufio.NewScanner(out)
}

func TestLockIsExclusive(t *testing.T) {
	dir := t.TempDir()
	if _, running, err := Holder(dir); running || err != nil {
		t.Errorf("Holder of a new dir = %v, %v", running, err)
	}
	cmd, out := startHelper(t, "hold", dir)
	if !out.Scan() || out.Text() != "holding" {
		t.Fatalf("helper says %q", out.Text())
	}
	_, err := Acquire(dir)
	pid, ok := AlreadyRunning(err)
	if !ok || pid != cmd.Process.Pid || !strings.Contains(err.Error(), strconv.Itoa(pid)) || !strings.Contains(err.Error(), "gantry down") {
		t.Errorf("Acquire = %v, want a LockedError for process %d", err, cmd.Process.Pid)
	}
	if pid, running, err := Holder(dir); pid != cmd.Process.Pid || !running || err != nil {
		t.Errorf("Holder = %d, %v, %v", pid, running, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if was, err := Terminate(ctx, dir); !was || err != nil {
		t.Errorf("Terminate = %v, %v", was, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the holder ended with %v", err)
	}
	lock, err := Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(lock.Unlock(), lock.Unlock()); err != nil {
		t.Error(err)
	}
	if was, err := Terminate(ctx, dir); was || err != nil {
		t.Errorf("Terminate of nothing = %v, %v", was, err)
	}
}

func TestAwaitStopped(t *testing.T) {
	dir := t.TempDir()
	lock, err := Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	if waited, err := AwaitStopped(t.Context(), dir); waited || err != nil {
		t.Errorf("with a gantry that goes on: %v, %v", waited, err)
	}
	if err := lock.Stopping(); err != nil {
		t.Fatal(err)
	}
	if pid, running, err := Holder(dir); pid != os.Getpid() || !running || err != nil {
		t.Errorf("Holder of one that stops = %d, %v, %v", pid, running, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if waited, err := AwaitStopped(ended, dir); !waited || !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v, %v", waited, err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := AwaitStopped(t.Context(), dir)
		done <- err
	}()
	time.AfterFunc(3*pollEvery, func() { _ = lock.Unlock() })
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, running, err := Holder(dir); running || err != nil {
		t.Errorf("afterwards Holder = %v, %v", running, err)
	}
}

func TestLockEndsWithProcess(t *testing.T) {
	dir := t.TempDir()
	cmd, out := startHelper(t, "hold", dir)
	out.Scan()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	lock, err := Acquire(dir)
	if err != nil {
		t.Fatalf("a killed process keeps the lock: %v", err)
	}
	_ = lock.Unlock()
}

func TestSecondSignalExits(t *testing.T) {
	cmd, out := startHelper(t, "stubborn")
	for _, want := range []string{"up", "asked"} {
		if !out.Scan() || out.Text() != want {
			t.Fatalf("helper says %q, want %q", out.Text(), want)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 128+15 {
		t.Errorf("ended with %v, want 143", err)
	}
}

func detach(t *testing.T, role string, args ...string) (steps string, log string, err error) {
	t.Helper()
	var out bytes.Buffer
	path := filepath.Join(t.TempDir(), "log", "gantry.log")
	err = Detach(t.Context(), DetachOptions{
		Executable: os.Args[0], Args: args, Env: append(os.Environ(), helperEnv+"="+role), LogPath: path, Steps: NewSteps(&out),
	})
	text, readErr := os.ReadFile(path)
	if readErr != nil {
		t.Fatal(readErr)
	}
	return out.String(), string(text), err
}

func TestDetach(t *testing.T) {
	dir := t.TempDir()
	steps, log, err := detach(t, "hold", dir)
	if err != nil || steps != "lock taken\n" || log != "holding\n" {
		t.Fatalf("Detach = %v, steps %q, log %q", err, steps, log)
	}
	pid, running, err := Holder(dir)
	if err != nil || !running || pid == os.Getpid() {
		t.Fatalf("Holder = %d, %v, %v", pid, running, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := Terminate(ctx, dir); err != nil {
		t.Error(err)
	}

	if steps, _, err = detach(t, "fail"); err == nil || steps != "one 1\n" ||
		!strings.HasPrefix(err.Error(), "it is\nbroken\nlast lines of ") || !strings.Contains(err.Error(), "some log line") {
		t.Errorf("a failure gives %v, steps %q", err, steps)
	}
	if _, _, err = detach(t, "die"); err == nil || !strings.Contains(err.Error(), "exit status 7") || !strings.Contains(err.Error(), "panic: something") {
		t.Errorf("a death gives %v", err)
	}
}

func TestStarterNil(t *testing.T) {
	starter, err := FindStarter()
	if starter != nil || err != nil {
		t.Errorf("FindStarter = %v, %v", starter, err)
	}
	starter.Ready()
	starter.Failed(errors.New("x"))
}

func TestCheckPort(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(listener.Addr().String())
	err = CheckPort(addr, "--listen")
	if err == nil || !strings.Contains(err.Error(), "in use by ") || !strings.Contains(err.Error(), fmt.Sprintf("process id %d", os.Getpid())) {
		t.Errorf("CheckPort = %v, want this process named", err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if err := CheckPort(addr, "--listen"); err != nil {
		t.Errorf("CheckPort of a free port = %v", err)
	}
	err = CheckPort(netip.MustParseAddrPort("192.0.2.77:6443"), "--listen")
	if err == nil || !strings.Contains(err.Error(), "no network interface of this machine has the address 192.0.2.77") {
		t.Errorf("CheckPort of a foreign address = %v", err)
	}
}

func TestCheckDataDir(t *testing.T) {
	dir := t.TempDir()
	if err := CheckDataDir(filepath.Join(dir, "a", "b")); err != nil {
		t.Error(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CheckDataDir(file); err == nil || !strings.Contains(err.Error(), "choose another --data-dir") {
		t.Errorf("CheckDataDir of a file = %v", err)
	}
	if err := CheckDataDir("/proc/gantry"); err == nil {
		t.Error("a data dir in /proc was accepted")
	}
	if err := checkFree("/x", 100<<20); err == nil || !strings.Contains(err.Error(), "100 MB left") {
		t.Errorf("checkFree = %v", err)
	}
}

func TestHolderIsDying(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	// For an instant after exec a process has no command line either.
	for deadline := time.Now().Add(10 * time.Second); dying(cmd.Process.Pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a process that runs is called dying")
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if !dying(cmd.Process.Pid) {
		t.Error("a killed process is not called dying")
	}
}
