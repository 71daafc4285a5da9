package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/lifecycle"
)

// WatchCommand is the hidden command that runs Watch.
const WatchCommand = "upgrade-watch"

const (
	// DefaultLimit is how long a new program has until it works.
	DefaultLimit = 2 * time.Minute
	// watchEvery is how often the watchdog looks.
	watchEvery = 200 * time.Millisecond
	// termLimit is how long a program that is given up may take to stop by itself.
	termLimit = 5 * time.Second
	killLimit = 30 * time.Second
)

// ErrBusy says that a change of programs is under way.
var ErrBusy = errors.New("a program is on trial already")

// BeginOptions says what to change to. All but Limit are required.
type BeginOptions struct {
	Next    Program
	Running string        // the version of this process
	Args    []string      // of "gantry up" as it runs, without the program's name
	Limit   time.Duration // of the trial; default DefaultLimit
}

// Begin puts a program that is in the data dir on trial and starts the watchdog. The caller stops all it runs and then calls Exec.
func (d Dir) Begin(opts BeginOptions) error {
	if opts.Limit <= 0 {
		opts.Limit = DefaultLimit
	}
	before, there, err := d.Read()
	if err != nil {
		return err
	}
	if there && before.State == Trial {
		return ErrBusy
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	hash, err := d.AddRunning()
	if err != nil {
		return err
	}
	n := Note{
		State: Trial, Current: opts.Next, Previous: Program{Hash: hash, Version: opts.Running},
		Launcher: before.Launcher, Deadline: time.Now().Add(opts.Limit),
	}
	if !there {
		if n.Launcher, err = launcherAt(self); err != nil {
			return err
		}
	}
	if err := d.write(n); err != nil {
		return err
	}
	if err := d.startWatch(hash, opts.Args); err != nil {
		return errors.Join(err, d.GiveUp("its watchdog did not start"))
	}
	return nil
}

// startWatch starts the watchdog, in a session of its own so that it outlives this process.
func (d Dir) startWatch(hash string, args []string) error {
	watch := exec.Command(d.Path(hash), append([]string{WatchCommand, "--data-dir", string(d), "--pid", strconv.Itoa(os.Getpid()), "--"}, args...)...)
	watch.Stdout, watch.Stderr = os.Stdout, os.Stderr
	watch.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := watch.Start(); err != nil {
		return fmt.Errorf("starting the watchdog: %w", err)
	}
	if err := watch.Process.Release(); err != nil {
		return fmt.Errorf("starting the watchdog: %w", err)
	}
	return nil
}

// Exec makes this process the program at path, with these arguments. It returns only when that fails.
func Exec(path string, args []string) error {
	if err := syscall.Exec(path, append([]string{path}, args...), os.Environ()); err != nil {
		return fmt.Errorf("executing %s: %w", path, err)
	}
	return nil
}

// ExecNext makes this process the program that is on trial; without a trial it begins again as what it is.
func (d Dir) ExecNext(args []string) error {
	n, there, err := d.Read()
	if err != nil {
		return err
	}
	if there && n.State == Trial {
		return Exec(d.Path(n.Current.Hash), args)
	}
	return Exec("/proc/self/exe", args) // whatever became of its file
}

// Watch waits until the trial is over. It gives it up when the process ends or the time does, and then becomes the program before,
// unless systemd starts that.
func (d Dir) Watch(ctx context.Context, pid int, args []string) error {
	began := startOf(pid)
	why := ""
	for why == "" {
		n, there, err := d.Read()
		switch {
		case err != nil:
			return err
		case !there || n.State != Trial:
			return nil
		case began == "" || startOf(pid) != began:
			why = "it ended before it was ready"
		case time.Now().After(n.Deadline):
			why = "it was not ready in time"
		case !lifecycle.Pause(ctx, watchEvery):
			return ctx.Err()
		}
	}
	return d.goBack(ctx, pid, began, why, args)
}

// goBack ends the process and starts the program before.
func (d Dir) goBack(ctx context.Context, pid int, began, why string, args []string) error {
	// A process that ended in good order has said so itself, a moment before it ended.
	if n, there, err := d.Read(); err != nil || !there || n.State != Trial {
		return err
	}
	if err := d.GiveUp(why); err != nil {
		return err
	}
	for _, step := range []struct {
		signal unix.Signal
		limit  time.Duration
	}{{unix.SIGTERM, termLimit}, {unix.SIGKILL, killLimit}} {
		if began == "" || startOf(pid) != began {
			break
		}
		if err := unix.Kill(pid, step.signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("ending the program that did not work: %w", err)
		}
		for end := time.Now().Add(step.limit); startOf(pid) == began && time.Now().Before(end); {
			if !lifecycle.Pause(ctx, watchEvery/4) {
				return ctx.Err()
			}
		}
	}
	if os.Getenv("NOTIFY_SOCKET") != "" {
		return nil // systemd starts the launcher, which finds what was noted
	}
	n, there, err := d.Read()
	if err != nil || !there {
		return err
	}
	return Exec(d.Path(n.Current.Hash), args)
}

// startOf tells processes of one id apart: when it was started, "" for one that is gone or will not run again (proc(5): fields 3
// and 22 of stat).
func startOf(pid int) string {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return ""
	}
	end := strings.LastIndexByte(string(text), ')')
	fields := strings.Fields(string(text[end+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	return fields[19]
}
