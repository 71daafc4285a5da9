package logind

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/lifecycle"
)

const (
	service   = "org.freedesktop.login1"
	manager   = service + ".Manager"
	path      = dbus.ObjectPath("/org/freedesktop/login1")
	systemd   = "org.freedesktop.systemd1"
	delayFile = "99-gantry.conf" // in ConfDir: how long an inhibitor may delay
)

// Options says where logind is.
type Options struct {
	// Connect opens a connection of its own to the bus; default: the system's.
	Connect func(ctx context.Context) (*dbus.Conn, error)
	ConfDir string        // of logind's configuration; default /etc/systemd/logind.conf.d
	Settle  time.Duration // how long logind may take to read its configuration again; default 5s
	Logger  *slog.Logger
}

// Watcher watches for shutdowns.
type Watcher struct{ opts Options }

// New returns a Watcher that has done nothing yet.
func New(opts Options) *Watcher {
	if opts.Connect == nil {
		opts.Connect = func(ctx context.Context) (*dbus.Conn, error) { return dbus.ConnectSystemBus(dbus.WithContext(ctx)) }
	}
	if opts.ConfDir == "" {
		opts.ConfDir = "/etc/systemd/logind.conf.d"
	}
	if opts.Settle == 0 {
		opts.Settle = 5 * time.Second
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Watcher{opts: opts}
}

// Watch holds back shutdowns for at most delay: on is called with true when one begins, and the
// machine goes on with it once on has returned. With false on is told that it was called off.
// Watch returns when ctx ends, or with an error when logind cannot be reached or goes away.
func (w *Watcher) Watch(ctx context.Context, delay time.Duration, on func(ctx context.Context, stopping bool)) error {
	conn, err := w.opts.Connect(ctx)
	if err != nil {
		return fmt.Errorf("connecting to the system bus: %w", err)
	}
	defer conn.Close()
	if err := w.allowDelay(ctx, conn, delay); err != nil {
		return err
	}
	signals := make(chan *dbus.Signal, 8)
	conn.Signal(signals)
	err = conn.AddMatchSignalContext(ctx, dbus.WithMatchInterface(manager), dbus.WithMatchMember("PrepareForShutdown"), dbus.WithMatchObjectPath(path))
	if err != nil {
		return fmt.Errorf("subscribing to shutdowns: %w", err)
	}
	lock, err := inhibit(ctx, conn)
	if err != nil {
		return err
	}
	defer func() { release(lock) }()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case signal, ok := <-signals:
			if !ok {
				return errors.New("the system bus has hung up")
			}
			if signal.Name != manager+".PrepareForShutdown" || len(signal.Body) == 0 {
				continue
			}
			stopping, _ := signal.Body[0].(bool)
			w.opts.Logger.Info("logind tells of a shutdown", "stopping", stopping)
			on(ctx, stopping)
			if stopping {
				release(lock)
				lock = -1
				continue
			}
			release(lock)
			if lock, err = inhibit(ctx, conn); err != nil {
				return err
			}
		}
	}
}

// inhibit takes a lock that delays shutdowns while its file is open.
func inhibit(ctx context.Context, conn *dbus.Conn) (int, error) {
	var fd dbus.UnixFD
	call := conn.Object(service, path).CallWithContext(ctx, manager+".Inhibit", 0, "shutdown", "gantry", "Gantry ends the pods of this node", "delay")
	if err := call.Store(&fd); err != nil {
		return -1, fmt.Errorf("holding back shutdowns: %w", err)
	}
	return int(fd), nil
}

func release(lock int) {
	if lock >= 0 {
		_ = unix.Close(lock) // ours alone: nothing can be done about a failure
	}
}

func allowedDelay(conn *dbus.Conn) (time.Duration, error) {
	value, err := conn.Object(service, path).GetProperty(manager + ".InhibitDelayMaxUSec")
	if err != nil {
		return 0, fmt.Errorf("asking how long shutdowns may be held back: %w", err)
	}
	micros, ok := value.Value().(uint64)
	if !ok {
		return 0, fmt.Errorf("logind answers %v to how long shutdowns may be held back", value)
	}
	return time.Duration(micros) * time.Microsecond, nil
}

// allowDelay raises logind's limit of delays where it is too low.
func (w *Watcher) allowDelay(ctx context.Context, conn *dbus.Conn, delay time.Duration) error {
	allowed, err := allowedDelay(conn)
	if err != nil || allowed >= delay {
		return err
	}
	if err := os.MkdirAll(w.opts.ConfDir, 0o755); err != nil {
		return fmt.Errorf("raising logind's limit of delays: %w", err)
	}
	text := fmt.Sprintf("# Written by Gantry: shutdown-grace-period.\n[Login]\nInhibitDelayMaxSec=%d\n", int(delay.Round(time.Second)/time.Second))
	if err := os.WriteFile(filepath.Join(w.opts.ConfDir, delayFile), []byte(text), 0o644); err != nil {
		return fmt.Errorf("raising logind's limit of delays: %w", err)
	}
	call := conn.Object(systemd, "/org/freedesktop/systemd1").CallWithContext(ctx, systemd+".Manager.KillUnit", 0, "systemd-logind.service", "all", int32(unix.SIGHUP))
	if call.Err != nil {
		return fmt.Errorf("having logind read its configuration: %w", call.Err)
	}
	for deadline := time.Now().Add(w.opts.Settle); ; {
		if allowed, err = allowedDelay(conn); err != nil || allowed >= delay {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("logind holds back shutdowns for %v at most, want %v", allowed, delay)
		}
		if !lifecycle.Pause(ctx, 100*time.Millisecond) {
			return ctx.Err()
		}
	}
}
