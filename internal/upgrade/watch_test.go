//go:build linux

package upgrade

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// sleeper starts a program that sleeps; the test reaps it.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	return cmd
}

// TestWatch runs the watchdog under a supervisor, as systemd is one, so that it does not become another program.
func TestWatch(t *testing.T) {
	older, newer := Program{Hash: hashOf("old")}, Program{Hash: hashOf("new")}
	for _, test := range []struct {
		name   string
		limit  time.Duration
		do     func(t *testing.T, d Dir, program *exec.Cmd)
		want   State
		reason string
		lives  bool
	}{
		{name: "it works", limit: time.Hour, want: Done, lives: true, do: func(t *testing.T, d Dir, _ *exec.Cmd) {
			if err := d.Confirm(); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "it ends", limit: time.Hour, want: Failed, reason: "ended", do: func(_ *testing.T, _ Dir, program *exec.Cmd) { _ = program.Process.Kill() }},
		{name: "it hangs", limit: time.Nanosecond, want: Failed, reason: "not ready in time", do: func(*testing.T, Dir, *exec.Cmd) {}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", "/nonexistent")
			d, program := Dir(t.TempDir()), sleeper(t)
			if err := d.write(Note{State: Trial, Current: newer, Previous: older, Deadline: time.Now().Add(test.limit)}); err != nil {
				t.Fatal(err)
			}
			watched := make(chan error, 1)
			go func() { watched <- d.Watch(t.Context(), program.Process.Pid, nil) }()
			test.do(t, d, program)
			if err := <-watched; err != nil {
				t.Fatal(err)
			}
			n, _, err := d.Read()
			if err != nil || n.State != test.want || !strings.Contains(n.Failure, test.reason) {
				t.Errorf("%+v, %v", n, err)
			}
			if lives := startOf(program.Process.Pid) != ""; lives != test.lives {
				t.Errorf("the process lives: %v", lives)
			}
		})
	}
	if startOf(os.Getpid()) == "" {
		t.Error("this process is taken for dead")
	}
}
