package doctor

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/lifecycle"
)

// Options say what to look at.
type Options struct {
	DataDir  string
	Ports    []Port    // At, For and Flag are given
	Servers  []string  // HOST:PORT of other servers' APIs, whose clocks are compared
	Features []Feature // tried by others, such as those of the network
}

// How the disk's speed is found, and how long a server may take to tell its time.
const (
	syncCount     = 32
	syncBytes     = 4096
	serverTimeout = 3 * time.Second
)

// Read asks the machine. What cannot be found out is in the facts as an error.
func Read(ctx context.Context, opts Options) Facts {
	root := os.DirFS("/")
	facts := Facts{
		Kernel: kernelRelease(), Cgroups: readCgroups(root), SELinux: readWord(root, "sys/fs/selinux/enforce") == "1",
		Memory: readMemory(root), Disk: readDisk(ctx, opts.DataDir), Clock: readClock(root),
	}
	facts.Features = append(facts.Features, opts.Features...)
	facts.Features = append(facts.Features, readNamespaces(root), readSeccomp(root), tryOverlay(existing(opts.DataDir)))
	for _, p := range opts.Ports {
		facts.Ports = append(facts.Ports, readPort(p))
	}
	for _, server := range opts.Servers {
		facts.Clock.Skews = append(facts.Clock.Skews, readSkew(ctx, server))
	}
	return facts
}

func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}

func readWord(root fs.FS, path string) string {
	text, err := fs.ReadFile(root, path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// readCgroups looks at what is mounted below /sys/fs/cgroup.
func readCgroups(root fs.FS) Cgroups {
	var g Cgroups
	unified := false
	for line := range strings.Lines(readWord(root, "proc/mounts")) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[1], "/sys/fs/cgroup") {
			continue
		}
		options := strings.Split(fields[3], ",")
		switch fields[2] {
		case "cgroup2":
			unified = unified || fields[1] == "/sys/fs/cgroup"
			g.Hybrid = true
		case "cgroup":
			for _, option := range options {
				if slices.Contains([]string{"cpu", "memory", "pids", "devices", "freezer", "cpuset", "blkio", "cpuacct", "hugetlb"}, option) {
					g.Controllers = append(g.Controllers, option)
				}
			}
		default:
			continue
		}
		g.ReadOnly = g.ReadOnly || slices.Contains(options, "ro")
	}
	switch {
	case unified:
		g.Version, g.Hybrid = 2, false
		g.Controllers = strings.Fields(readWord(root, "sys/fs/cgroup/cgroup.controllers"))
	case len(g.Controllers) > 0:
		g.Version = 1
	default:
		g.Hybrid = false
	}
	return g
}

func readNamespaces(root fs.FS) Feature {
	f := Feature{Name: "namespaces", For: "containers"}
	var missing []string
	entries, err := fs.ReadDir(root, "proc/self/ns")
	if err != nil {
		f.Err = fmt.Errorf("the kernel does not say which it has: %w", err)
		return f
	}
	for _, want := range []string{"cgroup", "ipc", "mnt", "net", "pid", "uts"} {
		if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == want }) {
			missing = append(missing, want)
		}
	}
	if len(missing) > 0 {
		f.Err = fmt.Errorf("the kernel has none of the kind %s", strings.Join(missing, ", "))
	}
	return f
}

func readSeccomp(root fs.FS) Feature {
	f := Feature{Name: "seccomp", For: "keeping containers from system calls that they do not need"}
	if actions := strings.Fields(readWord(root, "proc/sys/kernel/seccomp/actions_avail")); !slices.Contains(actions, "errno") {
		f.Err = errors.New("the kernel has no filters for system calls (CONFIG_SECCOMP_FILTER)")
	}
	return f
}

// existing is the nearest folder above path that is there.
func existing(path string) string {
	for path != "/" && path != "." {
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			return path
		}
		path = filepath.Dir(path)
	}
	return path
}

// tryOverlay mounts an overlay in a mount namespace of its own, on the file system that will hold the images.
func tryOverlay(dir string) Feature {
	f := Feature{Name: "overlayfs", For: "the file systems of containers", Module: "overlay"}
	work, err := os.MkdirTemp(dir, ".gantry-doctor-")
	if err != nil {
		f.Err, f.Module = fmt.Errorf("cannot be tried at %s: %w", dir, err), ""
		return f
	}
	defer func() { _ = os.RemoveAll(work) }()
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(work, name), 0o700); err != nil {
			f.Err, f.Module = fmt.Errorf("cannot be tried at %s: %w", dir, err), ""
			return f
		}
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		done <- mountOverlay(work)
	}()
	if err := <-done; err != nil {
		f.Err = fmt.Errorf("cannot be mounted at %s: %w", dir, err)
	}
	return f
}

func mountOverlay(work string) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("no namespace for mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mounts stay shared: %w", err)
	}
	merged := filepath.Join(work, "merged")
	options := fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", work, work, work)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return err
	}
	err := os.WriteFile(filepath.Join(merged, "probe"), nil, 0o600)
	return errors.Join(err, unix.Unmount(merged, unix.MNT_DETACH))
}

// readPort tries to listen, as a node would.
func readPort(p Port) Port {
	listener, err := net.Listen("tcp", p.At.String())
	if err == nil {
		p.Err = listener.Close()
		return p
	}
	p.Err = err
	if op, ok := errors.AsType[*net.OpError](err); ok {
		p.Err = op.Err
	}
	if errors.Is(err, unix.EADDRINUSE) {
		p.PID, p.Holder, _ = lifecycle.PortHolder(p.At.Port())
		if p.Own = p.Holder == "gantry" || strings.HasPrefix(p.Holder, "gantry-"); p.Own {
			p.Err = nil
		}
	}
	return p
}

func readDisk(ctx context.Context, dataDir string) Disk {
	d := Disk{Path: existing(dataDir)}
	var stat unix.Statfs_t
	if err := unix.Statfs(d.Path, &stat); err != nil {
		d.Err = fmt.Errorf("look at the disk of %s: %w", d.Path, err)
		return d
	}
	block := uint64(stat.Bsize) //nolint:gosec // never negative
	d.FreeBytes, d.TotalBytes, d.FreeFiles, d.TotalFiles = stat.Bavail*block, stat.Blocks*block, stat.Ffree, stat.Files
	if stat.Flags&unix.ST_RDONLY != 0 {
		d.Err = fmt.Errorf("%s is on a read-only file system", d.Path)
		return d
	}
	if d.FreeBytes > minFreeBytes/2 {
		d.Syncs, d.Err = measureSyncs(ctx, d.Path)
	}
	return d
}

// measureSyncs writes as etcd's log does: a little at a time, and each time until it is on the disk.
func measureSyncs(ctx context.Context, dir string) (syncs []time.Duration, err error) {
	file, err := os.CreateTemp(dir, ".gantry-doctor-")
	if err != nil {
		return nil, fmt.Errorf("%s cannot be written: %w", dir, err)
	}
	defer func() {
		_ = file.Close()
		_ = os.Remove(file.Name())
	}()
	block := bytes.Repeat([]byte{0xa5}, syncBytes)
	deadline := time.Now().Add(serverTimeout)
	for len(syncs) < syncCount && time.Now().Before(deadline) && ctx.Err() == nil {
		begun := time.Now()
		if _, err := file.Write(block); err != nil {
			return nil, fmt.Errorf("%s cannot be written: %w", dir, err)
		}
		if err := unix.Fdatasync(int(file.Fd())); err != nil {
			return nil, fmt.Errorf("%s cannot be brought to the disk: %w", dir, err)
		}
		syncs = append(syncs, time.Since(begun))
	}
	return syncs, nil
}

// readClock asks the kernel whether somebody keeps its clock right (adjtimex(2)), and who that may be.
func readClock(root fs.FS) Clock {
	var now unix.Timex
	if _, err := unix.Adjtimex(&now); err != nil {
		return Clock{Err: fmt.Errorf("the kernel does not say whether the clock is right: %w", err)}
	}
	return Clock{Synchronised: now.Status&unix.STA_UNSYNC == 0, Keeper: clockKeeper(root)}
}

// clockKeeper finds the program that sets the clock.
func clockKeeper(root fs.FS) string {
	// The kernel cuts names of processes after 15 characters.
	known := map[string]string{"systemd-timesyn": "systemd-timesyncd", "chronyd": "chronyd", "ntpd": "ntpd", "openntpd": "openntpd"}
	files, err := fs.Glob(root, "proc/[0-9]*/comm")
	if err != nil {
		return ""
	}
	for _, file := range files {
		if name := known[readWord(root, file)]; name != "" {
			return name
		}
	}
	return ""
}

// readSkew compares clocks with a server's. The time in an answer is no secret and nothing is done with it but to tell it, so it does
// not matter who answers: a machine whose clock is wrong could not check the certificate.
func readSkew(ctx context.Context, server string) Skew {
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, //nolint:gosec // see above
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+server+"/livez", http.NoBody)
	if err != nil {
		return Skew{Server: server, Err: fmt.Errorf("cannot be asked: %w", err)}
	}
	sent := time.Now()
	response, err := client.Do(request)
	if err != nil {
		return Skew{Server: server, Err: fmt.Errorf("does not answer: %w", errors.Unwrap(err))}
	}
	defer func() { _ = response.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<16))
	took := time.Since(sent)
	said, err := http.ParseTime(response.Header.Get("Date"))
	if err != nil {
		return Skew{Server: server, Err: fmt.Errorf("does not tell its time: %w", err)}
	}
	// It was told in whole seconds, cut off: half a second more is the best guess, and half a second the error.
	return Skew{Server: server, Ahead: said.Add(time.Second / 2).Sub(sent.Add(took / 2))}
}

func readMemory(root fs.FS) Memory {
	var m Memory
	for line := range strings.Lines(readWord(root, "proc/meminfo")) {
		name, rest, _ := strings.Cut(line, ":")
		kilobytes, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil {
			continue
		}
		switch name {
		case "MemTotal":
			m.TotalBytes = kilobytes << 10
		case "MemAvailable":
			m.AvailableBytes = kilobytes << 10
		}
	}
	return m
}
