//go:build linux

package logind

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
)

// fakeLogind answers as systemd-logind and systemd do, on a bus of the test's own.
type fakeLogind struct {
	t     *testing.T
	conn  *dbus.Conn
	props *prop.Properties
	conf  string

	mu    sync.Mutex // guards the fields below
	locks []*os.File // our ends: a read ends when the other is closed
}

// Inhibit implements org.freedesktop.login1.Manager.
func (f *fakeLogind) Inhibit(what, who, _, mode string) (dbus.UnixFD, *dbus.Error) {
	if what != "shutdown" || who != "gantry" || mode != "delay" {
		return 0, dbus.MakeFailedError(os.ErrInvalid)
	}
	ours, theirs, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.locks = append(f.locks, ours)
	fd := dbus.UnixFD(theirs.Fd())
	// godbus duplicates the descriptor when it sends the answer.
	time.AfterFunc(200*time.Millisecond, func() { _ = theirs.Close() })
	return fd, nil
}

// KillUnit implements org.freedesktop.systemd1.Manager: logind reads its configuration again.
func (f *fakeLogind) KillUnit(unit, _ string, _ int32) *dbus.Error {
	text, err := os.ReadFile(filepath.Join(f.conf, delayFile))
	if err != nil || unit != "systemd-logind.service" {
		return dbus.MakeFailedError(os.ErrInvalid)
	}
	for line := range strings.Lines(string(text)) {
		if seconds, ok := strings.CutPrefix(strings.TrimSpace(line), "InhibitDelayMaxSec="); ok {
			if d, err := time.ParseDuration(seconds + "s"); err == nil {
				f.props.SetMust(manager, "InhibitDelayMaxUSec", uint64(d/time.Microsecond))
			}
		}
	}
	return nil
}

// released reports whether the n-th lock was given back.
func (f *fakeLogind) released(n int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.locks) <= n {
		return false
	}
	_ = f.locks[n].SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err := f.locks[n].Read(make([]byte, 1))
	return err != nil && !os.IsTimeout(err)
}

func (f *fakeLogind) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.locks)
}

func (f *fakeLogind) tell(stopping bool) {
	if err := f.conn.Emit(path, manager+".PrepareForShutdown", stopping); err != nil {
		f.t.Error(err)
	}
}

// newBus starts a bus and a logind on it.
func newBus(t *testing.T) (*fakeLogind, func(ctx context.Context) (*dbus.Conn, error)) {
	t.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("dbus-daemon is not installed")
	}
	cmd := exec.CommandContext(t.Context(), daemon, "--session", "--nofork", "--print-address", "--address=unix:tmpdir="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	connect := func(ctx context.Context) (*dbus.Conn, error) {
		return dbus.Connect(strings.TrimSpace(address), dbus.WithContext(ctx))
	}
	conn, err := connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeLogind{t: t, conn: conn, conf: t.TempDir()}
	f.props, err = prop.Export(conn, path, prop.Map{manager: {"InhibitDelayMaxUSec": {Value: uint64(5 * time.Second / time.Microsecond), Writable: true, Emit: prop.EmitTrue}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, export := range []struct {
		path dbus.ObjectPath
		name string
	}{{path, manager}, {"/org/freedesktop/systemd1", systemd + ".Manager"}} {
		if err := conn.Export(f, export.path, export.name); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{service, systemd} {
		if _, err := conn.RequestName(name, dbus.NameFlagDoNotQueue); err != nil {
			t.Fatal(err)
		}
	}
	return f, connect
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !check(); {
		if time.Now().After(deadline) {
			t.Fatalf("it never comes to be that %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestWatch(t *testing.T) {
	f, connect := newBus(t)
	w := New(Options{Connect: connect, ConfDir: f.conf})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told, goOn := make(chan bool, 4), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- w.Watch(ctx, 30*time.Second, func(_ context.Context, stopping bool) {
			told <- stopping
			if stopping {
				<-goOn
			}
		})
	}()
	eventually(t, "shutdowns are held back", func() bool { return f.count() == 1 })
	if delay, err := allowedDelay(f.conn); err == nil && delay < 30*time.Second {
		t.Errorf("logind holds back for %v at most", delay)
	}
	f.tell(true)
	if stopping := <-told; !stopping {
		t.Error("told of a shutdown that was called off")
	}
	if f.released(0) {
		t.Error("the machine goes on while pods end")
	}
	close(goOn)
	eventually(t, "the machine goes on", func() bool { return f.released(0) })
	f.tell(false)
	if stopping := <-told; stopping {
		t.Error("told of a second shutdown")
	}
	eventually(t, "the next shutdown is held back", func() bool { return f.count() == 2 })
	cancel()
	if err := <-done; err == nil {
		t.Error("Watch ended without saying why")
	}
	eventually(t, "nothing is held back after the end", func() bool { return f.released(1) })
}

func TestWatchWithoutLogind(t *testing.T) {
	f, connect := newBus(t)
	if _, err := f.conn.ReleaseName(service); err != nil {
		t.Fatal(err)
	}
	err := New(Options{Connect: connect, ConfDir: t.TempDir()}).Watch(t.Context(), time.Second, nil)
	if err == nil || !strings.Contains(err.Error(), "asking how long shutdowns may be held back") {
		t.Errorf("Watch without logind: %v", err)
	}
}
