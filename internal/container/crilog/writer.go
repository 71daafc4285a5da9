package crilog

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// MaxLine is the longest piece of output that one line of the file holds, in bytes. Longer
// lines are cut into pieces tagged P. Source: the CRI's own limit, 16 KiB.
const MaxLine = 16 << 10

// The names of the streams, as they stand in the file.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

const (
	timeLayout    = "2006-01-02T15:04:05.000000000Z"
	rotatedLayout = "20060102-150405" // what the kubelet appends to a rotated file
)

// Options say where a Writer writes and how much it keeps.
type Options struct {
	Path     string // absolute; its folder must exist
	MaxBytes int64  // size at which the file is rotated; default 10 MiB
	MaxFiles int    // files kept including the current one, at least 2; default 5
}

// Writer is an open log file. Several goroutines may use it at once.
type Writer struct {
	opts Options

	mu      sync.Mutex // guards the fields below
	file    *os.File
	size    int64
	dropped int64 // bytes that could not be written, because the disk was full for example
	closed  bool
}

// Open opens the log for appending, creating it if need be.
func Open(opts Options) (*Writer, error) {
	opts.MaxBytes = cmp.Or(opts.MaxBytes, 10<<20)
	opts.MaxFiles = cmp.Or(opts.MaxFiles, 5)
	if !filepath.IsAbs(opts.Path) {
		return nil, fmt.Errorf("crilog: path %q is not absolute", opts.Path)
	}
	if opts.MaxBytes < 1 || opts.MaxFiles < 2 {
		return nil, fmt.Errorf("crilog: MaxBytes is %d and MaxFiles %d, want at least 1 and 2", opts.MaxBytes, opts.MaxFiles)
	}
	w := &Writer{opts: opts}
	if err := w.openLocked(); err != nil {
		return nil, err
	}
	return w, nil
}

// openLocked opens the current file. w.mu is held, or w is not shared yet.
func (w *Writer) openLocked() error {
	file, err := os.OpenFile(w.opts.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("open container log: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return fmt.Errorf("size of container log: %w", err)
	}
	w.file, w.size = file, info.Size()
	return nil
}

// Close closes the file. Later writes are dropped.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}

// Dropped returns how many bytes could not be written.
func (w *Writer) Dropped() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dropped
}

// Copy writes what src gives as lines of the named stream until src ends. Trouble with the
// file never stops it, so that a full disk does not block the container; see Dropped. tee,
// if not nil, is given every piece as it was read; it must not keep the slice.
func (w *Writer) Copy(stream string, src io.Reader, tee func([]byte)) error {
	reader := bufio.NewReaderSize(src, MaxLine)
	out := make([]byte, 0, 4<<10)
	for {
		line, err := reader.ReadSlice('\n')
		if tee != nil && len(line) > 0 {
			tee(line)
		}
		if len(line) > 0 {
			// Output that ends without a newline is a line in part: readers add none then.
			out = appendLine(out, time.Now(), stream, line, line[len(line)-1] != '\n')
		}
		ended := err != nil && !errors.Is(err, bufio.ErrBufferFull)
		// Write once for all lines that one read brought in.
		if len(out) > 0 && (ended || !hasLine(reader) || len(out) > 64<<10) {
			w.write(out)
			out = out[:0]
		}
		if cap(out) > 256<<10 {
			out = nil
		}
		if ended {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// hasLine reports whether the next ReadSlice can be answered without reading.
func hasLine(reader *bufio.Reader) bool {
	buffered, _ := reader.Peek(reader.Buffered()) // what is buffered cannot fail to be peeked
	return len(buffered) == MaxLine || slices.Contains(buffered, '\n')
}

// appendLine appends one line of the file for one piece of output.
func appendLine(out []byte, now time.Time, stream string, piece []byte, partial bool) []byte {
	out = now.UTC().AppendFormat(out, timeLayout)
	out = append(out, ' ')
	out = append(out, stream...)
	if partial {
		out = append(out, " P "...)
	} else {
		out = append(out, " F "...)
	}
	if n := len(piece); n > 0 && piece[n-1] == '\n' {
		piece = piece[:n-1]
	}
	out = append(out, piece...)
	return append(out, '\n')
}

// write appends whole lines, rotating first where they would not fit.
func (w *Writer) write(lines []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		w.dropped += int64(len(lines))
		return
	}
	if w.size > 0 && w.size+int64(len(lines)) > w.opts.MaxBytes {
		w.rotateLocked()
	}
	if w.file == nil {
		if err := w.openLocked(); err != nil {
			w.dropped += int64(len(lines))
			return
		}
	}
	n, err := w.file.Write(lines)
	if err != nil && n > 0 {
		// A torn line would garble the next one.
		_ = w.file.Truncate(w.size)
		n = 0
	}
	w.size += int64(n)
	w.dropped += int64(len(lines) - n)
}

// rotateLocked renames the current file, opens a new one and removes those too many. w.mu
// is held. Where renaming fails the file goes on growing: losing the log would be worse.
func (w *Writer) rotateLocked() {
	rotated := Rotated(w.opts.Path)
	at := time.Now().UTC().Truncate(time.Second)
	if len(rotated) > 0 {
		// Several rotations in one second: names must stay in order and apart.
		newest := strings.TrimPrefix(rotated[len(rotated)-1], w.opts.Path+".")
		if last, err := time.Parse(rotatedLayout, newest); err == nil && !last.Before(at) {
			at = last.Add(time.Second)
		}
	}
	target := w.opts.Path + "." + at.Format(rotatedLayout)
	if err := os.Rename(w.opts.Path, target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return
	}
	if w.file != nil {
		_ = w.file.Close()
		w.file, w.size = nil, 0
	}
	rotated = append(rotated, target)
	for len(rotated) > w.opts.MaxFiles-1 {
		_ = os.Remove(rotated[0])
		rotated = rotated[1:]
	}
}

// Rotated returns the rotated files of the log at path, oldest first.
func Rotated(path string) []string {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil
	}
	prefix := filepath.Base(path) + "."
	var found []string
	for _, entry := range entries {
		stamp, ok := strings.CutPrefix(entry.Name(), prefix)
		if !ok {
			continue
		}
		if _, err := time.Parse(rotatedLayout, stamp); err == nil {
			found = append(found, filepath.Join(filepath.Dir(path), entry.Name()))
		}
	}
	slices.Sort(found)
	return found
}
