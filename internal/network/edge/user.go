package edge

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// becomeUser gives up root for opts.UID but for the right to bind low ports, which a later
// change of addresses needs. It works on all threads of a program without cgo.
func becomeUser(opts Options, state *os.Root) error {
	if opts.UID == 0 || os.Geteuid() != 0 {
		return nil
	}
	names := []string{".", tableFile, "start.lock", accessDir}
	logs, err := fs.ReadDir(state.FS(), accessDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("edge: %w", err)
	}
	for _, entry := range logs {
		names = append(names, accessDir+"/"+entry.Name())
	}
	for _, name := range names {
		if err := state.Chown(name, opts.UID, opts.UID); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("edge: giving the state to user %d: %w", opts.UID, err)
		}
	}
	if err := os.Chown(opts.Socket, opts.UID, opts.UID); err != nil {
		return fmt.Errorf("edge: giving the control socket to user %d: %w", opts.UID, err)
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0); errno != 0 {
		return fmt.Errorf("edge: keeping capabilities: %w", errno)
	}
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("edge: leaving groups: %w", err)
	}
	if err := syscall.Setgid(opts.UID); err != nil {
		return fmt.Errorf("edge: becoming group %d: %w", opts.UID, err)
	}
	if err := syscall.Setuid(opts.UID); err != nil {
		return fmt.Errorf("edge: becoming user %d: %w", opts.UID, err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	keep := uint32(1) << unix.CAP_NET_BIND_SERVICE
	data := [2]unix.CapUserData{{Effective: keep, Permitted: keep}}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data)), 0); errno != 0 {
		return fmt.Errorf("edge: dropping capabilities: %w", errno)
	}
	return nil
}
