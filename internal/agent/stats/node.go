package stats

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Node is what the whole machine uses.
type Node struct {
	At time.Time

	CPUNanos, UserNanos, SystemNanos uint64 // since the machine started

	CapacityBytes   uint64 // of memory
	MemoryBytes     uint64 // all that is not free
	WorkingSetBytes uint64 // MemoryBytes without file pages that are not in use
	AvailableBytes  uint64 // CapacityBytes without WorkingSetBytes: the signal memory.available
	RSSBytes        uint64
	PageFaults      uint64
	MajorPageFaults uint64
	SwapBytes       uint64
	SwapCapacity    uint64

	Pids    uint64 // processes and threads that are there
	MaxPids uint64
}

// Machine reads what the machine uses. It is for one goroutine.
type Machine struct {
	proc    string
	file    scratch
	maxPids uint64
	boot    time.Time
}

// NewMachine returns what reads the machine's figures below a mount point of proc.
func NewMachine(proc string) *Machine { return &Machine{proc: proc} }

// jiffy is the unit of /proc/stat: USER_HZ is 100 on every architecture that Linux has today.
const jiffy = uint64(time.Second / 100)

// Read reads everything into n. It costs six small files and no allocation that stays.
func (m *Machine) Read(n *Node) error {
	*n = Node{At: time.Now()}
	if err := m.cpu(n); err != nil {
		return fmt.Errorf("reading the machine's CPU time: %w", err)
	}
	if err := m.Memory(n); err != nil {
		return err
	}
	if data, err := m.file.read(m.proc + "/vmstat"); err == nil {
		keyed(data, func(key []byte, value uint64) {
			switch string(key) {
			case "pgfault":
				n.PageFaults = value
			case "pgmajfault":
				n.MajorPageFaults = value
			}
		})
	}
	m.Processes(n)
	return nil
}

// cpu reads the line of all CPUs: user, nice, system, idle, iowait, irq, softirq, steal.
func (m *Machine) cpu(n *Node) error {
	data, err := m.file.read(m.proc + "/stat")
	if err != nil {
		return err
	}
	first, rest := line(data)
	_, first = field(first)
	for i := 0; i < 8 && len(first) > 0; i++ {
		var word []byte
		word, first = field(first)
		ticks, _ := parse(word)
		switch i {
		case 0, 1:
			n.UserNanos += ticks * jiffy
		case 2, 5, 6, 7:
			n.SystemNanos += ticks * jiffy
		}
	}
	n.CPUNanos = n.UserNanos + n.SystemNanos
	if !m.boot.IsZero() {
		return nil
	}
	if i := bytes.Index(rest, []byte("btime ")); i >= 0 {
		seconds, _ := parse(rest[i+len("btime "):])
		m.boot = time.Unix(int64(seconds), 0)
	}
	return nil
}

// Memory reads only what concerns memory. The formula is runc's for the root of cgroup v2: what
// is not free, without the file pages that are not in use.
func (m *Machine) Memory(n *Node) error {
	data, err := m.file.read(m.proc + "/meminfo")
	if err != nil {
		return fmt.Errorf("reading the machine's memory: %w", err)
	}
	var free, inactive, swapFree uint64
	keyed(data, func(key []byte, value uint64) {
		switch value <<= 10; string(key) {
		case "MemTotal:":
			n.CapacityBytes = value
		case "MemFree:":
			free = value
		case "Inactive(file):":
			inactive = value
		case "AnonPages:":
			n.RSSBytes = value
		case "SwapTotal:":
			n.SwapCapacity = value
		case "SwapFree:":
			swapFree = value
		}
	})
	n.MemoryBytes = n.CapacityBytes - min(n.CapacityBytes, free)
	n.WorkingSetBytes = n.MemoryBytes - min(n.MemoryBytes, inactive)
	n.AvailableBytes = n.CapacityBytes - n.WorkingSetBytes
	n.SwapBytes = n.SwapCapacity - min(n.SwapCapacity, swapFree)
	return nil
}

// Processes reads only how many processes and threads there are, and may be.
func (m *Machine) Processes(n *Node) {
	if m.maxPids == 0 {
		m.maxPids, _ = m.file.number(m.proc + "/sys/kernel/pid_max")
		if threads, err := m.file.number(m.proc + "/sys/kernel/threads-max"); err == nil && threads < m.maxPids {
			m.maxPids = threads
		}
	}
	n.MaxPids = m.maxPids
	data, err := m.file.read(m.proc + "/loadavg")
	if err != nil {
		return
	}
	if _, after, ok := bytes.Cut(data, []byte("/")); ok {
		n.Pids, _ = parse(after)
	}
}

// FS is a file system, or a folder's part of one.
type FS struct {
	At                             time.Time
	CapacityBytes, AvailableBytes  uint64 // of the file system
	UsedBytes                      uint64
	Inodes, InodesFree, InodesUsed uint64 // as above
	Partial                        bool   // the walk's budget ended: UsedBytes and InodesUsed are lower bounds
}

// ReadFS measures the file system that path is on, or will be on. UsedBytes is what is not free.
func ReadFS(path string) (FS, error) {
	var s unix.Statfs_t
	err := unix.Statfs(path, &s)
	for err != nil && errors.Is(err, unix.ENOENT) && path != filepath.Dir(path) {
		path = filepath.Dir(path)
		err = unix.Statfs(path, &s)
	}
	if err != nil {
		return FS{}, fmt.Errorf("measuring the file system of %s: %w", path, err)
	}
	size := uint64(s.Bsize)
	return FS{
		At: time.Now(), CapacityBytes: s.Blocks * size, AvailableBytes: s.Bavail * size, UsedBytes: (s.Blocks - s.Bfree) * size,
		Inodes: s.Files, InodesFree: s.Ffree, InodesUsed: s.Files - s.Ffree,
	}, nil
}
