package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/fifo"
	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/container/crilog"
)

// The names of a container's pipes in its bundle.
const (
	stdoutPipe = "out"
	stderrPipe = "err"
	stdinPipe  = "in"
)

// output reads what a container writes, logs it and passes it on to who is attached.
type output struct {
	log    *crilog.Writer // nil without a log
	opts   Log
	stdin  string // path of the stdin pipe, "" without one
	stdout string
	stderr string // "" with a terminal

	copying sync.WaitGroup
	readers []io.Closer

	mu       sync.Mutex // guards the fields below
	sessions map[*session]struct{}
	ended    bool
}

// openOutput makes the pipes in bundle, opens the log and starts copying. End it with
// finish.
func openOutput(bundle string, opts Log, terminal bool) (*output, error) {
	pipes := []string{stdoutPipe}
	if !terminal {
		pipes = append(pipes, stderrPipe)
	}
	if opts.Stdin {
		pipes = append(pipes, stdinPipe)
	}
	for _, name := range pipes {
		if err := makePipe(filepath.Join(bundle, name)); err != nil {
			return nil, err
		}
	}
	return reopenOutput(bundle, opts, terminal)
}

// reopenOutput is openOutput for pipes that are there.
func reopenOutput(bundle string, opts Log, terminal bool) (_ *output, err error) {
	o := &output{opts: opts, sessions: map[*session]struct{}{}}
	defer func() {
		if err != nil {
			o.abandon()
		}
	}()
	if opts.Path != "" {
		if o.log, err = crilog.Open(crilog.Options{Path: opts.Path, MaxBytes: opts.MaxBytes, MaxFiles: opts.MaxFiles}); err != nil {
			return nil, err
		}
	}
	o.stdout = filepath.Join(bundle, stdoutPipe)
	if err := o.follow(o.stdout, crilog.Stdout, frameStdout); err != nil {
		return nil, err
	}
	if !terminal {
		o.stderr = filepath.Join(bundle, stderrPipe)
		if err := o.follow(o.stderr, crilog.Stderr, frameStderr); err != nil {
			return nil, err
		}
	}
	if opts.Stdin {
		o.stdin = filepath.Join(bundle, stdinPipe)
	}
	return o, nil
}

// follow copies one pipe until every writer has closed it.
func (o *output) follow(path, stream string, kind byte) error {
	reader, err := fifo.OpenFifo(context.Background(), path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open pipe: %w", err)
	}
	o.readers = append(o.readers, reader)
	o.copying.Go(func() {
		tee := func(piece []byte) { o.broadcast(kind, piece) }
		if o.log != nil {
			_ = o.log.Copy(stream, reader, tee) // ends when the pipe is closed, one way or the other
			return
		}
		buf := make([]byte, 16<<10)
		for {
			n, err := reader.Read(buf)
			if n > 0 {
				tee(buf[:n])
			}
			if err != nil {
				return
			}
		}
	})
	return nil
}

// makePipe makes a named pipe, replacing a leftover.
func makePipe(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("make pipe: %w", err)
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return fmt.Errorf("make pipe %s: %w", path, err)
	}
	return nil
}

// drain waits until all output has been copied, but not beyond limit: a process that left
// the container may hold a pipe open for ever.
func (o *output) drain(limit time.Duration) {
	drained := make(chan struct{})
	go func() {
		o.copying.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(limit):
	}
}

// finish ends the attach sessions after the container's end; copying goes on while
// somebody holds the pipes.
func (o *output) finish() {
	o.mu.Lock()
	sessions := o.sessions
	o.sessions, o.ended = nil, true
	o.mu.Unlock()
	for s := range sessions {
		s.end()
	}
}

// abandon closes everything, copied or not.
func (o *output) abandon() {
	o.finish()
	for _, reader := range o.readers {
		_ = reader.Close()
	}
	o.copying.Wait()
	if o.log != nil {
		_ = o.log.Close() // nothing is buffered in it
	}
}

// broadcast queues a piece of output for everybody attached.
func (o *output) broadcast(kind byte, piece []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for s := range o.sessions {
		if !s.offer(kind, piece) {
			delete(o.sessions, s)
			s.end()
		}
	}
}

// join adds an attach session; false when the container has ended.
func (o *output) join(s *session) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return false
	}
	o.sessions[s] = struct{}{}
	return true
}

// leave removes a session.
func (o *output) leave(s *session) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.sessions, s)
}
