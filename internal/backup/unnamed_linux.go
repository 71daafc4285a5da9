package backup

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// unnamed makes a file without a name in a folder; nil where that cannot be done.
func unnamed(dir string) *os.File {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil
	}
	if _, err := os.Stat(selfFD(fd)); err != nil { // it could not be given a name
		_ = unix.Close(fd)
		return nil
	}
	return os.NewFile(uintptr(fd), dir)
}

// link gives a file of unnamed a name that nothing has.
func link(file *os.File, path string) error {
	return unix.Linkat(unix.AT_FDCWD, selfFD(int(file.Fd())), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
}

func selfFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
