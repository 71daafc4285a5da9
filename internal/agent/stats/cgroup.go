package stats

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Usage is what a cgroup with everything below it uses, as the kernel counts it. Counters are
// since the cgroup was made; limits are 0 where there is none.
type Usage struct {
	At time.Time

	CPUNanos, UserNanos, SystemNanos uint64
	Periods, ThrottledPeriods        uint64 // of the CPU quota
	ThrottledNanos                   uint64

	MemoryBytes      uint64
	WorkingSetBytes  uint64 // MemoryBytes without file pages that are not in use
	RSSBytes         uint64
	CacheBytes       uint64
	MappedBytes      uint64
	SwapBytes        uint64
	PageFaults       uint64
	MajorPageFaults  uint64
	MemoryPeakBytes  uint64
	MemoryFailures   uint64 // how often the limit was hit
	OOMKills         uint64
	MemoryLimitBytes uint64
	SwapLimitBytes   uint64 // beyond the memory limit

	Pids, PidsLimit uint64
}

// Cgroups reads the cgroups of this machine. It is for one goroutine.
type Cgroups struct {
	mount   string
	unified bool
	file    scratch
}

// NewCgroups returns what reads cgroups below a mount point, usually /sys/fs/cgroup: one tree
// with v2, a folder a controller with v1 and its hybrid.
func NewCgroups(mount string) *Cgroups {
	_, err := os.Stat(filepath.Join(mount, "cgroup.controllers"))
	return &Cgroups{mount: mount, unified: err == nil}
}

func (c *Cgroups) path(controller, cgroup, file string) string {
	if c.unified {
		return c.mount + cgroup + "/" + file
	}
	return c.mount + "/" + controller + cgroup + "/" + file
}

// CPU reads the CPU time of a cgroup, such as "/kubepods/pod1234", and nothing else.
func (c *Cgroups) CPU(cgroup string) (nanos uint64, err error) {
	if !c.unified {
		return c.file.number(c.path("cpuacct", cgroup, "cpuacct.usage"))
	}
	data, err := c.file.read(c.path("", cgroup, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	keyed(data, func(key []byte, value uint64) {
		if string(key) == "usage_usec" {
			nanos = value * 1000
		}
	})
	return nanos, nil
}

// Read reads all of a cgroup into u. It fails when the cgroup's CPU time or memory cannot be
// read; what else is missing stays 0.
func (c *Cgroups) Read(cgroup string, u *Usage) error {
	*u = Usage{At: time.Now()}
	read := c.readV1
	if c.unified {
		read = c.readV2
	}
	if err := read(cgroup, u); err != nil {
		return fmt.Errorf("reading the usage of cgroup %s: %w", cgroup, err)
	}
	u.Pids, _ = c.file.number(c.path("pids", cgroup, "pids.current"))
	u.PidsLimit, _ = c.file.number(c.path("pids", cgroup, "pids.max"))
	return nil
}

func (c *Cgroups) readV2(cgroup string, u *Usage) error {
	data, err := c.file.read(c.path("", cgroup, "cpu.stat"))
	if err != nil {
		return err
	}
	keyed(data, func(key []byte, value uint64) {
		switch string(key) {
		case "usage_usec":
			u.CPUNanos = value * 1000
		case "user_usec":
			u.UserNanos = value * 1000
		case "system_usec":
			u.SystemNanos = value * 1000
		case "nr_periods":
			u.Periods = value
		case "nr_throttled":
			u.ThrottledPeriods = value
		case "throttled_usec":
			u.ThrottledNanos = value * 1000
		}
	})
	if u.MemoryBytes, err = c.file.number(c.path("", cgroup, "memory.current")); err != nil {
		return err
	}
	if data, err = c.file.read(c.path("", cgroup, "memory.stat")); err != nil {
		return err
	}
	var inactive uint64
	keyed(data, func(key []byte, value uint64) {
		switch string(key) {
		case "anon":
			u.RSSBytes = value
		case "file":
			u.CacheBytes = value
		case "file_mapped":
			u.MappedBytes = value
		case "inactive_file":
			inactive = value
		case "pgfault":
			u.PageFaults = value
		case "pgmajfault":
			u.MajorPageFaults = value
		}
	})
	u.WorkingSetBytes = u.MemoryBytes - min(u.MemoryBytes, inactive)
	u.SwapBytes, _ = c.file.number(c.path("", cgroup, "memory.swap.current"))
	u.MemoryLimitBytes, _ = c.file.number(c.path("", cgroup, "memory.max"))
	u.SwapLimitBytes, _ = c.file.number(c.path("", cgroup, "memory.swap.max"))
	u.MemoryPeakBytes, _ = c.file.number(c.path("", cgroup, "memory.peak"))
	if data, err = c.file.read(c.path("", cgroup, "memory.events")); err == nil {
		keyed(data, func(key []byte, value uint64) {
			switch string(key) {
			case "max":
				u.MemoryFailures = value
			case "oom_kill":
				u.OOMKills = value
			}
		})
	}
	return nil
}

// unlimited is what v1 shows, less rounding, where there is no limit.
const unlimited = 1 << 62

func (c *Cgroups) readV1(cgroup string, u *Usage) (err error) {
	if u.CPUNanos, err = c.file.number(c.path("cpuacct", cgroup, "cpuacct.usage")); err != nil {
		return err
	}
	u.UserNanos, _ = c.file.number(c.path("cpuacct", cgroup, "cpuacct.usage_user"))
	u.SystemNanos, _ = c.file.number(c.path("cpuacct", cgroup, "cpuacct.usage_sys"))
	if data, err := c.file.read(c.path("cpu", cgroup, "cpu.stat")); err == nil {
		keyed(data, func(key []byte, value uint64) {
			switch string(key) {
			case "nr_periods":
				u.Periods = value
			case "nr_throttled":
				u.ThrottledPeriods = value
			case "throttled_time":
				u.ThrottledNanos = value
			}
		})
	}
	if u.MemoryBytes, err = c.file.number(c.path("memory", cgroup, "memory.usage_in_bytes")); err != nil {
		return err
	}
	data, err := c.file.read(c.path("memory", cgroup, "memory.stat"))
	if err != nil {
		return err
	}
	var inactive uint64
	keyed(data, func(key []byte, value uint64) {
		total, ok := bytes.CutPrefix(key, []byte("total_"))
		if !ok {
			return
		}
		switch string(total) {
		case "rss":
			u.RSSBytes = value
		case "cache":
			u.CacheBytes = value
		case "mapped_file":
			u.MappedBytes = value
		case "inactive_file":
			inactive = value
		case "swap":
			u.SwapBytes = value
		case "pgfault":
			u.PageFaults = value
		case "pgmajfault":
			u.MajorPageFaults = value
		}
	})
	u.WorkingSetBytes = u.MemoryBytes - min(u.MemoryBytes, inactive)
	c.limitsV1(cgroup, u)
	return nil
}

func (c *Cgroups) limitsV1(cgroup string, u *Usage) {
	limit := func(file string) uint64 {
		n, _ := c.file.number(c.path("memory", cgroup, file))
		if n >= unlimited {
			return 0
		}
		return n
	}
	u.MemoryLimitBytes = limit("memory.limit_in_bytes")
	if both := limit("memory.memsw.limit_in_bytes"); both > u.MemoryLimitBytes && u.MemoryLimitBytes > 0 {
		u.SwapLimitBytes = both - u.MemoryLimitBytes
	}
	u.MemoryPeakBytes, _ = c.file.number(c.path("memory", cgroup, "memory.max_usage_in_bytes"))
	u.MemoryFailures, _ = c.file.number(c.path("memory", cgroup, "memory.failcnt"))
	if data, err := c.file.read(c.path("memory", cgroup, "memory.oom_control")); err == nil {
		keyed(data, func(key []byte, value uint64) {
			if string(key) == "oom_kill" {
				u.OOMKills = value
			}
		})
	}
}

// Process returns a process of a cgroup, 0 if it has none.
func (c *Cgroups) Process(cgroup string) int {
	data, err := c.file.read(c.path("pids", cgroup, "cgroup.procs"))
	if err != nil {
		return 0
	}
	pid, _ := parse(data)
	return int(pid)
}
