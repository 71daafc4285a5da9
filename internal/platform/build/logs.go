package build

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"gantry.dev/gantry/internal/platform/build/job"
)

// Bounds of what is kept of logs.
const (
	maxLogBytes = 8 << 20 // of one build
	maxLogs     = 200     // files
)

// logs keep what builds said, a file of JSON lines for each, by the UID of the Build.
type logs struct {
	dir string

	mu   sync.Mutex // guards the field below
	open map[string]*logFile
}

// logFile is a log that is being written.
type logFile struct {
	file    *os.File
	written int64
	full    bool
	changed chan struct{} // closed and replaced after each line
	ended   bool
}

func newLogs(dir string) *logs { return &logs{dir: dir, open: map[string]*logFile{}} }

func (l *logs) path(uid string) string { return filepath.Join(l.dir, filepath.Base(uid)+".jsonl") }

// begin starts the log of a build anew.
func (l *logs) begin(uid string) error {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return fmt.Errorf("making the folder of build logs: %w", err)
	}
	if err := l.trim(); err != nil {
		return err
	}
	file, err := os.OpenFile(l.path(uid), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("making a build log: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[uid] = &logFile{file: file, changed: make(chan struct{})}
	return nil
}

// add writes one line. What is too much for one build is left out, but for how it ended.
func (l *logs) add(uid string, event job.Event) error {
	line, err := json.Marshal(event)
	if err != nil {
		return fmt.Errorf("encoding a line of a build log: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.open[uid]
	if f == nil {
		return nil
	}
	last := event.Type == job.Done || event.Type == job.Failed
	if !last && f.written+int64(len(line)) > maxLogBytes {
		if f.full {
			return nil
		}
		f.full = true
		line, err = json.Marshal(job.Event{Time: event.Time, Type: job.Warn, Text: fmt.Sprintf("the log is longer than %d MiB: the rest is left out", maxLogBytes>>20)})
		if err != nil {
			return fmt.Errorf("encoding a line of a build log: %w", err)
		}
	}
	f.written += int64(len(line)) + 1
	if _, err := f.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("writing a build log: %w", err)
	}
	close(f.changed)
	f.changed = make(chan struct{})
	return nil
}

// end closes a log.
func (l *logs) end(uid string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.open[uid]
	if f == nil {
		return nil
	}
	f.ended = true
	close(f.changed)
	delete(l.open, uid)
	if err := f.file.Close(); err != nil {
		return fmt.Errorf("closing a build log: %w", err)
	}
	return nil
}

// copy writes the log to w; with follow until its end.
func (l *logs) copy(ctx context.Context, uid string, follow bool, w io.Writer) error {
	file, err := os.Open(l.path(uid))
	if err != nil {
		return fmt.Errorf("opening a build log: %w", err)
	}
	defer file.Close()
	reader := bufio.NewReaderSize(file, 64<<10)
	for {
		l.mu.Lock()
		f := l.open[uid]
		var changed <-chan struct{}
		if f != nil {
			changed = f.changed
		}
		l.mu.Unlock()
		if _, err := io.Copy(w, reader); err != nil {
			return fmt.Errorf("sending a build log: %w", err)
		}
		if !follow || f == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// remove takes the log of a Build that is gone away.
func (l *logs) remove(uid string) error {
	if err := os.Remove(l.path(uid)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing a build log: %w", err)
	}
	return nil
}

// trim removes the oldest logs.
func (l *logs) trim() error {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return fmt.Errorf("reading the folder of build logs: %w", err)
	}
	type entry struct {
		name string
		at   int64
	}
	var files []entry
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			files = append(files, entry{e.Name(), info.ModTime().UnixNano()})
		}
	}
	slices.SortFunc(files, func(a, b entry) int { return int(min(max(a.at-b.at, -1), 1)) })
	for len(files) >= maxLogs {
		if err := os.Remove(filepath.Join(l.dir, files[0].name)); err != nil {
			return fmt.Errorf("removing an old build log: %w", err)
		}
		files = files[1:]
	}
	return nil
}
