package containerd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// initFile is the record of process 1 of a shared PID namespace, beside the shim's.
const initFile = "init.json"

// ensurePIDNamespace makes the PID namespace that all containers of a sandbox share,
// unless it is there. Process 1 in it is the shim program as a plain reaper: a PID
// namespace ends with its first process, which so must not be a container's.
func (r *Runtime) ensurePIDNamespace(sandboxID string) error {
	path := nsPath(r.opts.State, sandboxID, pidName)
	held, err := isMountOf(path, unix.NSFS_MAGIC)
	if err != nil {
		return err
	}
	if held {
		if proc, err := readInit(r.opts.State, sandboxID); err == nil && proc.alive() {
			return nil
		}
		if err := unmountAll(path); err != nil {
			return err
		}
	}
	dir := processDir(r.opts.State, sandboxID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make shared PID namespace: %w", err)
	}
	cmd := exec.Command(r.opts.Shim, "init")
	cmd.Dir = "/"
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("make shared PID namespace: %w", err)
	}
	pid := cmd.Process.Pid
	_ = cmd.Process.Release() // releasePID collects it
	_, start, err := processStat(pid)
	if err != nil {
		return fmt.Errorf("make shared PID namespace: its process 1 ended at once: %w", err)
	}
	proc := processID{PID: pid, Start: start}
	err = writeJSON(filepath.Join(dir, initFile), proc)
	if err == nil {
		err = holdNamespace(pid, pidName, path)
	}
	if err != nil {
		_ = proc.signal(unix.SIGKILL)
		proc.waitEnd(shimEndTimeout)
		return fmt.Errorf("make shared PID namespace: %w", err)
	}
	return nil
}

func readInit(state, sandboxID string) (processID, error) {
	return readProcess(filepath.Join(processDir(state, sandboxID), initFile))
}

// releasePID ends process 1 of a shared PID namespace, and so everything in it.
func releasePID(state, sandboxID string) error {
	proc, err := readInit(state, sandboxID)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil && proc.alive() {
		_ = proc.signal(unix.SIGKILL) // gone meanwhile is fine
		if !proc.waitEnd(shimEndTimeout) {
			return fmt.Errorf("process 1 of the shared PID namespace (%d) does not end", proc.PID)
		}
	}
	if err := unmountAll(nsPath(state, sandboxID, pidName)); err != nil {
		return err
	}
	return os.Remove(filepath.Join(processDir(state, sandboxID), initFile))
}
