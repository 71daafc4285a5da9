package podnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nsfsMagic is the file system type of a bind-mounted namespace (linux/magic.h).
const nsfsMagic = 0x6e736673

// createNamespace makes a network namespace, pins it by a bind mount on path, and returns a
// netlink handle that talks to it. The caller closes the handle.
func createNamespace(path string) (*netlink.Handle, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("creating the namespace's file: %w", err)
	}
	_ = f.Close()
	var handle *netlink.Handle
	err = onSpareThread(func() error {
		var err error
		handle, err = unshareInto(path)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, removeNamespace(path))
	}
	return handle, nil
}

// errLostThread says that a thread could not return to its own namespace and must die.
var errLostThread = errors.New("thread cannot return to its network namespace")

// onSpareThread runs fn on an operating system thread of its own that is not the process's
// first one: ending that one hangs the process. A thread that fn leaves in a foreign
// namespace (errLostThread) is never used again.
func onSpareThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Holding the first thread here forces the nested goroutine onto another.
			defer runtime.UnlockOSThread()
			done <- onSpareThread(fn)
			return
		}
		err := fn()
		if !errors.Is(err, errLostThread) {
			runtime.UnlockOSThread() // otherwise the thread ends with the goroutine
		}
		done <- err
	}()
	return <-done
}

// unshareInto moves the calling, locked thread into a new namespace, sets it up, and back.
func unshareInto(path string) (handle *netlink.Handle, err error) {
	self := "/proc/self/task/" + strconv.Itoa(unix.Gettid()) + "/ns/net"
	home, err := unix.Open(self, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the own network namespace: %w", err)
	}
	defer func() { _ = unix.Close(home) }()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("creating a network namespace: %w", err)
	}
	defer func() {
		if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
			if handle != nil {
				handle.Close()
				handle = nil
			}
			err = errors.Join(errLostThread, back, err)
		}
	}()
	if err := unix.Mount(self, path, "none", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("pinning the network namespace: %w", err)
	}
	// A redirect would let two pods on one bridge talk past the node's address translation.
	for _, name := range []string{"all", "default"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/accept_redirects", []byte("0"), 0); err != nil {
			return nil, fmt.Errorf("refusing ICMP redirects in the pod: %w", err)
		}
	}
	// Pods have no IPv6. The link-local address that the kernel would give to each link reaches other pods on the bridge without
	// crossing the node's IP stack, and so past network policies. The loopback link is there already and keeps its own.
	err = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel may be without it
		return nil, fmt.Errorf("switching IPv6 off in the pod: %w", err)
	}
	if handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("opening netlink in the pod: %w", err)
	}
	return handle, nil
}

// isNamespace reports whether a namespace is mounted on path.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == nsfsMagic
}

// removeNamespace unmounts what is on path, however often, and removes the file. The kernel
// then takes the namespace down with all that is in it, once no process is left inside.
func removeNamespace(path string) error {
	for isNamespace(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmounting network namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing network namespace %s: %w", path, err)
	}
	return nil
}

// shareMount makes dir a shared mount of its own, so that an unmount in it reaches the mount
// namespaces that were copied from this one; a copy would keep every pod's links alive.
func shareMount(dir string) error {
	if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err == nil {
		return nil
	} else if !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("sharing mount %s: %w", dir, err)
	}
	if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mounting %s on itself: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("sharing mount %s: %w", dir, err)
	}
	return nil
}
