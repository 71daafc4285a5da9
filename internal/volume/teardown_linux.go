package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// TearDown unmounts everything below the pod's folder and removes it. While something stays
// mounted nothing is removed: a mount may lead to data that is not the pod's.
func (m *Manager) TearDown(ctx context.Context, pod types.UID) error {
	dir := m.podDir(pod)
	if pod == "" || filepath.Dir(dir) != filepath.Clean(m.opts.PodsDir) {
		return fmt.Errorf("the pod's UID %q cannot name a folder", pod)
	}
	m.forgetTokens(pod)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		m.forgetVolumes(pod)
		return nil
	}
	if err := unmountBelow(ctx, dir); err != nil {
		return err
	}
	m.forgetVolumes(pod)
	return removeTree(ctx, dir)
}

// Unmount unmounts what is mounted below the folder of all pods, whose containers are gone. The
// next start of a pod mounts its volumes again.
func Unmount(ctx context.Context, podsDir string) error {
	if _, err := os.Lstat(podsDir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return unmountBelow(ctx, podsDir)
}

// unmountBelow returns without an error only when nothing is mounted at or below dir.
func unmountBelow(ctx context.Context, dir string) error {
	for range 8 {
		mounts, err := mountsBelow(dir)
		if err != nil || len(mounts) == 0 {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, point := range mounts {
			if err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW); err != nil {
				// Busy: let go of it at once, the kernel frees it with its last user.
				if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
					return fmt.Errorf("unmounting %s: %w", point, err)
				}
			}
		}
	}
	return fmt.Errorf("something below %s is mounted again and again", dir)
}

// mountsBelow lists the mount points at or below dir, the deepest first.
func mountsBelow(dir string) ([]string, error) {
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("resolving the pod's folder: %w", err)
	}
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(resolved))
	if err != nil {
		return nil, fmt.Errorf("reading the table of mounts: %w", err)
	}
	var points []string
	for _, i := range infos {
		points = append(points, strings.TrimSuffix(i.Mountpoint, "//deleted"))
	}
	slices.SortFunc(points, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	return points, nil
}

// removeTree removes dir without leaving its file system.
func removeTree(ctx context.Context, dir string) error {
	parent, err := unix.Open(filepath.Dir(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the folder of pods: %w", err)
	}
	defer unix.Close(parent)
	var stat unix.Stat_t
	if err := unix.Fstatat(parent, filepath.Base(dir), &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("looking at the pod's folder: %w", err)
	}
	if err := removeAt(ctx, parent, filepath.Base(dir), stat.Dev); err != nil {
		return fmt.Errorf("removing the pod's folder: %w", err)
	}
	return nil
}

// removeAt removes one entry of an open folder, and what is in it, if it lies on device.
func removeAt(ctx context.Context, parent int, name string, device uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Fstatat(parent, name, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	if stat.Dev != device {
		return fmt.Errorf("%s is on another file system", name)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.Unlinkat(parent, name, 0)
	}
	fd, err := unix.Openat2(parent, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return fmt.Errorf("opening %s: %w", name, err)
	}
	folder := os.NewFile(uintptr(fd), name)
	defer folder.Close()
	names, err := folder.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	for _, child := range names {
		if err := removeAt(ctx, fd, child, device); err != nil {
			return fmt.Errorf("%s/%w", name, err)
		}
	}
	if err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
