//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of CPU times in /proc: USER_HZ is 100 on every architecture that Linux has now.
const tick = 10 * time.Millisecond

// cpuOf is the CPU time that the processes have used. One that has ended counts nothing.
func cpuOf(pids []int) (time.Duration, error) {
	var total time.Duration
	for _, pid := range pids {
		content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
		}
		used, err := parseStat(content)
		if err != nil {
			return 0, fmt.Errorf("process %d: %w", pid, err)
		}
		total += used
	}
	return total, nil
}

// parseStat returns utime + stime of the content of /proc/PID/stat (proc_pid_stat(5), fields 14 and 15).
func parseStat(content []byte) (time.Duration, error) {
	end := bytes.LastIndexByte(content, ')') // the name may hold spaces and brackets
	fields := strings.Fields(string(content[end+1:]))
	if end < 0 || len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat is cut short")
	}
	var ticks time.Duration
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read a CPU time: %w", err)
		}
		ticks += time.Duration(n)
	}
	return ticks * tick, nil
}

// machineCPU is the time that all CPUs together have been busy.
func machineCPU() (time.Duration, error) {
	content, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read the machine's CPU time: %w", err)
	}
	return parseMachine(content)
}

// parseMachine adds user, nice, system, irq, softirq and steal of the first line of /proc/stat.
func parseMachine(content []byte) (time.Duration, error) {
	line, _, _ := strings.Cut(string(content), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, errors.New("/proc/stat does not begin with the sum of all CPUs")
	}
	var ticks time.Duration
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read a CPU time: %w", err)
		}
		ticks += time.Duration(n)
	}
	return ticks * tick, nil
}

// memory is what processes hold, in MB of 10^6 bytes.
type memory struct{ pss, rss float64 }

func memoryOf(pids []int) (memory, error) {
	var total memory
	for _, pid := range pids {
		content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
		if err != nil {
			return memory{}, fmt.Errorf("read the memory of process %d: %w", pid, err)
		}
		one, err := parseRollup(string(content))
		if err != nil {
			return memory{}, fmt.Errorf("process %d: %w", pid, err)
		}
		total.pss += one.pss
		total.rss += one.rss
	}
	return total, nil
}

func parseRollup(content string) (memory, error) {
	found := map[string]float64{}
	for line := range strings.Lines(content) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[2] != "kB" {
			continue
		}
		kib, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return memory{}, fmt.Errorf("read %s: %w", fields[0], err)
		}
		found[strings.TrimSuffix(fields[0], ":")] = kib * 1024 / 1e6
	}
	pss, ok := found["Pss"]
	rss, also := found["Rss"]
	if !ok || !also {
		return memory{}, errors.New("smaps_rollup names no Pss or Rss")
	}
	return memory{pss, rss}, nil
}

// programsUnder finds the processes that run a program of folder dir, but for the containers' shims
// and runtimes.
func programsUnder(dir string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", entry.Name(), "exe"))
		if err != nil || !strings.HasPrefix(exe, dir+"/") { // ended meanwhile, or a kernel thread
			continue
		}
		if name := filepath.Base(exe); !strings.Contains(name, "shim") && !strings.HasPrefix(name, "runc") {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
