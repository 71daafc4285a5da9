//go:build linux

package containerd

import (
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/shim"
)

// sinceBoot is the clock of deadlines.
func sinceBoot(t *testing.T) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}

// fence moves the deadline of a sandbox.
func fence(t *testing.T, r *Runtime, id string, at time.Duration) (fired bool) {
	t.Helper()
	fired, err := r.Fence(t.Context(), id, at)
	if err != nil {
		t.Fatal(err)
	}
	return fired
}

// TestFence lets a deadline pass: both containers are killed and say why, and nothing starts in the pod any more.
// Before, it is moved again and again, and taken away.
func TestFence(t *testing.T) {
	dirs := needNode(t)
	r, _ := startRuntime(t, dirs)
	image := loadBusybox(t, r)
	sb := newSandbox(t, r, dirs, "pod-1", nil)
	create := func(name, script string) string {
		return runContainer(t, r, sb, image, name, script, nil)
	}
	one := create("one", "trap '' TERM; while :; do sleep 1; done")
	two := create("two", "sh -c 'while :; do sleep 1; done' & wait")
	const soon = 3 * time.Second // long enough for two calls on a busy machine
	passes := func(at time.Duration) {
		eventually(t, "time passes", func() bool { return sinceBoot(t) > at+200*time.Millisecond })
	}
	for _, later := range []time.Duration{sinceBoot(t) + time.Hour, 0} {
		at := sinceBoot(t) + soon
		if fence(t, r, sb.ID, at) || fence(t, r, sb.ID, later) {
			t.Fatal("the deadline passed while it was moved")
		}
		passes(at)
	}
	for _, id := range []string{one, two} {
		if status, err := r.Status(t.Context(), id); err != nil || status.State != container.StateRunning {
			t.Fatalf("without a deadline: %+v, %v", status, err)
		}
	}
	fence(t, r, sb.ID, sinceBoot(t)+soon/10)
	for _, id := range []string{one, two} {
		if status := waitExit(t, r, id); status.Reason != container.ReasonFenced || status.ExitCode != 137 {
			t.Errorf("%s ended with %d, %s; want 137, Fenced", status.Name, status.ExitCode, status.Reason)
		}
	}
	if !fence(t, r, sb.ID, sinceBoot(t)+time.Hour) {
		t.Error("a deadline that has passed can be moved")
	}
	id, err := r.Create(t.Context(), container.Config{SandboxID: sb.ID, Name: "three", Image: image, Command: []string{"/bin/sleep", "60"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context(), id); err == nil {
		t.Error("a container started in a fenced pod")
	}
	if fence(t, r, "nothing", sinceBoot(t)) {
		t.Error("a sandbox that is not there was fenced")
	}
	stock := newSandbox(t, r, dirs, "pod-2", func(sb *container.Sandbox) { sb.Runtime = handlerRunc })
	if _, err := r.Fence(t.Context(), stock.ID, sinceBoot(t)); !errors.Is(err, container.ErrNoFence) {
		t.Errorf("fencing a stock sandbox: %v", err)
	}
}

// TestFenceWithoutMainProcess kills, or stops, the process that would have moved the deadline: the pod is killed all the same,
// one without a deadline runs on, and the next runtime is told why.
func TestFenceWithoutMainProcess(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"killed": unix.SIGKILL, "stopped": unix.SIGSTOP} {
		t.Run(name, func(t *testing.T) {
			dirs := needNode(t)
			r, stop := startRuntime(t, dirs)
			image := loadBusybox(t, r)
			ids := map[string]string{}
			for pod, script := range map[string]string{"pod-1": "sleep 6543211", "pod-2": "sleep 6543212"} {
				sb := newSandbox(t, r, dirs, pod, nil)
				ids[pod] = runContainer(t, r, sb, image, "sleeper", script, nil)
			}
			stop()
			child := startChild(t, dirs)
			end := sync.OnceFunc(func() {
				_ = child.Process.Kill() // gone already is fine
				_ = child.Wait()         // it was killed
			})
			defer end()
			// This process speaks to the shim as the child would.
			_, socket := socketPaths(dirs.state, "pod-1")
			if _, err := shim.Fence(t.Context(), socket, sinceBoot(t)+700*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			if err := child.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the fenced pod is killed", func() bool { return processOf(t, "6543211") == 0 })
			findProcess(t, "6543212")
			end()
			r, _ = startRuntime(t, dirs)
			if status := waitExit(t, r, ids["pod-1"]); status.Reason != container.ReasonFenced {
				t.Errorf("the fenced container says %s, want Fenced", status.Reason)
			}
			if status, err := r.Status(t.Context(), ids["pod-2"]); err != nil || status.State != container.StateRunning {
				t.Errorf("the other is %s, %v", status.State, err)
			}
		})
	}
}
