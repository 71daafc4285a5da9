//go:build linux

package machines

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// In calls fn on a thread inside of the network namespace that is mounted on path. Sockets that fn opens stay in that
// namespace.
func In(path string, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread() // the main thread must not change
			done <- In(path, fn)
			return
		}
		ns, err := os.Open(path)
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = ns.Close() }()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

// DialIn connects from inside of a namespace. The address must be an IP address.
func DialIn(path string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		var dialErr error
		inErr := In(path, func() error {
			conn, dialErr = new(net.Dialer).DialContext(ctx, network, address)
			return nil
		})
		return conn, errors.Join(inErr, dialErr)
	}
}

// Processes are the command lines, by pid, of the processes for which match is true.
func Processes(match func(pid int, cmdline string) bool) map[int]string {
	found := make(map[int]string)
	folders, _ := filepath.Glob("/proc/[0-9]*")
	for _, folder := range folders {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(folder), "%d", &pid); err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join(folder, "cmdline"))
		if err != nil {
			continue
		}
		text := strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
		if match(pid, text) {
			found[pid] = text
		}
	}
	return found
}

// Everything are the processes of the machine with a namespace and a data dir, those of its pods included.
func Everything(ns, dir string) map[int]string {
	spaces := map[uint64]bool{}
	var own syscall.Stat_t
	if syscall.Stat(ns, &own) == nil {
		spaces[own.Ino] = true
	}
	nets, _ := filepath.Glob(filepath.Join(dir, "net", "*", "*"))
	more, _ := filepath.Glob(filepath.Join(dir, "net", "*"))
	for _, path := range append(nets, more...) {
		var at syscall.Stat_t
		var fs syscall.Statfs_t
		const nsfs = 0x6e736673
		if syscall.Statfs(path, &fs) == nil && fs.Type == nsfs && syscall.Stat(path, &at) == nil {
			spaces[at.Ino] = true
		}
	}
	self := os.Getpid()
	return Processes(func(pid int, cmdline string) bool {
		if pid == self {
			return false
		}
		var at syscall.Stat_t
		return strings.Contains(cmdline, dir+"/") || strings.HasSuffix(cmdline, dir) ||
			syscall.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &at) == nil && spaces[at.Ino]
	})
}

// MountsUnder are the mount points at or below a folder.
func MountsUnder(folder string) ([]string, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var found []string
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); len(fields) > 4 && (fields[4] == folder || strings.HasPrefix(fields[4], folder+"/")) {
			found = append(found, fields[4])
		}
	}
	return found, nil
}
