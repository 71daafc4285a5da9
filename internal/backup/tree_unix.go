//go:build unix

package backup

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// PackTree writes a folder as a tar archive: files, folders and symbolic links with their owners, modes and times. What is
// written to meanwhile is taken as it is found; sockets, pipes and devices are left out.
func PackTree(ctx context.Context, dir string, to io.Writer) error {
	archive := tar.NewWriter(to)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went while it was read
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		err = packEntry(archive, path, filepath.ToSlash(name), entry)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err = errors.Join(err, archive.Close()); err != nil {
		return fmt.Errorf("pack %s: %w", dir, err)
	}
	return nil
}

func packEntry(archive *tar.Writer, path, name string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return err //nolint:wrapcheck // it says what and where
	}
	link := ""
	switch {
	case info.Mode().IsRegular(), info.IsDir():
	case info.Mode()&fs.ModeSymlink != 0:
		if link, err = os.Readlink(path); err != nil {
			return err //nolint:wrapcheck // as above
		}
	default:
		return nil
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return fmt.Errorf("describe %s: %w", path, err)
	}
	header.Name, header.Format, header.Uname, header.Gname = name, tar.FormatPAX, "", ""
	if !info.Mode().IsRegular() {
		return archive.WriteHeader(header) //nolint:wrapcheck // the caller does
	}
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err //nolint:wrapcheck // it says what and where
	}
	defer func() { _ = file.Close() }()
	if err := archive.WriteHeader(header); err != nil {
		return err //nolint:wrapcheck // the caller does
	}
	n, err := io.Copy(archive, io.LimitReader(file, header.Size))
	if err == nil && n < header.Size { // it became shorter: what is missing was cut off
		_, err = io.CopyN(archive, zeros{}, header.Size-n)
	}
	return err //nolint:wrapcheck // the caller does
}

type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// UnpackTree writes what PackTree wrote into dir, which is made. Nothing is written outside of dir, whatever the archive says.
func UnpackTree(ctx context.Context, from io.Reader, dir string) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	archive := tar.NewReader(from)
	var folders []*tar.Header // get their modes and times last
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return fmt.Errorf("unpack %s: %w", dir, err)
		}
		if !filepath.IsLocal(header.Name) {
			return fmt.Errorf("unpack %s: there is no place for %q", dir, header.Name)
		}
		if header.Typeflag == tar.TypeDir {
			folders = append(folders, header)
		}
		if err := unpackEntry(root, archive, header); err != nil {
			return fmt.Errorf("unpack %s: %w", dir, err)
		}
	}
	for i := len(folders) - 1; i >= 0; i-- {
		if err := dress(root, folders[i]); err != nil {
			return fmt.Errorf("unpack %s: %w", dir, err)
		}
	}
	if _, err := io.Copy(io.Discard, from); err != nil {
		return fmt.Errorf("unpack %s: %w", dir, err)
	}
	return nil
}

func unpackEntry(root *os.Root, archive io.Reader, header *tar.Header) error {
	switch header.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(header.Name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err //nolint:wrapcheck // it says what and where
		}
		return nil
	case tar.TypeSymlink:
		if err := root.Symlink(header.Linkname, header.Name); err != nil {
			return err //nolint:wrapcheck // as above
		}
		return root.Lchown(header.Name, header.Uid, header.Gid) //nolint:wrapcheck // as above
	case tar.TypeReg:
	default:
		return fmt.Errorf("%s is of a kind that is not unpacked", header.Name)
	}
	file, err := root.OpenFile(header.Name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err //nolint:wrapcheck // it says what and where
	}
	_, err = io.Copy(file, archive)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("write %s: %w", header.Name, err)
	}
	return dress(root, header)
}

// dress gives a file or folder its owner, mode and time.
func dress(root *os.Root, header *tar.Header) error {
	return errors.Join(
		root.Lchown(header.Name, header.Uid, header.Gid),
		root.Chmod(header.Name, header.FileInfo().Mode()),
		root.Chtimes(header.Name, header.ModTime, header.ModTime),
	)
}
