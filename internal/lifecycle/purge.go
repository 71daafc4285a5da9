//go:build linux

package lifecycle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Purge removes the data dir and everything in it, and nothing else: it first unmounts what is
// mounted below, refuses while a mount remains, and never enters another mount, so that the files of
// a volume or disk that somebody mounted there survive. Who calls it holds the data dir's Lock.
func Purge(dataDir string) error {
	dir, err := filepath.EvalSymlinks(dataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find data dir: %w", err)
	}
	if err := unmountBelow(dir); err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	if err := removeContents(fd, dir); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.EBUSY) { // busy: the dir is a disk of its own
		return fmt.Errorf("remove data dir: %w", err)
	}
	return nil
}

// unmountBelow unmounts every mount below dir, the deepest first. Unmounting leaves the files of
// what was mounted alone.
func unmountBelow(dir string) error {
	below := func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, dir+"/"), false
	}
	mounts, err := mountinfo.GetMounts(below)
	if err != nil {
		return fmt.Errorf("list mounts below %s: %w", dir, err)
	}
	slices.SortStableFunc(mounts, func(a, b *mountinfo.Info) int { return b.ID - a.ID }) // newest first, for mounts over mounts
	slices.SortStableFunc(mounts, func(a, b *mountinfo.Info) int { return len(b.Mountpoint) - len(a.Mountpoint) })
	reasons := map[string]error{}
	for _, m := range mounts {
		if err := unix.Unmount(m.Mountpoint, unix.UMOUNT_NOFOLLOW); err != nil {
			reasons[m.Mountpoint] = err
		}
	}
	if mounts, err = mountinfo.GetMounts(below); err != nil {
		return fmt.Errorf("list mounts below %s: %w", dir, err)
	}
	if len(mounts) > 0 {
		m := mounts[0]
		return fmt.Errorf("%s is still mounted (%w), so nothing was removed; end the processes that use it, unmount it, and try again",
			m.Mountpoint, reasons[m.Mountpoint])
	}
	return nil
}

// removeContents empties the folder fd and closes it. path is its name, for errors.
func removeContents(fd int, path string) error {
	folder := os.NewFile(uintptr(fd), path)
	defer func() { _ = folder.Close() }()
	names, err := folder.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list %s: %w", path, err)
	}
	for _, name := range names {
		if err := removeEntry(fd, name, filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

func removeEntry(parent int, name, path string) error {
	err := unix.Unlinkat(parent, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	// The kernel itself refuses to step into another mount, a bind mount of the same disk included.
	child, err := unix.Openat2(parent, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH,
	})
	if errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("%s has just been mounted; unmount it and try again", path)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	if err := removeContents(child, path); err != nil {
		return err
	}
	if err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}
