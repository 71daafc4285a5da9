// Package durable writes files that are whole after a crash.
//
// It stands beside pki and lifecycle, which both need it and may not import each other.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// dirMode is for folders made on the way: what Gantry keeps is for root alone.
const dirMode = 0o700

// WriteFile replaces the file at path by data so that a reader, or a crash, sees the old or the new
// content and nothing between. When it returns nil the content is on the disk. Folders on the way
// are made with mode 0700.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return fmt.Errorf("make folder of %s: %w", path, err)
	}
	temp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = temp.Write(data)
	err = errors.Join(err, temp.Chmod(mode), temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	// The rename is on the disk once the folder is.
	folder, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open folder of %s: %w", path, err)
	}
	if err := errors.Join(folder.Sync(), folder.Close()); err != nil {
		return fmt.Errorf("sync folder of %s: %w", path, err)
	}
	return nil
}
