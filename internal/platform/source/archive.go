package source

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Archive writes the tree as a tar archive compressed with gzip. Equal content gives equal bytes: no time, owner or order of the
// machine is in it. A file that changes while it is read is an error.
func (t *Tree) Archive(ctx context.Context, out io.Writer) error {
	packed, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err != nil {
		return fmt.Errorf("compress the source: %w", err)
	}
	w := tar.NewWriter(packed)
	for _, entry := range t.Entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.write(w, entry); err != nil {
			return fmt.Errorf("pack %s: %w", entry.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("pack the source: %w", err)
	}
	if err := packed.Close(); err != nil {
		return fmt.Errorf("compress the source: %w", err)
	}
	return nil
}

func (t *Tree) write(w *tar.Writer, entry Entry) error {
	header := &tar.Header{Name: entry.Path, Mode: int64(entry.Mode.Perm()), ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
	switch {
	case entry.Mode.IsDir():
		header.Typeflag, header.Name = tar.TypeDir, entry.Path+"/"
	case entry.Mode&fs.ModeSymlink != 0:
		header.Typeflag, header.Linkname = tar.TypeSymlink, entry.Link
	default:
		header.Size = entry.Size
	}
	if err := w.WriteHeader(header); err != nil || header.Typeflag != tar.TypeReg {
		return err
	}
	file, err := os.Open(filepath.Join(t.Folder, filepath.FromSlash(entry.Path)))
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	n, err := io.Copy(w, io.LimitReader(file, entry.Size))
	if err == nil && n < entry.Size {
		return fmt.Errorf("it became shorter while it was read")
	}
	return err
}
