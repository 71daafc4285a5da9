//go:build linux || darwin

package images

import "golang.org/x/sys/unix"

// diskSpace asks the kernel; what is reserved for root is not free.
func diskSpace(dir string) (free, total uint64, err error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return 0, 0, err
	}
	size := uint64(stat.Bsize) //nolint:gosec // sizes of blocks are positive
	return stat.Bavail * size, stat.Blocks * size, nil
}
