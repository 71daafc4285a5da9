package doctor

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// well is a machine without a fault.
func well() Facts {
	return Facts{
		Kernel:   "6.1.0-18-amd64",
		Features: []Feature{{Name: "bridges", For: "the network of pods", Module: "bridge"}, {Name: "seccomp", For: "containers"}},
		Cgroups:  Cgroups{Version: 2, Controllers: []string{"cpuset", "cpu", "io", "memory", "pids"}},
		Ports:    []Port{{At: netip.MustParseAddrPort("127.0.0.1:6443"), For: "the API", Flag: "--listen"}},
		Disk: Disk{Path: "/var/lib", FreeBytes: 50 << 30, TotalBytes: 100 << 30, FreeFiles: 90, TotalFiles: 100,
			Syncs: []time.Duration{time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond}},
		Clock:  Clock{Synchronised: true, Keeper: "chronyd", Skews: []Skew{{Server: "192.0.2.1:6443", Ahead: 300 * time.Millisecond}}},
		Memory: Memory{TotalBytes: 4 << 30, AvailableBytes: 2 << 30},
	}
}

func TestJudge(t *testing.T) {
	slow := []time.Duration{40 * time.Millisecond, 50 * time.Millisecond, 60 * time.Millisecond}
	for name, tc := range map[string]struct {
		change func(*Facts)
		check  string // the one finding that is not ok; "" is none
		level  Level
		says   string // a part of what it says
		cure   string // a part of what helps
	}{
		"all is well":       {func(*Facts) {}, "", OK, "", ""},
		"old kernel":        {func(f *Facts) { f.Kernel = "5.4.0-42-generic" }, "kernel", Problem, "older than 5.10", "newer kernel"},
		"oldest kernel":     {func(f *Facts) { f.Kernel = "5.10" }, "", OK, "", ""},
		"strange kernel":    {func(f *Facts) { f.Kernel = "microvm" }, "kernel", Warning, `"microvm"`, "5.10"},
		"no bridges":        {func(f *Facts) { f.Features[0].Err = errors.New("operation not supported") }, "bridges", Problem, "the network of pods", "modprobe bridge"},
		"no seccomp":        {func(f *Facts) { f.Features[1].Err = errors.New("no filters") }, "seccomp", Problem, "no filters", "use a kernel"},
		"optional feature":  {func(f *Facts) { f.Features[0].Err, f.Features[0].Optional = errors.New("no"), true }, "bridges", Warning, "no", "modprobe"},
		"no cgroups":        {func(f *Facts) { f.Cgroups = Cgroups{} }, "cgroups", Problem, "no control groups", "mount -t cgroup2"},
		"read-only cgroups": {func(f *Facts) { f.Cgroups.ReadOnly = true }, "cgroups", Problem, "read-only", "privileged"},
		"no memory cgroup":  {func(f *Facts) { f.Cgroups.Controllers = []string{"cpu", "pids"} }, "cgroups", Problem, "without memory", "cgroup_enable=memory"},
		"version 1 is enough": {func(f *Facts) {
			f.Cgroups = Cgroups{1, true, []string{"cpu", "memory", "pids", "devices", "freezer"}, false}
		}, "", OK, "", ""},
		"version 1 lacks": {func(f *Facts) { f.Cgroups = Cgroups{1, true, []string{"cpu", "memory", "pids"}, false} }, "cgroups", Problem, "devices, freezer", "kernel"},
		"SELinux":         {func(f *Facts) { f.SELinux = true }, "SELinux", Warning, "not tested", "ausearch"},
		"port of another": {func(f *Facts) { f.Ports[0].Err, f.Ports[0].PID, f.Ports[0].Holder = errors.New("in use"), 312, "nginx" },
			"port 6443", Problem, "nginx has it (process id 312)", "--listen"},
		"port of nobody known": {func(f *Facts) { f.Ports[0].Err = errors.New("address already in use") }, "port 6443", Problem, "already in use", "--listen"},
		"our own port":         {func(f *Facts) { f.Ports[0].Own, f.Ports[0].PID, f.Ports[0].Holder = true, 7, "gantry" }, "", OK, "", ""},
		"full disk":            {func(f *Facts) { f.Disk.FreeBytes = 100 << 20 }, "disk", Problem, "100 MB free", "--data-dir"},
		"nearly full disk":     {func(f *Facts) { f.Disk.FreeBytes, f.Disk.TotalBytes = 1<<30, 4<<30 }, "disk", Warning, "1024 MB free", "images"},
		"disk under pressure":  {func(f *Facts) { f.Disk.FreeBytes = 12 << 30 }, "disk", Warning, "takes no pods", "--eviction-hard"},
		"few inodes":           {func(f *Facts) { f.Disk.FreeFiles = 9 }, "disk", Warning, "9 of 100 files", "small files"},
		"no inodes at all":     {func(f *Facts) { f.Disk.FreeFiles, f.Disk.TotalFiles = 0, 0 }, "", OK, "", ""},
		"read-only disk":       {func(f *Facts) { f.Disk.Err = errors.New("read-only file system") }, "disk", Problem, "read-only", "--data-dir"},
		"slow disk":            {func(f *Facts) { f.Disk.Syncs = slow }, "disk writes", Warning, "50ms", "SSD"},
		"clock of its own":     {func(f *Facts) { f.Clock.Synchronised, f.Clock.Keeper = false, "" }, "clock", Warning, "nothing keeps it right", "chrony"},
		"clock not set yet":    {func(f *Facts) { f.Clock.Synchronised = false }, "clock", Warning, "has not set it yet", "chronyd says"},
		"clocks differ":        {func(f *Facts) { f.Clock.Skews[0].Ahead = -5 * time.Second }, "clock of 192.0.2.1:6443", Warning, "5s behind", "set both"},
		"clocks differ much":   {func(f *Facts) { f.Clock.Skews[0].Ahead = time.Hour }, "clock of 192.0.2.1:6443", Problem, "1h0m0s ahead", "set both"},
		"silent server":        {func(f *Facts) { f.Clock.Skews[0].Err = errors.New("does not answer") }, "clock of 192.0.2.1:6443", Warning, "does not answer", "network check"},
		"little memory free":   {func(f *Facts) { f.Memory.AvailableBytes = 100 << 20 }, "memory", Problem, "100 MB free", "256 MB"},
		"small machine":        {func(f *Facts) { f.Memory = Memory{512 << 20, 400 << 20} }, "memory", Warning, "400 MB free of 512 MB", "1 GB"},
		"no /proc":             {func(f *Facts) { f.Memory = Memory{} }, "memory", Warning, "does not say", "/proc"},
	} {
		t.Run(name, func(t *testing.T) {
			facts := well()
			tc.change(&facts)
			var found []Check
			for _, c := range Judge(facts) {
				if c.Level != OK {
					found = append(found, c)
				} else if c.Cure != "" || c.Says == "" {
					t.Errorf("a finding that is ok says %q and has the cure %q", c.Says, c.Cure)
				}
			}
			if tc.check == "" {
				if len(found) > 0 {
					t.Errorf("Judge found %+v, want nothing", found)
				}
				return
			}
			if len(found) != 1 {
				t.Fatalf("Judge found %+v, want one finding", found)
			}
			if c := found[0]; c.Name != tc.check || c.Level != tc.level || !strings.Contains(c.Says, tc.says) || !strings.Contains(c.Cure, tc.cure) {
				t.Errorf("Judge found %+v; want %s %s saying %q with the cure %q", c, tc.level, tc.check, tc.says, tc.cure)
			}
		})
	}
}
