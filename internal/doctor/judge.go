package doctor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of what is well.
const (
	minFreeBytes    = 256 << 20 // below it "gantry up" refuses to start
	wantFreeBytes   = 2 << 30   // images and logs need room; the node evicts pods when the disk is nearly full
	wantFreeShare   = 10        // percent of inodes
	imagesShare     = 15        // percent of the disk: imagefs.available<15%, upstream's default, below which a node takes no pods
	minMemoryBytes  = 256 << 20
	wantMemoryBytes = 900 << 20 // a machine of 1 GB shows a little less
	slowSync        = 10 * time.Millisecond
	// etcd's own bound for the time its log takes to reach the disk; heartbeats and elections suffer above it.
	// Source: etcd documentation, "Hardware recommendations" and the metric etcd_disk_wal_fsync_duration_seconds.
	badSync  = 100 * time.Millisecond
	wantSkew = 2 * time.Second // the servers tell their time in whole seconds
	badSkew  = 30 * time.Second
)

// Oldest kernel that Gantry is made for.
const kernelMajor, kernelMinor = 5, 10

// Judge says what is well on a machine and what is not, in a fixed order.
func Judge(f Facts) []Check {
	checks := []Check{judgeKernel(f.Kernel)}
	for _, feature := range f.Features {
		checks = append(checks, judgeFeature(feature))
	}
	checks = append(checks, judgeCgroups(f.Cgroups))
	if f.SELinux {
		checks = append(checks, Check{Name: "SELinux", Level: Warning, Says: "it enforces its rules, and Gantry is not tested with it",
			Cure: "if containers are refused something, \"ausearch -m avc\" says what"})
	}
	for _, p := range f.Ports {
		checks = append(checks, judgePort(p))
	}
	checks = append(checks, judgeDisk(f.Disk)...)
	checks = append(checks, judgeClock(f.Clock)...)
	return append(checks, judgeMemory(f.Memory))
}

func judgeKernel(release string) Check {
	c := Check{Name: "kernel", Level: OK, Says: release}
	major, rest, _ := strings.Cut(release, ".")
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(digits(rest))
	switch {
	case errA != nil || errB != nil:
		c.Level, c.Says, c.Cure = Warning, fmt.Sprintf("its version %q is not understood", release), fmt.Sprintf("see that it is %d.%d or newer", kernelMajor, kernelMinor)
	case a < kernelMajor || a == kernelMajor && b < kernelMinor:
		c.Level = Problem
		c.Says += fmt.Sprintf(" is older than %d.%d", kernelMajor, kernelMinor)
		c.Cure = "install a newer kernel, or a newer release of the system"
	}
	return c
}

func digits(text string) string {
	end := strings.IndexFunc(text, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		return text
	}
	return text[:end]
}

func judgeFeature(f Feature) Check {
	if f.Err == nil {
		return Check{Name: f.Name, Level: OK, Says: "works"}
	}
	c := Check{Name: f.Name, Level: Problem, Says: fmt.Sprintf("%v; it is needed for %s", f.Err, f.For)}
	if f.Optional {
		c.Level = Warning
	}
	c.Cure = "use a kernel that has it; those of Debian, Ubuntu, Fedora and Alpine do"
	if f.Module != "" {
		c.Module, c.Cure = f.Module, fmt.Sprintf("modprobe %s; if there is no such module, %s", f.Module, c.Cure)
	}
	return c
}

func judgeCgroups(g Cgroups) Check {
	c := Check{Name: "cgroups", Level: OK, Says: "version " + strconv.Itoa(g.Version)}
	if g.Hybrid {
		c.Says += ", with an empty hierarchy of version 2 beside it"
	}
	if g.Version == 0 {
		c.Level, c.Says, c.Cure = Problem, "no control groups at /sys/fs/cgroup", "mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd"
		return c
	}
	if g.ReadOnly {
		c.Level, c.Says, c.Cure = Problem, "/sys/fs/cgroup is read-only", "if this machine is a container, start it privileged"
		return c
	}
	// Limits of pods need these; runc's version 1 needs devices and freezer as well.
	want := []string{"cpu", "memory", "pids"}
	if g.Version == 1 {
		want = append(want, "devices", "freezer")
	}
	var missing []string
	for _, name := range want {
		if !slices.Contains(g.Controllers, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return c
	}
	c.Level, c.Says = Problem, c.Says+" without "+strings.Join(missing, ", ")
	c.Cure = "boot with a kernel that has them"
	if slices.Contains(missing, "memory") { // as on a Raspberry Pi
		c.Cure = "add cgroup_enable=memory cgroup_memory=1 to the kernel's command line (on a Raspberry Pi /boot/firmware/cmdline.txt) and reboot"
	}
	return c
}

func judgePort(p Port) Check {
	c := Check{Name: "port " + strconv.Itoa(int(p.At.Port())), Level: OK, Says: "free, for " + p.For}
	switch {
	case p.Err == nil && p.Own:
		c.Says = fmt.Sprintf("%s listens on it (process id %d)", p.Holder, p.PID)
	case p.Err == nil:
	case p.PID != 0:
		c.Level, c.Says = Problem, fmt.Sprintf("%s has it (process id %d), and it is wanted for %s", p.Holder, p.PID, p.For)
		c.Cure = fmt.Sprintf("stop %s, or choose another port with %s", p.Holder, p.Flag)
	default:
		c.Level, c.Says, c.Cure = Problem, fmt.Sprintf("%v; it is wanted for %s", p.Err, p.For), "choose another with "+p.Flag
	}
	return c
}

func judgeDisk(d Disk) []Check {
	if d.Err != nil {
		return []Check{{Name: "disk", Level: Problem, Says: d.Err.Error(), Cure: "choose another --data-dir"}}
	}
	space := Check{Name: "disk", Level: OK, Says: fmt.Sprintf("%s free of %s at %s", size(d.FreeBytes), size(d.TotalBytes), d.Path)}
	switch {
	case d.FreeBytes < minFreeBytes:
		space.Level, space.Cure = Problem, "free some space, or choose another --data-dir; a start needs "+size(minFreeBytes)
	case d.TotalBytes > 0 && d.FreeBytes < d.TotalBytes/100*imagesShare:
		space.Level, space.Says = Warning, space.Says+fmt.Sprintf("; below %d %% a node takes no pods", imagesShare)
		space.Cure = "free some space, choose another --data-dir, or lower the bound with --eviction-hard"
	case d.FreeBytes < wantFreeBytes:
		space.Level, space.Cure = Warning, "free some space: images and logs soon need "+size(wantFreeBytes)
	case d.TotalFiles > 0 && d.FreeFiles*100/d.TotalFiles < wantFreeShare:
		space.Level = Warning
		space.Says = fmt.Sprintf("%d of %d files are left at %s", d.FreeFiles, d.TotalFiles, d.Path)
		space.Cure = "remove what has many small files, or choose another --data-dir"
	}
	if len(d.Syncs) == 0 {
		return []Check{space}
	}
	syncs := slices.Clone(d.Syncs)
	slices.Sort(syncs)
	median, worst := syncs[len(syncs)/2], syncs[len(syncs)-1]
	speed := Check{Name: "disk writes", Level: OK, Says: fmt.Sprintf("on the disk after %s, at worst %s", rounded(median), rounded(worst))}
	if median > slowSync {
		speed.Level = Warning
		speed.Says += fmt.Sprintf("; more than %s slows each change of the cluster", slowSync)
		speed.Cure = "put the data dir on an SSD with --data-dir, or make this machine a worker"
	}
	if median > badSync {
		speed.Says += ", and several servers may lose their leader"
	}
	return []Check{space, speed}
}

func judgeClock(k Clock) []Check {
	c := Check{Name: "clock", Level: OK, Says: "set by the network"}
	if k.Keeper != "" {
		c.Says = "set by " + k.Keeper
	}
	switch {
	case k.Err != nil:
		c.Level, c.Says, c.Cure = Warning, k.Err.Error(), "compare \"date -u\" with another machine's"
	case !k.Synchronised && k.Keeper != "":
		c.Level, c.Says, c.Cure = Warning, k.Keeper+" runs but has not set it yet", "wait a minute; then see what "+k.Keeper+" says in its log"
	case !k.Synchronised:
		c.Level, c.Says, c.Cure = Warning, "nothing keeps it right; certificates fail on machines whose clocks differ", "install systemd-timesyncd or chrony"
	}
	checks := []Check{c}
	for _, s := range k.Skews {
		checks = append(checks, judgeSkew(s))
	}
	return checks
}

func judgeSkew(s Skew) Check {
	c := Check{Name: "clock of " + s.Server, Level: OK, Says: "the same as here"}
	ahead := "ahead of"
	if s.Ahead < 0 {
		ahead = "behind"
	}
	switch off := s.Ahead.Abs(); {
	case s.Err != nil:
		c.Level, c.Says, c.Cure = Warning, s.Err.Error(), "see that the server runs and that nothing keeps this machine from it: \"gantry network check\""
	case off > badSkew:
		c.Level, c.Says, c.Cure = Problem, fmt.Sprintf("%s %s this machine's", off.Round(time.Second), ahead), "set both by the network: systemd-timesyncd or chrony"
	case off > wantSkew:
		c.Level, c.Says, c.Cure = Warning, fmt.Sprintf("%s %s this machine's", off.Round(time.Second), ahead), "set both by the network: systemd-timesyncd or chrony"
	}
	return c
}

func judgeMemory(m Memory) Check {
	c := Check{Name: "memory", Level: OK, Says: fmt.Sprintf("%s free of %s", size(m.AvailableBytes), size(m.TotalBytes))}
	switch {
	case m.TotalBytes == 0:
		c.Level, c.Says, c.Cure = Warning, "the kernel does not say how much there is", "see that /proc is mounted"
	case m.AvailableBytes < minMemoryBytes:
		c.Level, c.Cure = Problem, "stop something: a node alone needs "+size(minMemoryBytes)
	case m.TotalBytes < wantMemoryBytes:
		c.Level, c.Cure = Warning, "this is enough for a node and little beside it; 1 GB is a good start"
	}
	return c
}

func size(bytes uint64) string {
	if bytes < 10<<30 {
		return fmt.Sprintf("%d MB", bytes>>20)
	}
	return fmt.Sprintf("%d GB", bytes>>30)
}

func rounded(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(100 * time.Microsecond)
}
