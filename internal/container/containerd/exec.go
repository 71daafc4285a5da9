package containerd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/fifo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/shim"
)

// execIdle is how long after the end of a process its output may pause before it is taken
// to be complete: a child it left behind may hold the pipe open for ever.
const execIdle = 500 * time.Millisecond

// Exec runs one more process in a running container and returns its exit code. When ctx
// ends first the process is killed and ctx's error returned.
func (r *Runtime) Exec(ctx context.Context, id string, ex container.Exec, streams container.Streams) (int, error) {
	ctx, c, err := r.find(ctx, id)
	if err != nil {
		return 0, fmt.Errorf("execute in container: %w", err)
	}
	if state := c.state(); state != container.StateRunning {
		return 0, fmt.Errorf("execute in container %s: it is %s", c.cfg.Name, state)
	}
	conn, err := r.taskConn(ctx, c)
	if err != nil {
		return 0, fmt.Errorf("execute in container %s: %w", c.cfg.Name, err)
	}
	code, err := r.exec(ctx, c, conn, ex, streams)
	if err != nil {
		return 0, fmt.Errorf("execute in container %s: %w", c.cfg.Name, err)
	}
	return code, nil
}

// makeExecDir makes the folder of one exec. The folder of the container's execs goes with the
// last of them, which may be this very moment: then it is made again.
func makeExecDir(dir string) error {
	for range 100 {
		if err := os.MkdirAll(dir, 0o700); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.MkdirAll(dir, 0o700)
}

// exec does the work of Exec.
func (r *Runtime) exec(ctx context.Context, c *ctr, conn *shimConn, ex container.Exec, streams container.Streams) (int, error) {
	process, err := r.execSpec(c.id, ex, streams.TTY)
	if err != nil {
		return 0, err
	}
	var raw [8]byte
	_, _ = rand.Read(raw[:]) // never fails
	execID := hex.EncodeToString(raw[:])
	// The folder also tells a later gantry that this process is to be ended.
	dir := filepath.Join(r.opts.State, execDir, c.id, execID)
	if err := makeExecDir(dir); err != nil {
		return 0, fmt.Errorf("make pipes: %w", err)
	}
	defer r.endExec(context.WithoutCancel(ctx), c, conn, execID)
	pipes, err := openExecPipes(dir, streams)
	if err != nil {
		return 0, err
	}
	defer pipes.close()
	_, err = conn.tasks.Exec(ctx, &task.ExecProcessRequest{
		ID: c.id, ExecID: execID, Terminal: streams.TTY,
		Stdin: pipes.stdin, Stdout: pipes.stdout, Stderr: pipes.stderr, Spec: process,
	})
	if err != nil {
		return 0, errgrpc.ToNative(err)
	}
	if _, err := conn.tasks.Start(ctx, &task.StartRequest{ID: c.id, ExecID: execID}); err != nil {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		return 0, runcError(err)
	}
	session := make(chan struct{})
	defer close(session)
	if streams.Resize != nil {
		go r.resizeExec(ctx, c.id, execID, conn, streams.Resize, session)
	}
	if streams.Stdin != nil {
		// Ends with the caller's stream: reading it cannot be interrupted from here.
		go func() {
			pipes.feed(streams.Stdin)
			_, _ = conn.tasks.CloseIO(ctx, &task.CloseIORequest{ID: c.id, ExecID: execID, Stdin: true}) // ended: closed
		}()
	}
	ended, err := conn.tasks.Wait(ctx, &task.WaitRequest{ID: c.id, ExecID: execID})
	if ctx.Err() != nil {
		return 0, ctx.Err() // endExec kills it
	}
	if err != nil {
		return 0, errgrpc.ToNative(err)
	}
	pipes.drain(ctx)
	return int(ended.ExitStatus), nil
}

// execSpec makes the process from that of the container.
func (r *Runtime) execSpec(id string, ex container.Exec, tty bool) (*anypb.Any, error) {
	if len(ex.Command) == 0 {
		return nil, errors.New("there is no command")
	}
	data, err := os.ReadFile(filepath.Join(r.bundle(id), "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read OCI spec: %w", err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("read OCI spec: %w", err)
	}
	process := spec.Process
	process.Args = ex.Command
	process.Terminal = tty
	process.Env = append(process.Env, ex.Env...)
	if tty {
		process.Env = append(process.Env, "TERM=xterm")
	}
	if ex.WorkingDir != "" {
		process.Cwd = ex.WorkingDir
	}
	encoded, err := json.Marshal(process)
	if err != nil {
		return nil, fmt.Errorf("encode process: %w", err)
	}
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: encoded}, nil
}

// resizeExec passes terminal sizes on until the session ends.
func (r *Runtime) resizeExec(ctx context.Context, id, execID string, conn *shimConn, sizes <-chan container.Size, session <-chan struct{}) {
	for {
		select {
		case <-session:
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			_, _ = conn.tasks.ResizePty(ctx, &task.ResizePtyRequest{ // no reason to end the session
				ID: id, ExecID: execID, Width: uint32(size.Width), Height: uint32(size.Height),
			})
		}
	}
}

// endExec kills an exec process if it still runs and removes everything of it. The shim
// may take ten seconds to forget one that left a child with its pipes, so that is not
// waited for; should this process end meanwhile, the next one does it.
func (r *Runtime) endExec(ctx context.Context, c *ctr, conn *shimConn, execID string) {
	callCtx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	// These fail when there is nothing left to do.
	state, err := conn.tasks.State(callCtx, &task.StateRequest{ID: c.id, ExecID: execID})
	if err == nil && state.Status == tasktypes.Status_RUNNING {
		_, _ = conn.tasks.Kill(callCtx, &task.KillRequest{ID: c.id, ExecID: execID, Signal: uint32(unix.SIGKILL)})
		_, _ = conn.tasks.Wait(callCtx, &task.WaitRequest{ID: c.id, ExecID: execID})
	}
	r.background.start(func() {
		ctx, cancel := context.WithTimeout(r.runCtx, 2*killWait)
		defer cancel()
		if err == nil {
			_, _ = conn.tasks.Delete(ctx, &task.DeleteRequest{ID: c.id, ExecID: execID})
		}
		parent := filepath.Join(r.opts.State, execDir, c.id)
		_ = os.RemoveAll(filepath.Join(parent, execID))
		_ = os.Remove(parent) // when it was the last
	})
}

// execPipes are the named pipes of one exec process.
type execPipes struct {
	stdin, stdout, stderr string // paths, "" where not connected

	input   io.WriteCloser
	outputs []io.ReadCloser
	copying sync.WaitGroup
	moved   atomic.Int64 // bytes copied so far
}

// openExecPipes makes the pipes in dir and copies the output.
func openExecPipes(dir string, streams container.Streams) (_ *execPipes, err error) {
	p := &execPipes{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	p.stdout = filepath.Join(dir, "out")
	if err := p.follow(p.stdout, streams.Stdout); err != nil {
		return nil, err
	}
	if !streams.TTY {
		p.stderr = filepath.Join(dir, "err")
		if err := p.follow(p.stderr, streams.Stderr); err != nil {
			return nil, err
		}
	}
	if streams.Stdin == nil {
		return p, nil
	}
	p.stdin = filepath.Join(dir, "in")
	p.input, err = fifo.OpenFifo(context.Background(), p.stdin, unix.O_WRONLY|unix.O_CREAT|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	return p, nil
}

// follow makes a pipe and copies what comes out of it to dst, or drops it.
func (p *execPipes) follow(path string, dst io.Writer) error {
	reader, err := fifo.OpenFifo(context.Background(), path, unix.O_RDONLY|unix.O_CREAT|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	if dst == nil {
		dst = io.Discard
	}
	p.outputs = append(p.outputs, reader)
	p.copying.Go(func() {
		buf := make([]byte, 32<<10)
		for {
			n, err := reader.Read(buf)
			if n > 0 {
				if _, err := dst.Write(buf[:n]); err != nil {
					dst = io.Discard // the process must not block on a caller that went away
				}
				p.moved.Add(int64(n))
			}
			if err != nil {
				return
			}
		}
	})
	return nil
}

// feed copies the caller's input to the process and closes the pipe.
func (p *execPipes) feed(src io.Reader) {
	_, _ = io.Copy(p.input, src) // the process has ended, or does not read
	_ = p.input.Close()
}

// drain waits until the output is complete.
func (p *execPipes) drain(ctx context.Context) {
	complete := make(chan struct{})
	go func() {
		p.copying.Wait()
		close(complete)
	}()
	ticker := time.NewTicker(execIdle)
	defer ticker.Stop()
	for last := p.moved.Load(); ; {
		select {
		case <-complete:
			return
		case <-ctx.Done():
			return
		case <-ticker.C:
			now := p.moved.Load()
			if now == last {
				return
			}
			last = now
		}
	}
}

// close closes the pipes and waits for the copying.
func (p *execPipes) close() {
	if p.input != nil {
		_ = p.input.Close()
	}
	for _, output := range p.outputs {
		_ = output.Close()
	}
	p.copying.Wait()
}

// Attach connects streams to the main process of a running container, from now on, until
// it or ctx ends.
func (r *Runtime) Attach(ctx context.Context, id string, streams container.Streams) error {
	ctx, c, err := r.find(ctx, id)
	if err != nil {
		return fmt.Errorf("attach to container: %w", err)
	}
	if c.rec.Handler == handlerRunc {
		return r.attachStock(ctx, c, streams)
	}
	conn, err := r.taskConn(ctx, c)
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", c.cfg.Name, err)
	}
	if err := shim.Attach(ctx, conn.stream, id, streams); err != nil {
		return fmt.Errorf("attach to container %s: %w", c.cfg.Name, err)
	}
	return nil
}
