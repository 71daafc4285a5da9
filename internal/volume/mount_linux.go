package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// mountMemory mounts a tmpfs on dir unless one is there. size 0 is the kernel's default; with a
// group it belongs to that.
func mountMemory(dir string, size int64, gid *int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err == nil && fs.Type == unix.TMPFS_MAGIC {
		if mounted, err := mountinfo.Mounted(dir); err == nil && mounted {
			return nil
		}
	}
	options := "mode=1777" // the kernel's default, which the kubelet leaves
	if gid != nil {
		options = "mode=3777,gid=" + strconv.FormatInt(*gid, 10)
	}
	if size > 0 {
		options += ",size=" + strconv.FormatInt(size, 10)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mounting a tmpfs: %w", err)
	}
	return nil
}

// checkHostPath checks that what is at the path is of the wanted type, or makes it.
func checkHostPath(source *corev1.HostPathVolumeSource) error {
	if slices.Contains(strings.Split(source.Path, "/"), "..") {
		return fmt.Errorf("hostPath %s must not contain '..'", source.Path)
	}
	if source.Type == nil || *source.Type == corev1.HostPathUnset {
		return nil
	}
	switch *source.Type {
	case corev1.HostPathDirectoryOrCreate:
		if _, err := os.Stat(source.Path); errors.Is(err, os.ErrNotExist) {
			if err := os.MkdirAll(source.Path, 0o755); err != nil {
				return fmt.Errorf("making the folder: %w", err)
			}
		}
	case corev1.HostPathFileOrCreate:
		f, err := os.OpenFile(source.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err == nil {
			err = f.Close()
		} else if errors.Is(err, os.ErrExist) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("making the file: %w", err)
		}
	}
	info, err := os.Stat(source.Path)
	wrong := func(what string) error {
		return fmt.Errorf("hostPath type check failed: %s is not %s", source.Path, what)
	}
	is := func(bits os.FileMode) bool { return err == nil && info.Mode().Type() == bits }
	switch *source.Type {
	case corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate:
		if !is(os.ModeDir) {
			return wrong("a directory")
		}
	case corev1.HostPathFile, corev1.HostPathFileOrCreate:
		if !is(0) {
			return wrong("a file")
		}
	case corev1.HostPathSocket:
		if !is(os.ModeSocket) {
			return wrong("a socket file")
		}
	case corev1.HostPathCharDev:
		if !is(os.ModeDevice | os.ModeCharDevice) {
			return wrong("a character device")
		}
	case corev1.HostPathBlockDev:
		if !is(os.ModeDevice) {
			return wrong("a block device")
		}
	default:
		return fmt.Errorf("%s is an invalid volume type", *source.Type)
	}
	return nil
}

// SubPath names a path inside a volume that one container mounts.
type SubPath struct {
	Volume    string
	Root      string // the volume's path on the node
	Path      string // relative, as the container's mount says
	Container string
	Index     int // of the mount in the container's list
}

// SubPath pins a path inside a volume: it is resolved once, without leaving the volume
// whatever symbolic links are in it, and what was found is bind-mounted to a place that
// containers cannot change. A folder that is missing is made.
func (m *Manager) SubPath(pod types.UID, s SubPath) (string, error) {
	root, err := unix.Open(s.Root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("opening volume %s: %w", s.Volume, err)
	}
	defer unix.Close(root)
	fd, err := openBeneath(root, s.Path)
	if errors.Is(err, unix.ENOENT) {
		if err := mkdirBeneath(root, s.Path); err != nil {
			return "", fmt.Errorf("making the subPath of volume %s: %w", s.Volume, err)
		}
		fd, err = openBeneath(root, s.Path)
	}
	if err != nil {
		return "", fmt.Errorf("resolving the subPath of volume %s: %w", s.Volume, err)
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return "", fmt.Errorf("looking at the subPath of volume %s: %w", s.Volume, err)
	}
	target := filepath.Join(m.podDir(pod), "volume-subpaths", s.Volume, s.Container, strconv.Itoa(s.Index))
	if err := m.bindTarget(target, stat.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return "", err
	}
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(fd), target, "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("pinning the subPath of volume %s: %w", s.Volume, err)
	}
	return target, nil
}

// bindTarget makes an empty folder or file to mount on; an older mount there goes away.
func (m *Manager) bindTarget(target string, dir bool) error {
	for range 16 {
		if mounted, err := mountinfo.Mounted(target); err != nil || !mounted {
			break
		}
		if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmounting an older subPath: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return fmt.Errorf("making the subPath's folder: %w", err)
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("clearing an older subPath: %w", err)
	}
	if dir {
		return os.Mkdir(target, 0o750)
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("making the subPath's file: %w", err)
	}
	return f.Close()
}

// openBeneath opens a path inside root; the kernel refuses one that leads out of it.
func openBeneath(root int, path string) (int, error) {
	return unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// mkdirBeneath makes the folders of a path inside root that are missing, with the root's mode.
func mkdirBeneath(root int, path string) error {
	var stat unix.Stat_t
	if err := unix.Fstat(root, &stat); err != nil {
		return err
	}
	done := "."
	for _, part := range strings.Split(filepath.Clean(path), "/") {
		parent, err := openBeneath(root, done)
		if err != nil {
			return err
		}
		err = unix.Mkdirat(parent, part, stat.Mode&0o7777)
		if err == nil {
			err = unix.Fchmodat(parent, part, stat.Mode&0o7777, 0)
		}
		if err == nil && stat.Gid != 0 {
			err = unix.Fchownat(parent, part, -1, int(stat.Gid), unix.AT_SYMLINK_NOFOLLOW)
		}
		_ = unix.Close(parent)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		done = filepath.Join(done, part)
	}
	return nil
}
