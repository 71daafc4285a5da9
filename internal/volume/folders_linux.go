package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/volume/local"
)

// Folders are the folders of this node's local volumes. Nothing but the disk is remembered,
// but that a folder was removed: it is not made again, by whoever was about to.
type Folders struct {
	dir string

	mu      sync.Mutex // guards the field below, and the order of making and removing
	removed map[string]struct{}
}

// NewFolders returns the folders below dir, an absolute path, which is made when needed.
func NewFolders(dir string) (*Folders, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("volume: the folder of local volumes is %q, want an absolute path", dir)
	}
	return &Folders{dir: filepath.Clean(dir), removed: map[string]struct{}{}}, nil
}

// Dir is the path below which the folders lie.
func (f *Folders) Dir() string { return f.dir }

// Ensure returns the path of a folder, making it if it is not there. Everybody may write to
// it, as to a fresh emptyDir; the folder above it keeps other users of the machine out.
func (f *Folders) Ensure(name string) (string, error) {
	if !local.ValidName(name) {
		return "", fmt.Errorf("%q cannot name a local volume", name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, gone := f.removed[name]; gone {
		return "", fmt.Errorf("the local volume %q was removed", name)
	}
	path := filepath.Join(f.dir, name)
	if info, err := os.Lstat(path); err == nil {
		if !info.IsDir() {
			return "", fmt.Errorf("%s is not a directory", path)
		}
		return path, nil
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return "", fmt.Errorf("making the folder of local volumes: %w", err)
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("making a local volume: %w", err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		return "", fmt.Errorf("opening a local volume: %w", err)
	}
	return path, syncDir(f.dir)
}

// leaving is where a folder is while it is being removed.
func (f *Folders) leaving(name string) string { return filepath.Join(f.dir, ".removing-"+name) }

// Remove removes a folder with all that is in it; one that is not there is removed already. It
// first takes the name away, so a crash leaves either the whole volume or none of it.
func (f *Folders) Remove(ctx context.Context, name string) error {
	if !local.ValidName(name) {
		return fmt.Errorf("%q cannot name a local volume", name)
	}
	if err := f.hide(name); err != nil {
		return err
	}
	parent, err := unix.Open(f.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening the folder of local volumes: %w", err)
	}
	defer unix.Close(parent)
	var stat unix.Stat_t
	hidden := filepath.Base(f.leaving(name))
	err = unix.Fstatat(parent, hidden, &stat, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at a local volume: %w", err)
	}
	if err := removeAt(ctx, parent, hidden, stat.Dev); err != nil {
		return fmt.Errorf("removing a local volume: %w", err)
	}
	return syncDir(f.dir)
}

// hide takes a volume's name away.
func (f *Folders) hide(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removed[name] = struct{}{}
	err := os.Rename(filepath.Join(f.dir, name), f.leaving(name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("taking a local volume away: %w", err)
	}
	return nil
}

// Forget drops the memory of removed folders but for those of keep, whose volumes may still be
// asked for.
func (f *Folders) Forget(keep []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := make(map[string]struct{}, len(keep))
	for _, name := range keep {
		if _, ok := f.removed[name]; ok {
			kept[name] = struct{}{}
		}
	}
	f.removed = kept
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening the folder of local volumes: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("writing the folder of local volumes: %w", err)
	}
	return nil
}
