package containerd

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3"

	"gantry.dev/gantry/internal/container"
)

const cgroupRoot = "/sys/fs/cgroup"

// unifiedCgroups reports whether this machine has cgroup v2 only.
func unifiedCgroups() bool { return cgroups.Mode() == cgroups.Unified }

// cgroupHierarchies returns the roots of all cgroup hierarchies with the name of each:
// one with v2, one a controller with v1 and with the hybrid of both.
func cgroupHierarchies() map[string]string {
	if unifiedCgroups() {
		return map[string]string{"": cgroupRoot}
	}
	roots := map[string]string{}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return roots
	}
	for _, entry := range entries {
		path := filepath.Join(cgroupRoot, entry.Name())
		// Links such as cpu -> cpu,cpuacct name the same hierarchy again; harmless.
		if _, err := os.Stat(filepath.Join(path, "cgroup.procs")); err == nil {
			roots[entry.Name()] = path
		}
	}
	return roots
}

// ensureCgroup makes a cgroup and sets its limits. Making one that is there sets the
// limits again.
func ensureCgroup(path string, res container.Resources) error {
	if path == "" {
		return nil
	}
	for name, root := range cgroupHierarchies() {
		if !unifiedCgroups() && !slices.Contains([]string{"cpu", "cpuacct", "cpu,cpuacct", "cpuset", "memory", "pids", "hugetlb"}, name) {
			continue
		}
		if err := makeCgroup(root, path, name); err != nil {
			return fmt.Errorf("make cgroup %s: %w", path, err)
		}
	}
	return setCgroup(path, res)
}

// makeCgroup makes a cgroup and its parents in one hierarchy. A new v1 cpuset has no CPUs
// and takes no processes, so it is filled from its parent; with v2 the controllers of
// each parent are turned on for its children.
func makeCgroup(root, path, name string) error {
	current := root
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		parent := current
		current = filepath.Join(current, part)
		if unifiedCgroups() {
			if err := delegateControllers(parent); err != nil {
				return err
			}
		}
		if err := os.Mkdir(current, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if name != "cpuset" {
			continue
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			own, err := os.ReadFile(filepath.Join(current, file))
			if err != nil {
				return err
			}
			if strings.TrimSpace(string(own)) != "" {
				continue
			}
			inherited, err := os.ReadFile(filepath.Join(parent, file))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(current, file), inherited, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// delegateControllers turns on all controllers for the children of a v2 cgroup.
func delegateControllers(dir string) error {
	available, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(available)) {
		// One by one: a controller that cannot be delegated must not keep the others away.
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+name), 0o644)
	}
	return nil
}

// setCgroup writes the limits that are not zero.
func setCgroup(path string, res container.Resources) error {
	values := cgroupValues(unifiedCgroups(), res)
	for _, v := range values {
		file := filepath.Join(cgroupRoot, v.controller, path, v.file)
		err := os.WriteFile(file, []byte(v.value), 0o644)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(v.file, "hugetlb.") {
			continue // a kernel without huge pages, or not of that size, gives none either
		}
		if err != nil {
			return fmt.Errorf("set %s of cgroup %s to %s: %w", v.file, path, v.value, err)
		}
	}
	return nil
}

// cgroupValue is one file to write; controller is the v1 hierarchy.
type cgroupValue struct{ controller, file, value string }

// cgroupValues translates limits into files of cgroup v1 or v2.
func cgroupValues(unified bool, res container.Resources) []cgroupValue {
	period := res.CPUPeriodMicros
	if period == 0 {
		period = 100000
	}
	var values []cgroupValue
	add := func(controller, v1, v2, value, value2 string) {
		if unified {
			values = append(values, cgroupValue{"", v2, value2})
		} else {
			values = append(values, cgroupValue{controller, v1, value})
		}
	}
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	if res.CPUShares != 0 {
		shares := strconv.FormatUint(res.CPUShares, 10)
		add("cpu", "cpu.shares", "cpu.weight", shares, strconv.FormatUint(cgroupWeight(res.CPUShares), 10))
	}
	if res.CPUQuotaMicros != 0 {
		quota := number(res.CPUQuotaMicros)
		limit := quota
		if res.CPUQuotaMicros < 0 {
			quota, limit = "-1", "max"
		}
		if !unified {
			values = append(values, cgroupValue{"cpu", "cpu.cfs_period_us", strconv.FormatUint(period, 10)})
		}
		add("cpu", "cpu.cfs_quota_us", "cpu.max", quota, limit+" "+strconv.FormatUint(period, 10))
	}
	if res.MemoryLimitBytes != 0 {
		limit := number(res.MemoryLimitBytes)
		limit2 := limit
		if res.MemoryLimitBytes < 0 {
			limit2 = "max"
		}
		add("memory", "memory.limit_in_bytes", "memory.max", limit, limit2)
	}
	if res.PidsLimit != 0 {
		limit := number(res.PidsLimit)
		if res.PidsLimit < 0 {
			limit = "max"
		}
		add("pids", "pids.max", "pids.max", limit, limit)
	}
	for _, size := range slices.Sorted(maps.Keys(res.HugepageLimits)) {
		limit := strconv.FormatUint(res.HugepageLimits[size], 10)
		add("hugetlb", "hugetlb."+size+".limit_in_bytes", "hugetlb."+size+".max", limit, limit)
	}
	if unified {
		for file, value := range res.Unified {
			values = append(values, cgroupValue{"", file, value})
		}
	}
	return values
}

// cgroupWeight converts v1 CPU shares to a v2 weight. Source: the formula that runc and
// the kubelet use, weight = 1 + (shares-2)*9999/262142.
func cgroupWeight(shares uint64) uint64 {
	if shares < 2 {
		return 1
	}
	return 1 + (shares-2)*9999/262142
}

// removeCgroup removes a cgroup with its children from all hierarchies. Nothing may run
// in it any more; the kernel needs a moment after the last process.
func removeCgroup(path string) error {
	if strings.Trim(path, "/") == "" {
		return nil
	}
	for _, root := range cgroupHierarchies() {
		if err := removeCgroupDir(filepath.Join(root, path)); err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

func removeCgroupDir(dir string) error {
	deadline := time.Now().Add(2 * time.Second)
	for {
		err := removeCgroupOnce(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond) // the kernel tells nobody when a cgroup becomes removable
	}
}

// removeCgroupOnce removes a cgroup and its children, deepest first.
func removeCgroupOnce(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeCgroupOnce(filepath.Join(dir, entry.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return os.Remove(dir)
}
