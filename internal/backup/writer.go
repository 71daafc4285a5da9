package backup

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

// partBytes is how much of a stream of unknown length is kept in memory until it is written.
const partBytes = 1 << 20

// Records of the archive that tell the parts of a stream.
const (
	recordPart   = "GANTRY.part" // value: partMore, partLast or partFailed
	partMore     = "more"
	partLast     = "last"
	partFailed   = "failed"
	maxJSONBytes = 64 << 20 // of the documents that are read as a whole
)

// Writer writes a backup. It is for one goroutine.
type Writer struct {
	head    Head
	archive *tar.Writer
	packed  *zstd.Encoder
	sealed  io.WriteCloser
	bytes   int64
}

// NewWriter begins a backup for whoever has the secret half of a recovery key.
func NewWriter(dst io.Writer, public string, head Head) (*Writer, error) {
	to, err := recipient(public)
	if err != nil {
		return nil, err
	}
	head.Format = Format
	w := &Writer{head: head}
	if w.sealed, err = age.Encrypt(dst, to); err != nil {
		return nil, fmt.Errorf("begin the backup: %w", err)
	}
	w.packed, err = zstd.NewWriter(w.sealed, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, fmt.Errorf("begin the backup: %w", err)
	}
	w.archive = tar.NewWriter(w.packed)
	return w, w.document(headName, head)
}

// Bytes is how much was written, before it was compressed.
func (w *Writer) Bytes() int64 { return w.bytes }

// File adds a file of a known size.
func (w *Writer) File(name string, size int64, content io.Reader) error {
	header := w.header(name, size)
	if err := w.archive.WriteHeader(header); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	n, err := io.Copy(w.archive, io.LimitReader(content, size))
	w.bytes += n
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func (w *Writer) header(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: w.head.Taken.Truncate(time.Second), Format: tar.FormatPAX}
}

// document adds a JSON document.
func (w *Writer) document(name string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return w.Text(name, append(text, '\n'))
}

// Text adds a small file.
func (w *Writer) Text(name string, text []byte) error {
	if err := w.archive.WriteHeader(w.header(name, int64(len(text)))); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	w.bytes += int64(len(text))
	if _, err := w.archive.Write(text); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// Stream adds a file whose size is known only when produce has written it. If produce fails the file counts as not there, and
// the error is a *ProduceError, after which the backup may go on.
func (w *Writer) Stream(name string, produce func(io.Writer) error) (int64, error) {
	s := &stream{to: w, name: name}
	failed := produce(s)
	if s.broken != nil {
		return 0, s.broken
	}
	mark := partLast
	if failed != nil {
		mark, s.held = partFailed, nil
	}
	if err := s.flush(mark); err != nil {
		return 0, err
	}
	if failed != nil {
		return 0, &ProduceError{Name: name, Err: failed}
	}
	return s.written, nil
}

// ProduceError says that something could not be had. The backup itself is as good as without it.
type ProduceError struct {
	Name string
	Err  error
}

func (e *ProduceError) Error() string { return fmt.Sprintf("%s: %v", e.Name, e.Err) }
func (e *ProduceError) Unwrap() error { return e.Err }

// Close ends the backup with its manifest. Without it there is none.
func (w *Writer) Close(m Manifest) error {
	m.Head, m.Bytes = w.head, w.bytes
	if err := w.document(manifestName, m); err != nil {
		return err
	}
	if err := errors.Join(w.archive.Close(), w.packed.Close(), w.sealed.Close()); err != nil {
		return fmt.Errorf("end the backup: %w", err)
	}
	return nil
}

// stream cuts a file into parts.
type stream struct {
	to      *Writer
	name    string
	held    []byte
	written int64
	broken  error // the backup itself
}

// Write implements io.Writer.
func (s *stream) Write(p []byte) (int, error) {
	all := len(p)
	for len(p) > 0 {
		if s.broken != nil {
			return 0, s.broken
		}
		n := min(len(p), partBytes-len(s.held))
		s.held, p = append(s.held, p[:n]...), p[n:]
		if len(s.held) == partBytes {
			s.broken = s.flush(partMore)
		}
	}
	return all, s.broken
}

func (s *stream) flush(mark string) error {
	header := s.to.header(s.name, int64(len(s.held)))
	header.PAXRecords = map[string]string{recordPart: mark}
	err := s.to.archive.WriteHeader(header)
	if err == nil {
		_, err = s.to.archive.Write(s.held)
	}
	if err != nil {
		return fmt.Errorf("write %s at %s: %w", s.name, strconv.FormatInt(s.written, 10), err)
	}
	s.written += int64(len(s.held))
	s.to.bytes += int64(len(s.held))
	s.held = s.held[:0]
	return nil
}
