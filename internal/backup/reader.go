package backup

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

// ErrBroken says that a backup is not whole, or was changed after it was made.
var ErrBroken = errors.New("the backup is broken or not whole")

// ErrAbandoned says that a file of a backup could not be had when it was made.
var ErrAbandoned = errors.New("it could not be had when the backup was made")

// Reader reads a backup from its begin to its end. It is for one goroutine. Close lets go of what it holds.
type Reader struct {
	Head Head

	packed   *zstd.Decoder
	archive  *tar.Reader
	current  *part
	manifest *Manifest
}

// NewReader opens a backup by the secret half of its recovery key. It is ErrKey if that is another one's, ErrBroken if src is
// no backup.
func NewReader(src io.Reader, secret string) (*Reader, error) {
	who, err := identity(secret)
	if err != nil {
		return nil, err
	}
	opened, err := age.Decrypt(src, who)
	if _, other := errors.AsType[*age.NoIdentityMatchError](err); other {
		return nil, ErrKey
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	r := &Reader{}
	if r.packed, err = zstd.NewReader(opened, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20)); err != nil {
		return nil, fmt.Errorf("open the backup: %w", err)
	}
	r.archive = tar.NewReader(r.packed)
	header, err := r.archive.Next()
	if err == nil && header.Name != headName {
		err = fmt.Errorf("it begins with %q", header.Name)
	}
	if err == nil {
		err = decode(r.archive, &r.Head)
	}
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	if r.Head.Format != Format {
		r.Close()
		return nil, fmt.Errorf("the backup has form %d, made by Gantry %s; this one reads form %d", r.Head.Format, r.Head.Gantry, Format)
	}
	return r, nil
}

// Close lets go of memory.
func (r *Reader) Close() { r.packed.Close() }

func decode(from io.Reader, into any) error {
	text, err := io.ReadAll(io.LimitReader(from, maxJSONBytes))
	if err != nil {
		return err //nolint:wrapcheck // the callers do
	}
	return json.Unmarshal(text, into) //nolint:wrapcheck // as above
}

// Next goes to the next file; io.EOF after the last. What of the file before was not read is skipped.
func (r *Reader) Next() (name string, content io.Reader, err error) {
	if r.current != nil {
		if _, err := io.Copy(io.Discard, r.current); err != nil && !errors.Is(err, ErrAbandoned) {
			return "", nil, err
		}
		r.current = nil
	}
	header, err := r.archive.Next()
	if errors.Is(err, io.EOF) {
		return "", nil, r.end()
	}
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	if r.manifest != nil || !filepath.IsLocal(header.Name) || strings.Contains(header.Name, "\\") || header.Typeflag != tar.TypeReg {
		return "", nil, fmt.Errorf("%w: there is no place for %q", ErrBroken, header.Name)
	}
	if header.Name == manifestName {
		r.manifest = &Manifest{}
		if err := decode(r.archive, r.manifest); err != nil {
			return "", nil, fmt.Errorf("%w: its end: %w", ErrBroken, err)
		}
		return r.Next()
	}
	r.current = &part{from: r, name: header.Name, mark: header.PAXRecords[recordPart]}
	return header.Name, r.current, nil
}

// end reads what is behind the archive: only there age says whether the stream is whole.
func (r *Reader) end() error {
	if _, err := io.Copy(io.Discard, r.packed); err != nil {
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
	if r.manifest == nil {
		return fmt.Errorf("%w: its end is missing", ErrBroken)
	}
	return io.EOF
}

// Manifest is what the backup ended with; nil before Next has said io.EOF.
func (r *Reader) Manifest() *Manifest { return r.manifest }

// part is a file, which may lie in the archive in pieces.
type part struct {
	from *Reader
	name string
	mark string
}

// Read implements io.Reader.
func (p *part) Read(buffer []byte) (int, error) {
	for {
		if p.mark == partFailed {
			return 0, ErrAbandoned
		}
		n, err := p.from.archive.Read(buffer)
		switch {
		case n > 0 || err == nil:
			return n, nil
		case !errors.Is(err, io.EOF):
			return 0, fmt.Errorf("%w: %s: %w", ErrBroken, p.name, err)
		case p.mark != partMore:
			return 0, io.EOF
		}
		header, err := p.from.archive.Next()
		if err != nil {
			return 0, fmt.Errorf("%w: %s: %w", ErrBroken, p.name, err)
		}
		if header.Name != p.name || header.PAXRecords[recordPart] == "" {
			return 0, fmt.Errorf("%w: %s has no end", ErrBroken, p.name)
		}
		p.mark = header.PAXRecords[recordPart]
	}
}
