package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"gantry.dev/gantry/internal/container"
)

// Stats returns what a running container uses.
func (r *Runtime) Stats(ctx context.Context, id string) (container.Stats, error) {
	_, c, err := r.find(ctx, id)
	if err != nil {
		return container.Stats{}, err
	}
	stats, err := readStats(c.rec.Cgroup)
	if err != nil {
		return container.Stats{}, fmt.Errorf("usage of container %s: %w", c.cfg.Name, err)
	}
	return stats, nil
}

// SandboxStats returns what all containers of a sandbox use together.
func (r *Runtime) SandboxStats(ctx context.Context, id string) (container.Stats, error) {
	status, err := r.Sandbox(ctx, id)
	if err != nil {
		return container.Stats{}, err
	}
	stats, err := readStats(status.Sandbox.CgroupPath)
	if err != nil {
		return container.Stats{}, fmt.Errorf("usage of sandbox %s: %w", id, err)
	}
	return stats, nil
}

// Layer returns the folder that holds what a container has written to its root file system. There
// is none with the snapshotter "native", which copies whole images.
func (r *Runtime) Layer(ctx context.Context, id string) (string, error) {
	ctx, c, err := r.find(ctx, id)
	if err != nil {
		return "", err
	}
	mounts, err := r.snapshotter.Mounts(ctx, c.id)
	if err != nil {
		return "", fmt.Errorf("mounts of container %s: %w", c.cfg.Name, err)
	}
	for _, m := range mounts {
		for _, option := range m.Options {
			if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("container %s has no layer of its own: %w", c.cfg.Name, ErrNotFound)
}

// memoryCgroupOf returns the folder in which the memory of a cgroup is accounted.
func memoryCgroupOf(cgroup string) string {
	if unifiedCgroups() {
		return filepath.Join(cgroupRoot, cgroup)
	}
	return filepath.Join(cgroupRoot, "memory", cgroup)
}

// readStats reads the counters of a cgroup.
func readStats(cgroup string) (container.Stats, error) {
	stats := container.Stats{At: time.Now()}
	memory := memoryCgroupOf(cgroup)
	if unifiedCgroups() {
		cpu, err := readKeyed(filepath.Join(memory, "cpu.stat"))
		if err != nil {
			return stats, err
		}
		stats.CPUNanos = cpu["usage_usec"] * 1000
		if stats.MemoryBytes, err = readNumber(filepath.Join(memory, "memory.current")); err != nil {
			return stats, err
		}
		detail, err := readKeyed(filepath.Join(memory, "memory.stat"))
		if err != nil {
			return stats, err
		}
		stats.WorkingSetBytes = stats.MemoryBytes - min(stats.MemoryBytes, detail["inactive_file"])
		stats.Pids, err = readNumber(filepath.Join(memory, "pids.current"))
		return stats, err
	}
	var err error
	if stats.CPUNanos, err = readNumber(filepath.Join(cgroupRoot, "cpuacct", cgroup, "cpuacct.usage")); err != nil {
		return stats, err
	}
	if stats.MemoryBytes, err = readNumber(filepath.Join(memory, "memory.usage_in_bytes")); err != nil {
		return stats, err
	}
	detail, err := readKeyed(filepath.Join(memory, "memory.stat"))
	if err != nil {
		return stats, err
	}
	stats.WorkingSetBytes = stats.MemoryBytes - min(stats.MemoryBytes, detail["total_inactive_file"])
	stats.Pids, err = readNumber(filepath.Join(cgroupRoot, "pids", cgroup, "pids.current"))
	return stats, err
}

// readNumber reads a file that holds one number.
func readNumber(path string) (uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
}

// readKeyed reads a file of lines "key number".
func readKeyed(path string) (map[string]uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := map[string]uint64{}
	for line := range strings.Lines(string(data)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			values[key] = n
		}
	}
	return values, nil
}
