//go:build linux

package lifecycle

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// readyEnv tells a detached process the number of the pipe to its starter.
const readyEnv = "_GANTRY_READY_FD"

// Messages on the pipe, one a line. Text is quoted as in Go, so that it stays on its line.
const (
	messageStep   = "step"
	messageReady  = "ready"
	messageFailed = "failed"
)

const (
	logRotateBytes = 16 << 20
	tailLines      = 20
)

// DetachOptions says what to run in the background. All but Env are required.
type DetachOptions struct {
	Executable string   // usually os.Executable()
	Args       []string // without the program's name
	Env        []string // nil: this process's own
	LogPath    string   // DATA/log/gantry.log
	Steps      *Steps   // gets the steps of the background process
}

// Detach starts a program in a session of its own with its output in LogPath and returns when the
// program says it is ready. If it fails or dies first the error holds what it said, and the last
// lines of the log. When ctx ends first the program is asked to stop, and Detach waits for it.
func Detach(ctx context.Context, opts DetachOptions) error {
	log, err := openLog(opts.LogPath)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer func() { _ = reader.Close() }()
	env := opts.Env
	if env == nil {
		env = os.Environ()
	}
	cmd := exec.Command(opts.Executable, opts.Args...) // not CommandContext: it outlives ctx
	cmd.Env = append(slices.Clip(env), readyEnv+"=3")
	cmd.ExtraFiles = []*os.File{writer}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = writer.Close()
	if err != nil {
		return fmt.Errorf("start %s: %w", opts.Executable, err)
	}
	stopAsking := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stopAsking()
	said, ready := readMessages(reader, opts.Steps)
	if ready {
		if err := cmd.Process.Release(); err != nil {
			return fmt.Errorf("release the background process: %w", err)
		}
		return nil
	}
	exit := cmd.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("start in the background: %w", ctx.Err())
	}
	if said == "" {
		said = fmt.Sprintf("the background process ended before it was ready (%v)", exit)
	}
	return detachFailure(said, opts.LogPath, from)
}

// detachFailure joins what the process said with the end of what it logged since from.
func detachFailure(said, path string, from int64) error {
	lines := tail(path, from, tailLines)
	if len(lines) == 0 {
		return errors.New(said)
	}
	return fmt.Errorf("%s\nlast lines of %s:\n  %s", said, path, strings.Join(lines, "\n  "))
}

func readMessages(r io.Reader, steps *Steps) (failure string, ready bool) {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		kind, quoted, _ := strings.Cut(scanner.Text(), " ")
		text, err := strconv.Unquote(quoted)
		if err != nil {
			text = quoted
		}
		switch kind {
		case messageStep:
			steps.Say("%s", text)
		case messageReady:
			return "", true
		case messageFailed:
			return text, false
		}
	}
	return "", false
}

// openLog opens the log for appending; one that has grown large is kept once, as FILE.1.
func openLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make folder of the log: %w", err)
	}
	if info, err := os.Stat(path); err == nil && info.Size() > logRotateBytes {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, fmt.Errorf("rotate log: %w", err)
		}
	}
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return log, nil
}

// tail returns at most n lines of what the file holds after offset from.
func tail(path string, from int64, n int) []string {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil
	}
	const limit = 64 << 10
	if _, err := file.Seek(max(from, info.Size()-limit), io.SeekStart); err != nil {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(file, limit))
	if err != nil {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) == 1 && lines[0] == "" {
		return nil
	}
	return lines[max(0, len(lines)-n):]
}

// Starter is a detached process's line to the process that started it. A nil *Starter, which every
// other process has, does nothing.
type Starter struct {
	mu   sync.Mutex // guards pipe
	pipe *os.File   // nil once the last message was sent
}

// FindStarter returns the line to the starter, or nil when the process was not made by Detach. It
// also hides it from the processes this one starts.
func FindStarter() (*Starter, error) {
	text, ok := os.LookupEnv(readyEnv)
	if !ok {
		return nil, nil
	}
	if err := os.Unsetenv(readyEnv); err != nil {
		return nil, fmt.Errorf("unset %s: %w", readyEnv, err)
	}
	fd, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("%s is %q, which is no file number", readyEnv, text)
	}
	unix.CloseOnExec(fd)
	return &Starter{pipe: os.NewFile(uintptr(fd), "starter")}, nil
}

// Write makes a Starter the output of Steps: each line becomes a step on the starter's terminal.
func (s *Starter) Write(lines []byte) (int, error) {
	for line := range strings.Lines(string(lines)) {
		s.send(messageStep, strings.TrimSuffix(line, "\n"), false)
	}
	return len(lines), nil
}

// Ready tells the starter that it may return.
func (s *Starter) Ready() { s.send(messageReady, "", true) }

// Failed tells the starter why the start did not work.
func (s *Starter) Failed(err error) { s.send(messageFailed, err.Error(), true) }

func (s *Starter) send(kind, text string, last bool) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pipe == nil {
		return
	}
	_, _ = fmt.Fprintf(s.pipe, "%s %s\n", kind, strconv.Quote(text)) // the starter may be gone
	if last {
		_ = s.pipe.Close()
		s.pipe = nil
	}
}
