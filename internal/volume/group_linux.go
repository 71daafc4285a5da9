package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// What a volume's files must allow their group, and its folders beside it.
const (
	groupFile   os.FileMode = 0o660
	groupFolder             = os.ModeSetgid | 0o110
)

// giveToGroup makes everything below dir the group's, so that it may read and write. With the
// policy OnRootMismatch nothing is looked at if dir itself is right. Links are not followed.
// Source: kubernetes, pkg/volume/volume_linux.go.
func giveToGroup(dir string, gid int64, policy *corev1.PodFSGroupChangePolicy) error {
	if policy != nil && *policy == corev1.FSGroupChangeOnRootMismatch {
		if info, err := os.Stat(dir); err == nil && isGroups(info, gid) {
			return nil
		}
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the volume: %w", err)
	}
	defer unix.Close(root)
	// The root comes last: as long as it is not right, a crash shows.
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path == dir || errors.Is(err, os.ErrNotExist) {
			return nil // another pod has just removed it
		}
		name, relErr := filepath.Rel(dir, path)
		if err := errors.Join(err, relErr); err != nil {
			return err
		}
		return giveOne(root, name, gid)
	})
	if err == nil {
		err = giveOne(root, ".", gid)
	}
	if err != nil {
		return fmt.Errorf("giving the volume to group %d: %w", gid, err)
	}
	return nil
}

func wantedMode(info os.FileInfo) os.FileMode {
	if info.IsDir() {
		return groupFile | groupFolder
	}
	return groupFile
}

func isGroups(info os.FileInfo, gid int64) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	want := wantedMode(info)
	return ok && int64(stat.Gid) == gid && info.Mode()&want == want
}

// giveOne changes one entry of the volume. It is opened without leaving the volume, whatever
// another pod puts in its place meanwhile, and changed by what was opened.
func giveOne(root int, name string, gid int64) error {
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENOTDIR) {
		return nil // no longer what the walk has seen
	}
	if err != nil {
		return err
	}
	entry := os.NewFile(uintptr(fd), name)
	defer entry.Close()
	info, err := entry.Stat()
	if err != nil {
		return err
	}
	link := info.Mode()&os.ModeSymlink != 0
	if !link && isGroups(info, gid) {
		return nil
	}
	if err := unix.Fchownat(fd, "", -1, int(gid), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil || link {
		return err
	}
	mode := info.Mode()&(os.ModePerm|os.ModeSetuid|os.ModeSetgid|os.ModeSticky) | wantedMode(info)
	return os.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode)
}
