package gateway

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// accessLog writes a line for each request into files of a directory, the oldest of which are
// removed when all together are too large. Several processes may write files of their own there
// at once: an edge that drains and its successor.
type accessLog struct {
	root     *os.Root
	maxBytes int64 // of all files
	log      *slog.Logger

	mu       sync.Mutex // guards the fields below
	buffer   []byte
	sequence uint64
	lost     uint64 // lines that did not fit into the buffer

	fileMu sync.Mutex // guards the fields below; taken before mu
	file   *os.File
	size   int64
	spare  []byte
	said   bool // that writing fails
}

const (
	logBuffer   = 4 << 20 // lines beyond are lost until the next flush
	logWake     = 64 << 10
	logInterval = 250 * time.Millisecond
	logSuffix   = ".jsonl"
)

// add notes a request. It reports whether the buffer should be flushed soon.
func (l *accessLog) add(r *record, took time.Duration) (sequence uint64, full bool) {
	now := uint64(r.start.Add(took).UnixNano())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sequence = max(l.sequence+1, now)
	if len(l.buffer) > logBuffer {
		l.lost++
		return l.sequence, true
	}
	l.buffer = r.appendJSON(l.buffer, l.sequence, took)
	return l.sequence, len(l.buffer) > logWake
}

// next returns a sequence number for a request that is not logged.
func (l *accessLog) next() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sequence = max(l.sequence+1, uint64(time.Now().UnixNano()))
	return l.sequence
}

// flush writes what is buffered. Errors are said once and cost the lines, not the service.
func (l *accessLog) flush() {
	l.fileMu.Lock()
	defer l.fileMu.Unlock()
	l.mu.Lock()
	full := l.buffer
	l.buffer = l.spare[:0]
	l.mu.Unlock()
	l.spare = full[:0]
	if cap(l.spare) > 1<<20 {
		l.spare = nil
	}
	if len(full) == 0 {
		return
	}
	err := l.writeLocked(full)
	if err != nil && !l.said {
		l.log.Warn("writing the access log", "error", err)
	}
	l.said = err != nil
}

func (l *accessLog) writeLocked(data []byte) error {
	if l.file == nil || l.size > l.maxBytes/20 {
		if err := l.rotateLocked(); err != nil {
			return err
		}
	}
	n, err := l.file.Write(data)
	l.size += int64(n)
	return err
}

// rotateLocked begins a new file and removes old ones.
func (l *accessLog) rotateLocked() error {
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
	names, err := l.names()
	if err != nil {
		return err
	}
	left := l.maxBytes * 19 / 20 // the new file may grow into the rest
	for _, name := range slices.Backward(names) {
		info, err := l.root.Stat(name)
		if err != nil {
			continue
		}
		if left -= info.Size(); left < 0 {
			_ = l.root.Remove(name)
		}
	}
	name := fmt.Sprintf("%019d-%d%s", time.Now().UnixNano(), os.Getpid(), logSuffix)
	l.file, err = l.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	l.size = 0
	return err
}

// names returns the log's files, oldest first.
func (l *accessLog) names() ([]string, error) {
	entries, err := fs.ReadDir(l.root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("listing the access log: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), logSuffix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// close writes the rest.
func (l *accessLog) close() {
	l.flush()
	l.fileMu.Lock()
	defer l.fileMu.Unlock()
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
}

// read returns the lines that a query asks for, oldest first.
func (l *accessLog) read(q Query) ([]Entry, error) {
	l.flush()
	names, err := l.names()
	if err != nil {
		return nil, err
	}
	if q.Oldest {
		return l.readOldest(names, &q)
	}
	var newest []Entry // newest first
	for _, name := range slices.Backward(names) {
		some, err := l.readFile(name, &q, 0)
		if err != nil {
			return nil, err
		}
		slices.Reverse(some)
		newest = append(newest, some...)
		info, err := l.root.Stat(name)
		old := err == nil && olderThan(info, q.since())
		if len(newest) >= q.limit() || old {
			break
		}
	}
	newest = newest[:min(len(newest), q.limit())]
	slices.Reverse(newest)
	return newest, nil
}

// readOldest returns the first lines that a query asks for.
func (l *accessLog) readOldest(names []string, q *Query) ([]Entry, error) {
	var out []Entry
	for _, name := range names {
		info, err := l.root.Stat(name)
		if err != nil || olderThan(info, q.since()) {
			continue // it was removed meanwhile, or all of it is older
		}
		some, err := l.readFile(name, q, q.limit()-len(out))
		if err != nil {
			return nil, err
		}
		if out = append(out, some...); len(out) >= q.limit() {
			break
		}
	}
	return out, nil
}

// olderThan reports whether a file was last written before a time. Files' times are some milliseconds behind.
func olderThan(info fs.FileInfo, nanos uint64) bool {
	return info.ModTime().Add(time.Second).Before(time.Unix(0, int64(nanos)))
}

// since is the sequence number below which nothing is asked for: those numbers are times in nanoseconds.
func (q *Query) since() uint64 {
	if q.Since.IsZero() {
		return q.After
	}
	return max(q.After, uint64(max(q.Since.UnixNano(), 0)))
}

// readFile returns entries of one file that are asked for, oldest first: the last ones, or the first most.
func (l *accessLog) readFile(name string, q *Query, most int) ([]Entry, error) {
	f, err := l.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the access log: %w", err)
	}
	defer func() { _ = f.Close() }()
	quick, since := []byte(q.RequestID), q.since()
	var out []Entry
	reader := bufio.NewReaderSize(f, 64<<10)
	for {
		line, err := reader.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			continue // a line of that length is not ours
		}
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the access log: %w", err)
		}
		if sequenceOf(line) < since || !bytes.Contains(line, quick) {
			continue
		}
		var e Entry
		if json.Unmarshal(line, &e) != nil || !q.wants(&e) {
			continue
		}
		out = append(out, e)
		switch {
		case most > 0 && len(out) >= most:
			return out, nil
		case most == 0 && len(out) >= 2*q.limit():
			out = append(out[:0], out[q.limit():]...)
		}
	}
}

// sequenceOf reads the number that each line begins with, without decoding the rest.
func sequenceOf(line []byte) (n uint64) {
	for _, c := range bytes.TrimPrefix(line, []byte(`{"seq":`)) {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + uint64(c-'0')
	}
	return n
}
