package crilog

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gantry.dev/gantry/internal/lifecycle"
)

// poll is how often a followed file is looked at; logs have no events of their own.
const poll = 100 * time.Millisecond

// maxLine bounds one record in memory; runtimes split lines at 16 KiB.
const maxLine = 1 << 20

// Options selects what is read.
type Options struct {
	Follow     bool
	Tail       int64 // last lines; negative is all
	LimitBytes int64 // 0 is no limit
	Since      time.Time
	Timestamps bool
	Stream     string // "stdout", "stderr" or both ("" or "All")
	// Done reports whether a followed container has ended, so that nothing more is written.
	Done func() bool
}

var errLimit = errors.New("the byte limit was reached")

// Read copies a container's log to the writers, which may be the same. path is the current
// file; rotated ones lie beside it. It ends at the end of the log, or with Follow once the
// container is done or ctx ends.
func Read(ctx context.Context, path string, opts Options, stdout, stderr io.Writer) error {
	r := &reader{opts: opts, stdout: stdout, stderr: stderr, left: opts.LimitBytes}
	files, err := rotated(path)
	if err != nil {
		return err
	}
	files = append(files, path)
	skip, err := r.plan(files)
	if err != nil {
		return err
	}
	for i, name := range files {
		if i < skip.file {
			continue
		}
		toSkip := int64(0)
		if i == skip.file {
			toSkip = skip.lines
		}
		follow := opts.Follow && i == len(files)-1
		if err := r.file(ctx, name, toSkip, follow); err != nil {
			if errors.Is(err, errLimit) || errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}
	}
	return nil
}

// Tail returns the last lines of a log, at most maxBytes of them.
func Tail(path string, lines, maxBytes int64) (string, error) {
	var out bytes.Buffer
	if err := Read(context.Background(), path, Options{Tail: lines}, &out, &out); err != nil {
		return "", err
	}
	text := out.Bytes()
	return string(text[max(0, int64(len(text))-maxBytes):]), nil
}

// rotated lists the older files of a log, oldest first: NAME.<time> and NAME.<time>.gz.
func rotated(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("looking for rotated logs: %w", err)
	}
	prefix := filepath.Base(path) + "."
	byName := map[string]string{}
	var stems []string
	for _, e := range entries {
		suffix, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok || strings.HasSuffix(suffix, ".tmp") || e.IsDir() {
			continue
		}
		stem := strings.TrimSuffix(suffix, ".gz")
		if _, seen := byName[stem]; !seen {
			stems = append(stems, stem)
		}
		if byName[stem] == "" || !strings.HasSuffix(suffix, ".gz") {
			byName[stem] = e.Name() // the plain file wins while it is being compressed
		}
	}
	slices.SortFunc(stems, compareStems)
	files := make([]string, len(stems))
	for i, s := range stems {
		files[i] = filepath.Join(filepath.Dir(path), byName[s])
	}
	return files, nil
}

// compareStems orders timestamps by time. Small numbers count backwards: .2 is older than .1.
func compareStems(a, b string) int {
	if len(a) < 4 && len(b) < 4 {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(b, a)
	}
	return strings.Compare(a, b)
}

type reader struct {
	opts           Options
	stdout, stderr io.Writer
	left           int64
	within         [2]bool // stdout, stderr: the line goes on in the next record
}

// place is where reading starts: a file and how many lines of it are skipped.
type place struct {
	file  int
	lines int64
}

// plan finds where the last Tail lines begin.
func (r *reader) plan(files []string) (place, error) {
	if r.opts.Tail < 0 {
		return place{}, nil
	}
	need := r.opts.Tail
	for i := len(files) - 1; i >= 0; i-- {
		n, err := r.count(files[i])
		if err != nil {
			return place{}, err
		}
		if n >= need {
			return place{i, n - need}, nil
		}
		need -= n
	}
	return place{}, nil
}

// count counts the whole lines of a file, of the wanted streams.
func (r *reader) count(name string) (int64, error) {
	f, err := open(name)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n := int64(0)
	in := bufio.NewReaderSize(f, 64<<10)
	for {
		raw, err := readRecord(in)
		if len(raw) > 0 {
			if l, perr := parse(raw); perr == nil && r.wants(l) && bytes.HasSuffix(l.text, []byte{'\n'}) {
				n++
			}
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

func (r *reader) wants(l line) bool {
	switch strings.ToLower(r.opts.Stream) {
	case "stdout":
		return !l.stderr
	case "stderr":
		return l.stderr
	}
	return true
}

// open opens a plain or compressed file.
func open(name string) (io.ReadCloser, error) {
	f, err := os.Open(name)
	if err != nil || !strings.HasSuffix(name, ".gz") {
		return f, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("opening a compressed log: %w", err)
	}
	return struct {
		io.Reader
		io.Closer
	}{z, f}, nil
}

// readRecord reads up to and including a newline; at the end of the file what is there.
func readRecord(in *bufio.Reader) ([]byte, error) {
	var record []byte
	for {
		part, err := in.ReadSlice('\n')
		record = append(record, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return record, err
		}
		if len(record) > maxLine {
			return nil, fmt.Errorf("a log record is longer than %d bytes", maxLine)
		}
	}
}

// file copies one file. A followed one is read until the container is done; when it is
// rotated away, reading goes on in its successor.
func (r *reader) file(ctx context.Context, name string, skip int64, follow bool) error {
	f, err := open(name)
	if errors.Is(err, os.ErrNotExist) && follow {
		if f, err = awaitFile(ctx, name, r.opts.Done); f == nil && err == nil {
			return nil
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil // rotated away between listing and reading
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	in := bufio.NewReaderSize(f, 64<<10)
	var rest []byte // a record that is not whole yet
	ending := false
	for {
		raw, err := readRecord(in)
		rest = append(rest, raw...)
		if err == nil {
			if skip, err = r.emit(rest, skip); err != nil {
				return err
			}
			rest = rest[:0]
			continue
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		if !follow {
			if len(rest) > 0 {
				_, err = r.emit(rest, skip)
				return err
			}
			return nil
		}
		if next := successor(f, name); next != nil {
			// The last bytes may have come after the end was seen and before the rotation.
			more, err := io.ReadAll(in)
			if err != nil {
				return err
			}
			if rest, skip, err = r.emitAll(append(rest, more...), skip); err != nil {
				return err
			}
			_ = f.Close()
			f, in = next, bufio.NewReaderSize(next, 64<<10)
			continue
		}
		if ending {
			return nil
		}
		if r.opts.Done != nil && r.opts.Done() {
			ending = true // read once more: the last lines may have come in between
			continue
		}
		if !lifecycle.Pause(ctx, poll) {
			return ctx.Err()
		}
	}
}

// emitAll emits the whole records of data and returns what is left.
func (r *reader) emitAll(data []byte, skip int64) ([]byte, int64, error) {
	for {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			return bytes.Clone(data), skip, nil
		}
		var err error
		if skip, err = r.emit(data[:i+1], skip); err != nil {
			return nil, skip, err
		}
		data = data[i+1:]
	}
}

// successor is the new file of that name if the open one was rotated away.
func successor(f io.Closer, name string) io.ReadCloser {
	file, ok := f.(*os.File)
	if !ok {
		return nil
	}
	mine, err := file.Stat()
	if err != nil {
		return nil
	}
	current, err := os.Stat(name)
	if err != nil || os.SameFile(mine, current) {
		return nil
	}
	next, err := os.Open(name)
	if err != nil {
		return nil
	}
	return next
}

func awaitFile(ctx context.Context, name string, done func() bool) (io.ReadCloser, error) {
	for {
		f, err := os.Open(name)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if done != nil && done() {
			return nil, nil
		}
		if !lifecycle.Pause(ctx, poll) {
			return nil, ctx.Err()
		}
	}
}

// emit writes one record unless it is to be skipped.
func (r *reader) emit(raw []byte, skip int64) (int64, error) {
	l, err := parse(raw)
	if err != nil || !r.wants(l) {
		return skip, nil // a record that was cut by a crash is left out
	}
	if skip > 0 {
		if bytes.HasSuffix(l.text, []byte{'\n'}) {
			skip--
		}
		return skip, nil
	}
	if !r.opts.Since.IsZero() && l.at.Before(r.opts.Since) {
		return 0, nil
	}
	text := l.text
	stream := 0
	if l.stderr {
		stream = 1
	}
	if r.opts.Timestamps && !r.within[stream] {
		text = slices.Concat(l.stamp, []byte{' '}, text)
	}
	r.within[stream] = !bytes.HasSuffix(l.text, []byte{'\n'})
	limited := r.opts.LimitBytes > 0
	if limited && int64(len(text)) > r.left {
		text = text[:r.left]
	}
	out := r.stdout
	if l.stderr {
		out = r.stderr
	}
	if out != nil {
		if _, err := out.Write(text); err != nil {
			return 0, err
		}
	}
	if limited {
		if r.left -= int64(len(text)); r.left <= 0 {
			return 0, errLimit
		}
	}
	return 0, nil
}
