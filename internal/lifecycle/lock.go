//go:build linux

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/durable"
)

const (
	lockName = "gantry.lock"
	pidName  = "gantry.pid"
	// stoppingMark follows the process id in the pid file once the process was asked to stop.
	stoppingMark = "stopping"
	// pollEvery is how often a wait for another process looks again.
	pollEvery = 50 * time.Millisecond
	// dyingLimit is how long the kernel may take to end a killed process.
	dyingLimit = 10 * time.Second
)

// LockedError says that another Gantry uses the data dir.
type LockedError struct {
	DataDir string
	PID     int // 0 when the holder has not written it yet
}

func (e *LockedError) Error() string {
	who := "another gantry"
	if e.PID != 0 {
		who = fmt.Sprintf("gantry with process id %d", e.PID)
	}
	return fmt.Sprintf("data dir %s is in use by %s; stop it with \"gantry down --data-dir %s\", or choose another --data-dir", e.DataDir, who, e.DataDir)
}

// Lock is the right to use one data dir. It ends with Unlock or with the process, however that ends.
type Lock struct {
	file    *os.File
	pidFile string
}

// Acquire takes the data dir's lock and writes the pid file. It waits for nobody but a process
// that was killed and is about to be gone: a dir in use is a *LockedError at once.
func Acquire(dataDir string) (*Lock, error) {
	run := filepath.Join(dataDir, "run")
	if err := os.MkdirAll(run, 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", run, err)
	}
	file, err := os.OpenFile(filepath.Join(run, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of the data dir: %w", err)
	}
	if err := flock(file, unix.LOCK_EX, run); err != nil {
		_ = file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &LockedError{DataDir: dataDir, PID: readPID(run)}
		}
		return nil, fmt.Errorf("lock %s: %w", dataDir, err)
	}
	lock := &Lock{file: file, pidFile: filepath.Join(run, pidName)}
	if err := os.WriteFile(lock.pidFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("write pid file: %w", err)
	}
	return lock, nil
}

// Stopping notes that the holder is about to unlock, for whoever would otherwise take it for running.
func (l *Lock) Stopping() error {
	text := strconv.Itoa(os.Getpid()) + " " + stoppingMark + "\n"
	if err := durable.WriteFile(l.pidFile, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write pid file: %w", err)
	}
	return nil
}

// AwaitStopped waits while a gantry that was asked to stop still uses the data dir. It reports
// whether there was one.
func AwaitStopped(ctx context.Context, dataDir string) (bool, error) {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for waited := false; ; waited = true {
		pid, running, err := Holder(dataDir)
		if err != nil || !running || !isStopping(filepath.Join(dataDir, "run")) {
			return waited, err
		}
		select {
		case <-ctx.Done():
			return true, fmt.Errorf("gantry with process id %d was asked to stop and has not: %w", pid, ctx.Err())
		case <-ticker.C:
		}
	}
}

// isStopping reports whether the holder of the lock was asked to stop. One without a pid file is about to begin or
// to end: it is looked at again.
func isStopping(run string) bool {
	text, err := os.ReadFile(filepath.Join(run, pidName))
	return errors.Is(err, fs.ErrNotExist) || err == nil && strings.HasSuffix(strings.TrimSpace(string(text)), " "+stoppingMark)
}

// Unlock gives the data dir back and removes the pid file. A second call does nothing.
func (l *Lock) Unlock() error {
	if l.file == nil {
		return nil
	}
	err := os.Remove(l.pidFile)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // the data dir was purged under us
	}
	err = errors.Join(err, l.file.Close())
	l.file = nil
	if err != nil {
		return fmt.Errorf("unlock the data dir: %w", err)
	}
	return nil
}

// Holder returns the process id of the gantry that uses the data dir, and whether there is one. The
// id is 0 for a holder that has only just begun.
func Holder(dataDir string) (pid int, running bool, err error) {
	run := filepath.Join(dataDir, "run")
	file, err := os.Open(filepath.Join(run, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("open lock of the data dir: %w", err)
	}
	defer func() { _ = file.Close() }() // gives back the shared lock too
	err = flock(file, unix.LOCK_SH, run)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return readPID(run), true, nil
	case err != nil:
		return 0, false, fmt.Errorf("look at the lock of %s: %w", dataDir, err)
	}
	return 0, false, nil
}

// Terminate asks the gantry that uses the data dir to stop and waits until it has, or ctx ends. It
// reports whether there was one.
func Terminate(ctx context.Context, dataDir string) (bool, error) {
	pid, running, err := Holder(dataDir)
	if err != nil || !running {
		return false, err
	}
	signalled := 0
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		if pid != 0 && pid != signalled {
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
				return true, fmt.Errorf("stop gantry with process id %d: %w", pid, err)
			}
			signalled = pid
		}
		select {
		case <-ctx.Done():
			return true, fmt.Errorf("gantry with process id %d has not stopped: %w", pid, ctx.Err())
		case <-ticker.C:
		}
		if pid, running, err = Holder(dataDir); err != nil || !running {
			return true, err
		}
	}
}

// flock takes or looks at the lock. A holder that was killed holds it for a moment longer, while
// the kernel takes its memory back; that is waited for.
func flock(file *os.File, how int, run string) error {
	deadline := time.Now().Add(dyingLimit)
	for {
		err := unix.Flock(int(file.Fd()), how|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || !dying(readPID(run)) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pollEvery / 10)
	}
}

// dying reports whether a process will not run again: it has no memory any more, or a KILL is
// pending (proc(5): cmdline is empty then, and ShdPnd is a mask of signals).
func dying(pid int) bool {
	if pid == 0 {
		return false
	}
	folder := filepath.Join("/proc", strconv.Itoa(pid))
	if cmdline, err := os.ReadFile(filepath.Join(folder, "cmdline")); err != nil || len(cmdline) == 0 {
		return true
	}
	status, err := os.ReadFile(filepath.Join(folder, "status"))
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(status)) {
		if name, mask, _ := strings.Cut(line, ":"); name == "ShdPnd" || name == "SigPnd" {
			pending, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			if err == nil && pending&(1<<(unix.SIGKILL-1)) != 0 {
				return true
			}
		}
	}
	return false
}

func readPID(run string) int {
	text, err := os.ReadFile(filepath.Join(run, pidName))
	if err != nil {
		return 0
	}
	number, _, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	pid, err := strconv.Atoi(number)
	if err != nil || pid <= 0 {
		return 0
	}
	return pid
}
