package volume

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// dataLink is the symbolic link that is switched from the old content to the new: the names
// that containers see point through it.
const dataLink = "..data"

// writeAtomic makes files the whole content of dir in one step. Nothing is written when
// nothing has changed.
func writeAtomic(dir string, files map[string]file, gid *int64) error {
	for name := range files {
		if err := checkPath(name); err != nil {
			return err
		}
	}
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("reading the link to the volume's content: %w", err)
	}
	if old != "" && unchanged(filepath.Join(dir, old), files, gid) {
		return links(dir, files)
	}
	fresh, err := os.MkdirTemp(dir, time.Now().UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return fmt.Errorf("making a folder for the volume's content: %w", err)
	}
	if err := writeAll(fresh, files, gid); err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	temporary := filepath.Join(dir, dataLink+"_tmp")
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing a left over link: %w", err)
	}
	if err := os.Symlink(filepath.Base(fresh), temporary); err != nil {
		return fmt.Errorf("linking the volume's new content: %w", err)
	}
	if err := os.Rename(temporary, filepath.Join(dir, dataLink)); err != nil {
		return fmt.Errorf("switching to the volume's new content: %w", err)
	}
	if err := links(dir, files); err != nil {
		return err
	}
	return sweep(dir, filepath.Base(fresh))
}

func writeAll(dir string, files map[string]file, gid *int64) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("setting the mode of the content's folder: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		target := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return fmt.Errorf("making a folder of the volume: %w", err)
		}
		if err := os.WriteFile(target, f.data, 0o600); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
		if err := own(target, f, gid); err != nil {
			return fmt.Errorf("setting owner and mode of %s: %w", name, err)
		}
	}
	if gid == nil {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if err := os.Chown(path, -1, int(*gid)); err != nil {
			return err
		}
		return os.Chmod(path, 0o775|os.ModeSetgid)
	})
}

// own gives a file its owner and mode. With an fsGroup the group may read what the owner may,
// as the kubelet's ownership change does.
func own(path string, f file, gid *int64) error {
	uid, g := -1, -1
	if f.uid != nil {
		uid = int(*f.uid)
	}
	if gid != nil {
		g = int(*gid)
	}
	if uid >= 0 || g >= 0 {
		if err := os.Chown(path, uid, g); err != nil {
			return err
		}
	}
	return os.Chmod(path, finalMode(f, gid))
}

func finalMode(f file, gid *int64) os.FileMode {
	m := os.FileMode(f.mode) & os.ModePerm
	if gid != nil {
		m |= 0o440
	}
	return m
}

// unchanged reports whether dir holds exactly files.
func unchanged(dir string, files map[string]file, gid *int64) bool {
	count := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		count++
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, ok := files[filepath.ToSlash(name)]
		if !ok {
			return errChanged
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(data, f.data) || info.Mode().Perm() != finalMode(f, gid) {
			return errChanged
		}
		return nil
	})
	return err == nil && count == len(files)
}

var errChanged = errors.New("the content has changed")

// links makes the names that containers see, and removes those that are no more.
func links(dir string, files map[string]file) error {
	wanted := map[string]bool{}
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		wanted[top] = true
	}
	for top := range wanted {
		target := filepath.Join(dataLink, top)
		path := filepath.Join(dir, top)
		if have, err := os.Readlink(path); err == nil && have == target {
			continue
		}
		if err := os.Symlink(target, path); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("linking %s: %w", top, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("reading the volume: %w", err)
	}
	for _, e := range entries {
		if wanted[e.Name()] || strings.HasPrefix(e.Name(), "..") || e.Type()&os.ModeSymlink == 0 {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("removing a name that is no more: %w", err)
		}
	}
	return nil
}

// sweep removes content that nothing points at: the old one, and what a crash left behind.
func sweep(dir, current string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("reading the volume: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "..") && e.Name() != current {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("removing old content: %w", err)
			}
		}
	}
	return nil
}
