package source

import (
	"archive/tar"
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

// Limits bound what an archive may hold. The zero value is the default.
type Limits struct {
	Bytes   int64 // of all files together; default 2 GiB
	Entries int   // files, folders and links; default 200000
}

func (l Limits) orDefault() Limits {
	return Limits{Bytes: cmp.Or(l.Bytes, 2<<30), Entries: cmp.Or(l.Entries, 200_000)}
}

// Errors that a caller may tell apart.
var (
	ErrUnsafe   = errors.New("unsafe archive")
	ErrTooLarge = errors.New("source is too large")
)

// Unpack writes a tar archive, compressed with gzip or not, into dir, which must be there and
// empty. Files get the time at, so that equal source is equal on disk.
func Unpack(ctx context.Context, archive io.Reader, dir string, at time.Time, limits Limits) error {
	u := unpacker{limits: limits.orDefault(), at: at}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack source: %w", err)
	}
	defer root.Close()
	u.root = root
	plain, err := decompress(archive)
	if err != nil {
		return fmt.Errorf("unpack source: %w", err)
	}
	reader := tar.NewReader(plain)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = u.entry(header, reader)
		}
		if err != nil {
			return fmt.Errorf("unpack source: %w", err)
		}
	}
}

// decompress looks at the first bytes.
func decompress(archive io.Reader) (io.Reader, error) {
	buffered := bufio.NewReader(archive)
	magic, err := buffered.Peek(2)
	if err != nil {
		return nil, fmt.Errorf("reading the archive: %w", err)
	}
	if magic[0] == 0x1f && magic[1] == 0x8b {
		return gzip.NewReader(buffered)
	}
	return buffered, nil
}

type unpacker struct {
	root    *os.Root
	limits  Limits
	at      time.Time
	bytes   int64
	entries int
}

func (u *unpacker) entry(header *tar.Header, body io.Reader) error {
	name := path.Clean(header.Name)
	if name == "." || header.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if !fs.ValidPath(name) {
		return fmt.Errorf("%w: %q leaves the folder", ErrUnsafe, header.Name)
	}
	if u.entries++; u.entries > u.limits.Entries {
		return fmt.Errorf("%w: more than %d files", ErrTooLarge, u.limits.Entries)
	}
	if header.Typeflag != tar.TypeDir {
		if err := u.root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return u.root.MkdirAll(name, 0o755)
	case tar.TypeReg:
		return u.file(name, header, body)
	case tar.TypeSymlink:
		return u.link(name, header.Linkname)
	default:
		return fmt.Errorf("%w: %s is neither a file, a folder nor a symbolic link", ErrUnsafe, name)
	}
}

func (u *unpacker) file(name string, header *tar.Header, body io.Reader) error {
	if u.bytes += header.Size; u.bytes > u.limits.Bytes || header.Size < 0 {
		return fmt.Errorf("%w: more than %d MiB; %s is where the limit was passed", ErrTooLarge, u.limits.Bytes>>20, name)
	}
	mode := fs.FileMode(0o644)
	if header.Mode&0o111 != 0 {
		mode = 0o755
	}
	file, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(file, body); err != nil {
		return errors.Join(err, file.Close())
	}
	if err := file.Close(); err != nil {
		return err
	}
	return u.root.Chtimes(name, u.at, u.at)
}

// link makes a symbolic link, if it stays inside.
func (u *unpacker) link(name, target string) error {
	if path.IsAbs(target) || !fs.ValidPath(path.Join(path.Dir(name), target)) || strings.ContainsRune(target, 0) {
		return fmt.Errorf("%w: the link %s points out of the source, to %s", ErrUnsafe, name, target)
	}
	return u.root.Symlink(target, name)
}
