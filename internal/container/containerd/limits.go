package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"gantry.dev/gantry/internal/container"
)

// unlimitedMemory is what cgroup v1 shows as a limit of memory where there is none, or more:
// the largest number of whole pages.
const unlimitedMemory = 1 << 62

// EnsureCgroup makes a cgroup with its parents, or sets the limits of one that is there. Limits
// that are 0 stay as they are.
func (r *Runtime) EnsureCgroup(path string, res container.Resources) error {
	return ensureCgroup(path, res)
}

// CgroupLimits reads the limits of CPU and memory of a cgroup. Where there is none it is 0.
func (r *Runtime) CgroupLimits(path string) (container.Resources, error) {
	res, err := readLimits(path)
	if err != nil {
		return res, fmt.Errorf("limits of cgroup %s: %w", path, err)
	}
	return res, nil
}

// UpdateContainer sets limits of a container while it runs. Those that are 0 stay as they are,
// negative ones are lifted.
func (r *Runtime) UpdateContainer(ctx context.Context, id string, res container.Resources) error {
	_, c, err := r.find(ctx, id)
	if err != nil {
		return fmt.Errorf("update container: %w", err)
	}
	if err := setCgroup(c.rec.Cgroup, res); err != nil {
		return fmt.Errorf("update container %s: %w", c.cfg.Name, err)
	}
	return nil
}

// readLimits reads what setCgroup writes.
func readLimits(path string) (res container.Resources, err error) {
	if unifiedCgroups() {
		return readLimitsV2(filepath.Join(cgroupRoot, path))
	}
	shares, err := readNumber(filepath.Join(cgroupRoot, "cpu", path, "cpu.shares"))
	if err != nil {
		return res, err
	}
	res.CPUShares = shares
	if res.CPUPeriodMicros, err = readNumber(filepath.Join(cgroupRoot, "cpu", path, "cpu.cfs_period_us")); err != nil {
		return res, err
	}
	quota, err := os.ReadFile(filepath.Join(cgroupRoot, "cpu", path, "cpu.cfs_quota_us"))
	if err != nil {
		return res, err
	}
	if n, err := strconv.ParseInt(strings.TrimSpace(string(quota)), 10, 64); err == nil && n > 0 {
		res.CPUQuotaMicros = n
	}
	limit, err := readNumber(filepath.Join(cgroupRoot, "memory", path, "memory.limit_in_bytes"))
	if err != nil {
		return res, err
	}
	if limit < unlimitedMemory {
		res.MemoryLimitBytes = int64(limit)
	}
	return res, nil
}

func readLimitsV2(dir string) (res container.Resources, err error) {
	weight, err := readNumber(filepath.Join(dir, "cpu.weight"))
	if err != nil {
		return res, err
	}
	res.CPUShares = 2 + (max(weight, 1)-1)*262142/9999 // the inverse of cgroupWeight
	text, err := os.ReadFile(filepath.Join(dir, "cpu.max"))
	if err != nil {
		return res, err
	}
	if fields := strings.Fields(string(text)); len(fields) == 2 {
		res.CPUQuotaMicros, _ = strconv.ParseInt(fields[0], 10, 64) // "max" is no limit
		res.CPUPeriodMicros, _ = strconv.ParseUint(fields[1], 10, 64)
	}
	limit, err := readNumber(filepath.Join(dir, "memory.max"))
	if err == nil {
		res.MemoryLimitBytes = int64(limit)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return res, err
	}
	return res, nil // "max" is no number and no limit
}
