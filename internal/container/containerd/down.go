package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// StopAll ends every container and shim that the state folder knows of, unmounts what is
// mounted below root and state by a Runtime and removes the sandboxes' cgroups. No Runtime may run on them. What it does
// not know it leaves alone: a foreign mount below the folders makes it fail, so that the
// caller does not delete what is in there. Folders that are missing are no error.
func StopAll(ctx context.Context, root, state string) error {
	if _, err := os.Stat(state); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	unlock, err := lockState(state)
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	var cgroupPaths []string
	for _, id := range folderNames(filepath.Join(state, processesDir)) {
		var path string
		if err := readJSON(filepath.Join(processDir(state, id), cgroupFile), &path); err == nil {
			cgroupPaths = append(cgroupPaths, path)
		}
		errs = append(errs, endLeftover(state, id))
	}
	for _, id := range folderNames(filepath.Join(state, bundlesDir)) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		errs = append(errs, stopContainer(state, id))
	}
	for _, id := range folderNames(filepath.Join(state, namespacesDir)) {
		errs = append(errs, endLeftover(state, id))
	}
	for _, path := range cgroupPaths {
		errs = append(errs, removeCgroup(path))
	}
	errs = append(errs, foreignMounts(root, state))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop containers: %w", err)
	}
	return nil
}

// stopContainer kills the processes of a container whose shim is dead, and unmounts its
// root file system.
func stopContainer(state, id string) error {
	bundle := filepath.Join(state, bundlesDir, id)
	var stock stockRecord
	if err := readJSON(filepath.Join(bundle, stockFile), &stock); err == nil && stock.Process.alive() {
		_ = stock.Process.signal(unix.SIGKILL) // gone meanwhile is fine
		stock.Process.waitEnd(shimEndTimeout)
	}
	if err := killRuncContainers(state, id); err != nil {
		return err
	}
	return unmountAll(filepath.Join(bundle, "rootfs"))
}

// runcState is what is needed of runc's own record of a container.
type runcState struct {
	PID         int               `json:"init_process_pid"`
	Start       uint64            `json:"init_process_start"`
	CgroupPaths map[string]string `json:"cgroup_paths"`
}

// killRuncContainers kills all processes in the cgroups of a container, by runc's record
// of it, and removes those cgroups and the record.
func killRuncContainers(state, id string) error {
	records, err := filepath.Glob(filepath.Join(state, runcDir, "*", id, "state.json"))
	if err != nil {
		return err
	}
	for _, path := range records {
		var rec runcState
		if err := readJSON(path, &rec); err != nil {
			return err
		}
		init := processID{PID: rec.PID, Start: fmt.Sprint(rec.Start)}
		if init.alive() {
			_ = init.signal(unix.SIGKILL) // gone meanwhile is fine
		}
		for _, dir := range rec.CgroupPaths {
			killCgroup(dir)
		}
		init.waitEnd(shimEndTimeout)
		for _, dir := range rec.CgroupPaths {
			if strings.HasSuffix(dir, id) { // ours alone, never a parent
				if err := removeCgroupDir(dir); err != nil {
					return fmt.Errorf("remove cgroup: %w", err)
				}
			}
		}
		if err := os.RemoveAll(filepath.Dir(path)); err != nil {
			return err
		}
	}
	return nil
}

// killCgroup kills every process in a cgroup.
func killCgroup(dir string) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return
	}
	for field := range strings.FieldsSeq(string(data)) {
		var pid int
		if _, err := fmt.Sscan(field, &pid); err == nil && pid > 1 && pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL) // gone meanwhile is fine
		}
	}
}

// foreignMounts fails if anything is mounted below the folders.
func foreignMounts(dirs ...string) error {
	var left []string
	for _, dir := range dirs {
		resolved, err := filepath.EvalSymlinks(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(resolved))
		if err != nil {
			return fmt.Errorf("list mounts: %w", err)
		}
		for _, m := range mounts {
			if m.Mountpoint != resolved { // the folder itself may be a file system
				left = append(left, m.Mountpoint)
			}
		}
	}
	if len(left) > 0 {
		slices.Sort(left)
		return fmt.Errorf("not ours, but mounted there: %s", strings.Join(left, ", "))
	}
	return nil
}

// folderNames lists a folder; a missing one is empty.
func folderNames(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	names := make([]string, 0, len(entries))
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}
