package stats

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/lifecycle"
)

// Bounds of a walk: the files looked at, and how long it works between pauses.
const (
	walkBudget = 500_000
	walkSlice  = 1000
	walkPause  = time.Millisecond
)

// folder is what a walk finds.
type folder struct {
	bytes, inodes uint64
	partial       bool
}

type inode struct{ dev, ino uint64 }

// walker sums up the disk space of folders. It stays on the file system that it began on, counts
// a file with several links once, and rests between slices so that it never takes a CPU.
type walker struct {
	budget int
	seen   map[inode]struct{} // files with several links
	count  int
}

// walk measures everything below dir. What vanishes meanwhile does not count.
func (w *walker) walk(ctx context.Context, dir string, sum *folder) error {
	var root unix.Stat_t
	err := unix.Lstat(dir, &root)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	w.add(&root, sum)
	if root.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	// A stack and not a recursion: a pod may nest folders deeper than there are file descriptors.
	for left := []string{dir}; len(left) > 0 && !sum.partial; {
		next := left[len(left)-1]
		if left, err = w.folder(ctx, next, root.Dev, left[:len(left)-1], sum); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) add(s *unix.Stat_t, sum *folder) {
	if s.Nlink > 1 && s.Mode&unix.S_IFMT != unix.S_IFDIR {
		key := inode{s.Dev, s.Ino}
		if _, ok := w.seen[key]; ok {
			return
		}
		if w.seen == nil {
			w.seen = map[inode]struct{}{}
		}
		w.seen[key] = struct{}{}
	}
	sum.inodes++
	sum.bytes += uint64(s.Blocks) * 512
}

// folder adds up one folder and appends those in it to below.
func (w *walker) folder(ctx context.Context, dir string, dev uint64, below []string, sum *folder) ([]string, error) {
	f, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	switch {
	case errors.Is(err, unix.ENAMETOOLONG):
		sum.partial = true
		return below, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ESTALE):
		return below, nil // gone, or another thing now
	case err != nil:
		return below, err
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(256)
		for _, name := range names {
			if w.budget--; w.budget < 0 {
				sum.partial = true
				return below, nil
			}
			if w.count++; w.count%walkSlice == 0 {
				if !lifecycle.Pause(ctx, walkPause) { // others may have the CPU
					return below, ctx.Err()
				}
			}
			var s unix.Stat_t
			if unix.Fstatat(int(f.Fd()), name, &s, unix.AT_SYMLINK_NOFOLLOW) != nil || s.Dev != dev {
				continue
			}
			w.add(&s, sum)
			if s.Mode&unix.S_IFMT == unix.S_IFDIR {
				below = append(below, filepath.Join(dir, name))
			}
		}
		if err != nil || len(names) == 0 {
			return below, nil
		}
	}
}
