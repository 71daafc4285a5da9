//go:build linux

package build

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
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
)

// cgroupRoot is where the hierarchies are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// leaf is where the process itself is, beside its containers' groups.
const leaf = "worker"

// cgroupName differs between data folders, so that nodes that share a machine do not share it.
func cgroupName(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "gantry-build-" + hex.EncodeToString(sum[:6])
}

// cgroupLimits are those of all builds together.
type cgroupLimits struct {
	memoryBytes int64
	cpuShares   int64
}

// unified reports whether this machine has the one hierarchy of cgroup v2.
func unified() bool {
	_, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers"))
	return err == nil
}

// hierarchies are the folders below which each has its groups.
func hierarchies() ([]string, error) {
	if unified() {
		return []string{cgroupRoot}, nil
	}
	var found []string
	for _, name := range []string{"memory", "cpu", "cpu,cpuacct", "cpuacct", "pids", "blkio", "devices", "freezer", "cpuset"} {
		path := filepath.Join(cgroupRoot, name)
		info, err := os.Lstat(path)
		if err == nil && info.IsDir() {
			if _, err := os.Stat(filepath.Join(path, "cgroup.procs")); err == nil {
				found = append(found, path)
			}
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("there are no cgroups at %s", cgroupRoot)
	}
	return found, nil
}

// makeCgroups makes the group in each hierarchy and returns where the process belongs.
func makeCgroups(name string, limits cgroupLimits) ([]string, error) {
	roots, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var leaves []string
	for _, root := range roots {
		group := filepath.Join(root, name)
		if err := os.MkdirAll(group, 0o755); err != nil {
			return nil, err
		}
		if err := limitGroup(root, group, limits); err != nil {
			return nil, err
		}
		// cpuset's new groups are empty and take no process; what is left out stays in the machine's.
		if filepath.Base(root) == "cpuset" {
			continue
		}
		if err := os.MkdirAll(filepath.Join(group, leaf), 0o755); err != nil {
			return nil, err
		}
		leaves = append(leaves, filepath.Join(group, leaf))
	}
	return leaves, nil
}

func limitGroup(root, group string, limits cgroupLimits) error {
	if unified() {
		// What the machine does not have it does not give.
		controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
		if err != nil {
			return err
		}
		for controller := range strings.FieldsSeq(string(controllers)) {
			for _, dir := range []string{root, group} {
				if err := write(dir, "cgroup.subtree_control", "+"+controller); err != nil && (controller == "memory" || controller == "cpu") {
					return err
				}
			}
		}
		// Source of the conversion: Kubernetes, CPUSharesToCPUWeight.
		weight := 1 + (limits.cpuShares-2)*9999/262142
		return errors.Join(write(group, "memory.max", strconv.FormatInt(limits.memoryBytes, 10)), write(group, "cpu.weight", strconv.FormatInt(weight, 10)))
	}
	switch filepath.Base(root) {
	case "memory":
		return write(group, "memory.limit_in_bytes", strconv.FormatInt(limits.memoryBytes, 10))
	case "cpu", "cpu,cpuacct":
		return write(group, "cpu.shares", strconv.FormatInt(limits.cpuShares, 10))
	}
	return nil
}

func write(dir, file, text string) error {
	return os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644)
}

// enterCgroups moves a process.
func enterCgroups(groups []string, pid int) error {
	for _, group := range groups {
		if err := write(group, "cgroup.procs", strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("moving the process into its cgroup: %w", err)
		}
	}
	return nil
}

// Cleanup removes what a killed gantry's builds left of the folder dir, as far as nothing takes it along by itself.
func Cleanup(ctx context.Context, dir string) error { return removeCgroups(ctx, cgroupName(dir)) }

// removeCgroups kills what is in the group and removes it. Only processes that builds started
// are ever in it.
func removeCgroups(ctx context.Context, name string) error {
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for {
		// runc makes its groups in every hierarchy, those without a controller too.
		groups, err := filepath.Glob(filepath.Join(cgroupRoot, "*", name))
		if err != nil {
			return err
		}
		var left error
		for _, group := range append(groups, filepath.Join(cgroupRoot, name)) {
			left = errors.Join(left, removeGroup(group))
		}
		if left == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("removing the cgroup %s: %w", name, left)
		case <-ticker.C:
		}
	}
}

// removeGroup kills and removes one group, its children first.
func removeGroup(group string) error {
	entries, err := os.ReadDir(group)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		if entry.IsDir() {
			err = errors.Join(err, removeGroup(filepath.Join(group, entry.Name())))
		}
	}
	procs, readErr := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	if readErr != nil && !errors.Is(readErr, fs.ErrNotExist) {
		return readErr
	}
	for line := range bytes.Lines(procs) {
		if pid, atoiErr := strconv.Atoi(strings.TrimSpace(string(line))); atoiErr == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended; if not, the removal fails and is tried again
		}
	}
	if rmErr := os.Remove(group); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
		err = errors.Join(err, rmErr)
	}
	return err
}

// Bounds of what builds get.
const (
	minMemory = 256 << 20
	maxCache  = 10 << 30
)

// limits are half of the memory that is free now, and few shares of the CPU.
func (e *Engine) limits() (cgroupLimits, error) {
	memory := e.opts.MemoryBytes
	if memory == 0 {
		free, err := availableMemory()
		if err != nil {
			return cgroupLimits{}, err
		}
		memory = max(free/2, minMemory)
	}
	return cgroupLimits{memoryBytes: memory, cpuShares: e.opts.CPUWeight}, nil
}

// availableMemory is what the kernel thinks new programs can have.
func availableMemory() (int64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("reading how much memory is free: %w", err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "MemAvailable:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("reading how much memory is free: %w", err)
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("reading how much memory is free: /proc/meminfo does not say")
}

// cacheBytes is the bound of the cache.
func (e *Engine) cacheBytes() int64 {
	if e.opts.CacheBytes > 0 {
		return e.opts.CacheBytes
	}
	var stat unix.Statfs_t
	if unix.Statfs(e.opts.Dir, &stat) != nil {
		return maxCache
	}
	return min(maxCache, int64(stat.Blocks)*stat.Bsize/10)
}

// diskFree is how much of the file system is free, and how much it has.
func diskFree(dir string) (free, size int64, err error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return 0, 0, fmt.Errorf("asking how full the disk is: %w", err)
	}
	return int64(stat.Bavail) * stat.Bsize, int64(stat.Blocks) * stat.Bsize, nil
}
