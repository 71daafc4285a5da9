//go:build linux

package lifecycle

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// minFreeBytes is the space below which a start is refused: etcd's log alone takes 64 MB ahead.
const minFreeBytes = 256 << 20

// CheckRoot returns an error unless the process runs as root.
func CheckRoot(what string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s needs root: it makes network interfaces, mounts and containers; try again with sudo", what)
	}
	return nil
}

// CheckDataDir makes the data dir and returns an error when it cannot be written or is nearly full.
func CheckDataDir(dataDir string) error {
	const cure = "choose another --data-dir, or see to its permissions"
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return fmt.Errorf("data dir cannot be made: %w; %s", err, cure)
	}
	probe, err := os.CreateTemp(dataDir, ".probe-*")
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("data dir %s is on a read-only file system; choose another --data-dir", dataDir)
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("data dir %s is on a full disk; free some space, or choose another --data-dir", dataDir)
	case err != nil:
		return fmt.Errorf("data dir cannot be written: %w; %s", err, cure)
	}
	_ = probe.Close()
	_ = os.Remove(probe.Name())
	var stat unix.Statfs_t
	if err := unix.Statfs(dataDir, &stat); err != nil {
		return fmt.Errorf("look at the disk of %s: %w", dataDir, err)
	}
	return checkFree(dataDir, stat.Bavail*uint64(stat.Bsize))
}

func checkFree(dataDir string, freeBytes uint64) error {
	if freeBytes < minFreeBytes {
		return fmt.Errorf("data dir %s is on a disk with %d MB left, and Gantry needs %d MB to start; free some space, or choose another --data-dir",
			dataDir, freeBytes>>20, minFreeBytes>>20)
	}
	return nil
}

// CheckPort returns an error when a server could not listen at addr; flag names what chose it. A port
// in use is an error that names the process, where that can be seen.
func CheckPort(addr netip.AddrPort, flag string) error {
	listener, err := net.Listen("tcp", addr.String())
	if err == nil {
		if err := listener.Close(); err != nil {
			return fmt.Errorf("try %s: %w", addr, err)
		}
		return nil
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		who := "another process"
		if pid, name, ok := PortHolder(addr.Port()); ok {
			who = fmt.Sprintf("%s (process id %d)", name, pid)
		}
		return fmt.Errorf("port %d at %s is in use by %s; stop it, or choose another port with %s", addr.Port(), addr.Addr(), who, flag)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("no network interface of this machine has the address %s; choose another with %s", addr.Addr(), flag)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("port %d needs root; try again with sudo, or choose another port with %s", addr.Port(), flag)
	}
	return fmt.Errorf("listen at %s: %w; see %s", addr, err, flag)
}

// PortHolder finds the process that listens on a TCP port, by the sockets in /proc.
func PortHolder(port uint16) (pid int, name string, ok bool) {
	inodes := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		// The thread's own view: it may be in another network namespace than the process.
		text, err := os.ReadFile("/proc/thread-self/net/" + table)
		if err != nil {
			continue
		}
		for _, inode := range listeningInodes(string(text), port) {
			inodes["socket:["+inode+"]"] = true
		}
	}
	if len(inodes) == 0 {
		return 0, "", false
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0, "", false
	}
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !inodes[target] {
			continue
		}
		if _, err := fmt.Sscanf(link, "/proc/%d/", &pid); err != nil {
			continue
		}
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			continue
		}
		return pid, strings.TrimSpace(string(comm)), true
	}
	return 0, "", false
}

// listeningInodes picks the inodes of sockets that listen on port out of a /proc/net/tcp table
// (Documentation/networking/proc_net_tcp.rst: local address in field 1, state in 3, inode in 9).
func listeningInodes(table string, port uint16) []string {
	const listen = "0A"
	var inodes []string
	suffix := fmt.Sprintf(":%04X", port)
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) > 9 && fields[3] == listen && strings.HasSuffix(fields[1], suffix) {
			inodes = append(inodes, fields[9])
		}
	}
	return inodes
}

// AlreadyRunning returns the process id of the gantry that uses the data dir when err is a LockedError.
func AlreadyRunning(err error) (pid int, ok bool) {
	locked, ok := errors.AsType[*LockedError](err)
	if !ok {
		return 0, false
	}
	return locked.PID, true
}

// Alive reports whether a process with this id exists.
func Alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}
