package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/container"
)

// shmSize is the size of a pod's /dev/shm. Source: the CRI's default, 64 MiB.
const shmSize = "size=65536k"

// The names in a sandbox's namespace folder.
const (
	ipcName = "ipc"
	utsName = "uts"
	pidName = "pid"
	shmName = "shm"
)

// nsPath returns the path that holds one namespace of a sandbox.
func nsPath(state, sandboxID, name string) string {
	return filepath.Join(state, namespacesDir, sandboxID, name)
}

// ensureNamespaces makes the IPC and UTS namespaces of a sandbox and its shm mount, unless
// they are there. The namespaces live as long as the mounts that hold them.
func ensureNamespaces(state string, sb container.Sandbox) error {
	dir := filepath.Join(state, namespacesDir, sb.ID)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("make namespace folder: %w", err)
	}
	if !sb.HostIPC {
		if err := ensureShm(filepath.Join(dir, shmName)); err != nil {
			return err
		}
	}
	want := map[string]int{}
	if !sb.HostIPC {
		want[ipcName] = unix.CLONE_NEWIPC
	}
	if !hostUTS(sb) {
		want[utsName] = unix.CLONE_NEWUTS
	}
	flags := 0
	for name, flag := range want {
		held, err := isMountOf(filepath.Join(dir, name), unix.NSFS_MAGIC)
		if err != nil {
			return err
		}
		if held {
			delete(want, name)
			continue
		}
		flags |= flag
	}
	netSysctls, ipcSysctls := splitSysctls(sb.Sysctls)
	if flags == 0 && len(netSysctls) == 0 {
		return nil
	}
	return onThrowawayThread(func() error {
		return enterNamespaces(dir, sb, want, flags, netSysctls, ipcSysctls)
	})
}

// onThrowawayThread runs fn on an operating system thread that ends afterwards, so that fn
// may change the thread's namespaces. It never is the main thread, whose namespaces are
// what /proc says of the whole process.
func onThrowawayThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			result <- onThrowawayThread(fn) // while this goroutine keeps the main thread busy
			runtime.UnlockOSThread()
			return
		}
		result <- fn() // never unlocked: the thread ends with the goroutine
	}()
	return <-result
}

// hostUTS reports whether a sandbox has the node's own host name.
func hostUTS(sb container.Sandbox) bool { return sb.NetNSPath == "" || sb.Hostname == "" }

// enterNamespaces moves this thread into new namespaces, sets them up and mounts them.
func enterNamespaces(dir string, sb container.Sandbox, want map[string]int, flags int, netSysctls, ipcSysctls map[string]string) error {
	if flags != 0 {
		if err := unix.Unshare(flags); err != nil {
			return fmt.Errorf("make namespaces: %w", err)
		}
	}
	if flags&unix.CLONE_NEWUTS != 0 {
		if err := unix.Sethostname([]byte(sb.Hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", sb.Hostname, err)
		}
		if sb.Domain != "" {
			if err := unix.Setdomainname([]byte(sb.Domain)); err != nil {
				return fmt.Errorf("set domain name %q: %w", sb.Domain, err)
			}
		}
	}
	if flags&unix.CLONE_NEWIPC != 0 {
		if err := writeSysctls(ipcSysctls); err != nil {
			return err
		}
	}
	for name := range want {
		target := filepath.Join(dir, name)
		if err := touch(target); err != nil {
			return fmt.Errorf("hold namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/"+name, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("hold namespace %s: %w", name, err)
		}
	}
	if len(netSysctls) == 0 || sb.NetNSPath == "" {
		return nil
	}
	netns, err := os.Open(sb.NetNSPath)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer netns.Close()
	if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return writeSysctls(netSysctls)
}

// splitSysctls tells those of the network namespace from those of the IPC namespace.
func splitSysctls(all map[string]string) (network, ipc map[string]string) {
	network, ipc = map[string]string{}, map[string]string{}
	for key, value := range all {
		key = strings.ReplaceAll(key, "/", ".")
		if strings.HasPrefix(key, "net.") {
			network[key] = value
		} else {
			ipc[key] = value
		}
	}
	return network, ipc
}

// writeSysctls sets kernel parameters of this thread's namespaces. Only names that belong
// to a namespace may come here.
func writeSysctls(values map[string]string) error {
	for key, value := range values {
		if !namespacedSysctl(key) {
			return fmt.Errorf("sysctl %s is not a pod's to set", key)
		}
		path := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("set sysctl %s: %w", key, err)
		}
	}
	return nil
}

// namespacedSysctl reports whether a parameter belongs to an IPC or network namespace.
// Source: Kubernetes documentation, "Using sysctls".
func namespacedSysctl(key string) bool {
	for _, prefix := range []string{"kernel.shm", "kernel.msg", "fs.mqueue.", "net."} {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return key == "kernel.sem"
}

// ensureShm mounts the file system behind /dev/shm.
func ensureShm(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("make shm folder: %w", err)
	}
	held, err := isMountOf(path, unix.TMPFS_MAGIC)
	if err != nil || held {
		return err
	}
	if err := unix.Mount("shm", path, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,"+shmSize); err != nil {
		return fmt.Errorf("mount shm: %w", err)
	}
	return nil
}

// isMountOf reports whether a file system of the given kind is mounted on path itself.
func isMountOf(path string, magic int64) (bool, error) {
	var fs unix.Statfs_t
	err := unix.Statfs(path, &fs)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	if fs.Type != magic {
		return false, nil
	}
	var own, parent unix.Stat_t
	if err := errors.Join(unix.Stat(path, &own), unix.Stat(filepath.Dir(path), &parent)); err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	return own.Dev != parent.Dev, nil
}

// holdNamespace mounts a namespace of a process on target.
func holdNamespace(pid int, name, target string) error {
	if err := touch(target); err != nil {
		return err
	}
	return unix.Mount("/proc/"+strconv.Itoa(pid)+"/ns/"+name, target, "", unix.MS_BIND, "")
}

func touch(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	return file.Close()
}

// removeNamespaces unmounts what holds a sandbox's namespaces and removes the folder.
func removeNamespaces(state, sandboxID string) error {
	dir := filepath.Join(state, namespacesDir, sandboxID)
	for _, name := range []string{ipcName, utsName, pidName, shmName} {
		path := filepath.Join(dir, name)
		if err := unmountAll(path); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("release namespace: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("release namespaces: %w", err)
	}
	return nil
}

// unmountAll unmounts everything that is stacked on path itself.
func unmountAll(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // no mount, or nothing
			return nil
		default:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}
