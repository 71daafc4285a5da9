//go:build linux

package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// trim bounds the go command's caches: compiled packages by what was used least recently, and
// downloaded modules, which belong together, all at once.
func trim(dir string, maxBytes int64) error {
	mod := filepath.Join(dir, "mod")
	size, err := sizeOf(mod)
	if err != nil {
		return err
	}
	if size > maxBytes/2 {
		if err := clearDir(mod); err != nil {
			return fmt.Errorf("trimming the module cache: %w", err)
		}
	}
	return trimOldest(filepath.Join(dir, "build"), maxBytes/2)
}

// trimOldest removes files until the rest fits.
func trimOldest(dir string, maxBytes int64) error {
	type file struct {
		path string
		used time.Time
		size int64
	}
	var files []file
	var total int64
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			files = append(files, file{path, info.ModTime(), info.Size()})
			total += info.Size()
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("measuring the compiler's cache: %w", err)
	}
	slices.SortFunc(files, func(a, b file) int { return a.used.Compare(b.used) })
	for _, f := range files {
		if total <= maxBytes {
			return nil
		}
		if err := os.Remove(f.path); err != nil {
			return fmt.Errorf("trimming the compiler's cache: %w", err)
		}
		total -= f.size
	}
	return nil
}
