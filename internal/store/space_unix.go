//go:build unix

package store

import "golang.org/x/sys/unix"

// freeBytes asks the kernel; what is reserved for root counts, because etcd runs as root.
func freeBytes(dir string) (uint64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return 0, err
	}
	return stat.Bfree * uint64(stat.Bsize), nil //nolint:gosec // sizes of blocks are positive
}
