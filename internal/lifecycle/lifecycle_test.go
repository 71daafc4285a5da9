package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// journal notes what happens, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) note(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

// component takes one second to get ready and two to stop.
func (j *journal) component(name string) Component {
	return Component{
		Name: name,
		Run: func(ctx context.Context) error {
			j.note(name + " runs")
			<-ctx.Done()
			time.Sleep(2 * time.Second)
			j.note(name + " ends")
			return nil
		},
		Ready: func(ctx context.Context) error {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			return ctx.Err()
		},
	}
}

func options(out *bytes.Buffer) SuperviseOptions {
	return SuperviseOptions{Logger: slog.New(slog.DiscardHandler), Steps: NewSteps(out)}
}

func TestSuperviseOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		var out bytes.Buffer
		opts := options(&out)
		opts.OnReady = func() { j.note("all ready") }
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		if err := Supervise(ctx, opts, j.component("store"), j.component("api"), j.component("agent")); err != nil {
			t.Error(err)
		}
		want := []string{"store runs", "api runs", "agent runs", "all ready", "agent ends", "api ends", "store ends"}
		if !slices.Equal(j.lines, want) {
			t.Errorf("order is %q", j.lines)
		}
		if took := time.Since(start); took != time.Minute+6*time.Second {
			t.Errorf("took %v", took)
		}
		if got := out.String(); got != "store ready 1s\napi ready 1s\nagent ready 1s\nagent stopped 2s\napi stopped 2s\nstore stopped 2s\n" {
			t.Errorf("printed %q", got)
		}
	})
}

func TestSuperviseFailure(t *testing.T) {
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		bad  Component
		want string
	}{
		"while running": {Component{Name: "api", Run: func(ctx context.Context) error {
			time.Sleep(time.Hour)
			return broken
		}}, "api: broken"},
		"ends by itself": {Component{Name: "api", Run: func(ctx context.Context) error { return nil }}, "api: ended by itself"},
		"not ready": {Component{Name: "api", Run: func(ctx context.Context) error { <-ctx.Done(); return nil },
			Ready: func(context.Context) error { return broken }}, "api: broken"},
		"fails while getting ready": {Component{Name: "api", Run: func(context.Context) error { return broken },
			Ready: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}, "api: broken"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				err := Supervise(t.Context(), options(&bytes.Buffer{}), j.component("store"), tc.bad, j.component("agent"))
				if err == nil || err.Error() != tc.want {
					t.Errorf("Supervise = %v, want %s", err, tc.want)
				}
				if !slices.Contains(j.lines, "store ends") {
					t.Errorf("the store was not stopped: %q", j.lines)
				}
			})
		})
	}
}

func TestSuperviseStopWhileStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		if err := Supervise(ctx, options(&bytes.Buffer{}), j.component("store"), j.component("api"), j.component("agent")); err != nil {
			t.Error(err)
		}
		if want := []string{"store runs", "api runs", "api ends", "store ends"}; !slices.Equal(j.lines, want) {
			t.Errorf("order is %q", j.lines)
		}
	})
}

func TestSuperviseStopTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		slow := Component{Name: "slow", Run: func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(time.Minute)
			return nil
		}}
		err := Supervise(ctx, options(&bytes.Buffer{}), slow)
		if err == nil || !strings.Contains(err.Error(), "slow has not stopped within 30s") {
			t.Errorf("Supervise = %v", err)
		}
		time.Sleep(time.Minute) // until it has
	})
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	first, err := EnsureIdentity(dir, "node-1", false, "m1")
	if err != nil || first.Name != "node-1" || len(first.UID) != 36 {
		t.Fatalf("EnsureIdentity = %+v, %v", first, err)
	}
	if again, err := EnsureIdentity(dir, "renamed-host", false, "m1"); err != nil || again != first {
		t.Errorf("a changed host name gives %+v, %v", again, err)
	}
	if again, err := EnsureIdentity(dir, "node-1", true, "m1"); err != nil || again != first {
		t.Errorf("the same name gives %+v, %v", again, err)
	}
	if _, err := EnsureIdentity(dir, "node-2", true, "m1"); err == nil || !strings.Contains(err.Error(), `is called "node-1", not "node-2"`) {
		t.Errorf("another name gives %v", err)
	}
	if again, err := EnsureIdentity(dir, "node-1", false, ""); err != nil || again != first {
		t.Errorf("a machine without an id gives %+v, %v", again, err)
	}
	if _, err := EnsureIdentity(dir, "node-1", false, "m2"); err == nil || !strings.Contains(err.Error(), "belongs to node node-1 of another machine") {
		t.Errorf("another machine gives %v", err)
	}
	path := filepath.Join(dir, identityName)
	if err := os.WriteFile(path, []byte(`{"name":"node-1","uid":"`+first.UID+`"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if taken, err := EnsureIdentity(dir, "node-1", false, "m2"); err != nil || taken.Machine != "m2" || taken.UID != first.UID {
			t.Errorf("an identity without a machine gives %+v, %v", taken, err)
		}
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := EnsureIdentity(dir, "node-1", false, "m1"); err == nil || !strings.Contains(err.Error(), "restore it from a backup") {
		t.Errorf("a broken file gives %v", err)
	}
}

func TestMachineID(t *testing.T) {
	root := t.TempDir()
	if got := MachineID(root); got != "" {
		t.Errorf("without a file the id is %q", got)
	}
	for _, dir := range []string{"etc", "var/lib/dbus"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("var/lib/dbus/machine-id", "3d1219c7c4c5404aaa1f6d2a48adfda4\n")
	fromDBus := MachineID(root)
	if len(fromDBus) != 32 || strings.Contains(fromDBus, "3d1219") {
		t.Errorf("the id is %q, want a digest of 32 digits", fromDBus)
	}
	write("etc/machine-id", "uninitialized\n")
	if got := MachineID(root); got != fromDBus {
		t.Errorf("an uninitialized file gives %q, want %q", got, fromDBus)
	}
	write("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	if got := MachineID(root); got == fromDBus || len(got) != 32 {
		t.Errorf("another machine's id is %q", got)
	}
}

func TestStepsNil(t *testing.T) {
	var s *Steps
	s.Begin("x", "ready")(nil)
	s.Say("y")
}
