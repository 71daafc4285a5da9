package doctor

import (
	"net/netip"
	"time"
)

// Level says how bad a finding is.
type Level string

// Levels of findings.
const (
	OK      Level = "ok"
	Warning Level = "warning" // works, but not as it should
	Problem Level = "problem" // a node does not work like this
)

// Check is one thing that was looked at.
type Check struct {
	Name   string
	Level  Level
	Says   string
	Cure   string // what helps; empty if all is well
	Module string // of the kernel, which to load may be the cure
}

// Feature is something of the kernel that was tried in a namespace of its own.
type Feature struct {
	Name     string // "nftables"
	For      string // what Gantry does with it
	Module   string // that has it, where it is one
	Optional bool   // only needed with more than one machine, or for some pods
	Err      error  // nil: it works
}

// Facts are what Read found out about a machine. The zero value of a part means that it was not asked.
type Facts struct {
	Kernel   string // release, "6.1.0-18-amd64"
	Features []Feature
	Cgroups  Cgroups
	SELinux  bool // enforces
	Ports    []Port
	Disk     Disk
	Clock    Clock
	Memory   Memory
}

// Cgroups says how the machine's control groups are mounted.
type Cgroups struct {
	Version     int      // of the hierarchy that has the controllers: 1 or 2; 0 is none
	Hybrid      bool     // version 1 with an empty hierarchy of version 2 beside it
	Controllers []string // that can be used
	ReadOnly    bool
}

// Port is a port that a node listens on.
type Port struct {
	At     netip.AddrPort
	For    string // "the API"
	Flag   string // that chooses it
	Err    error  // nil: it is free, or Gantry's already
	PID    int    // of who has it; 0 is unknown
	Holder string // its name
	Own    bool   // it is a gantry
}

// Disk is where the data dir is, or will be.
type Disk struct {
	Path       string
	FreeBytes  uint64
	TotalBytes uint64
	FreeFiles  uint64 // inodes; 0 of 0 where the file system has none
	TotalFiles uint64
	Syncs      []time.Duration // how long writes of 4 KB took until they were on the disk
	Err        error
}

// Clock says whether the machine's time is right.
type Clock struct {
	Synchronised bool
	Keeper       string // the program that sets it; empty is none
	Skews        []Skew
	Err          error
}

// Skew is how far a server's clock is ahead of this machine's.
type Skew struct {
	Server string
	Ahead  time.Duration
	Err    error // the server did not say
}

// Memory is what the machine has.
type Memory struct {
	TotalBytes, AvailableBytes uint64
}
