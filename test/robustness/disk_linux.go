package robustness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// disk is a small file system of its own, on a loop device, for the data dir of one server.
type disk struct {
	image, at string

	mu     sync.Mutex // guards frozen
	frozen bool
}

const (
	diskBytes = 4 << 30
	// tightBytes is less than the store wants to be free (store.Options.MinFreeBytes), and more than what it needs to be read.
	tightBytes = 24 << 20
	// From linux/fs.h.
	fiFreeze = 0xC0045877
	fiThaw   = 0xC0045878
)

// newDisk makes and mounts one at a folder.
func newDisk(image, at string) (*disk, error) {
	file, err := os.Create(image)
	if err == nil {
		err = errors.Join(file.Truncate(diskBytes), file.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("make a disk: %w", err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	d := &disk{image: image, at: at}
	return d, d.mount()
}

func (d *disk) mount() error {
	if err := os.MkdirAll(d.at, 0o700); err != nil {
		return fmt.Errorf("mount a disk: %w", err)
	}
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.at).CombinedOutput(); err != nil {
		return fmt.Errorf("mount %s: %w: %s", d.at, err, out)
	}
	_ = os.Remove(filepath.Join(d.at, "lost+found"))
	return nil
}

// freeze lets whoever writes wait until thaw.
func (d *disk) freeze(frozen bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.frozen == frozen {
		return nil
	}
	folder, err := os.Open(d.at)
	if err != nil {
		return fmt.Errorf("freeze a disk: %w", err)
	}
	defer func() { _ = folder.Close() }()
	request := uint(fiFreeze)
	if !frozen {
		request = fiThaw
	}
	if err := unix.IoctlSetInt(int(folder.Fd()), request, 0); err != nil {
		return fmt.Errorf("freeze %s (%v): %w", d.at, frozen, err)
	}
	d.frozen = frozen
	return nil
}

// slow lets writers through half of the time.
func (d *disk) slow(limit time.Duration) error {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(60 * time.Millisecond) {
		err := d.freeze(true)
		time.Sleep(60 * time.Millisecond)
		if err = errors.Join(err, d.freeze(false)); err != nil {
			return err
		}
	}
	return nil
}

func (d *disk) ballast() string { return filepath.Join(d.at, "ballast") }

// fill leaves so many bytes free.
func (d *disk) fill(leave int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(d.at, &fs); err != nil {
		return fmt.Errorf("fill a disk: %w", err)
	}
	free := int64(fs.Bavail)*fs.Bsize - leave //nolint:gosec // a small disk
	if free <= 0 {
		return nil
	}
	file, err := os.Create(d.ballast())
	if err != nil {
		return fmt.Errorf("fill a disk: %w", err)
	}
	defer func() { _ = file.Close() }()
	if err := unix.Fallocate(int(file.Fd()), 0, 0, free); err != nil && !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("fill a disk: %w", err)
	}
	if leave > 0 {
		return nil
	}
	block := make([]byte, 4096)
	for err == nil { // what fallocate did not get
		_, err = file.WriteAt(block, free)
		free += int64(len(block))
	}
	return nil
}

// empty ends fill.
func (d *disk) empty() error {
	if err := os.Remove(d.ballast()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("empty a disk: %w", err)
	}
	return nil
}

// remove takes the disk away; nobody may use it any more.
func (d *disk) remove() error {
	err := errors.Join(d.freeze(false), d.empty())
	if unmounted := syscall.Unmount(d.at, 0); unmounted != nil {
		err = errors.Join(err, unmounted, syscall.Unmount(d.at, syscall.MNT_DETACH))
	}
	return errors.Join(err, os.Remove(d.image))
}
