package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	eventstypes "github.com/containerd/containerd/api/events"
	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/runtime/task/v3"
	events "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	shimapi "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/shim"
)

// stockFile is the record of a container's stock shim in its bundle.
const stockFile = "stock.json"

// stockRecord says how to reach a stock shim.
type stockRecord struct {
	Process processID `json:"process"`
	Address string    `json:"address"`
}

// eventSocket is where stock shims report events.
func (r *Runtime) eventSocket() string { return filepath.Join(r.opts.State, socketsDir, "events") }

// serveEvents takes the events of stock shims until ctx ends.
func (r *Runtime) serveEvents(ctx context.Context) error {
	path := r.eventSocket()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("listen for events: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("listen for events: %w", err)
	}
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		return fmt.Errorf("listen for events: %w", err)
	}
	events.RegisterTTRPCEventsService(server, eventSink{r})
	r.background.start(func() {
		stop := context.AfterFunc(ctx, func() { _ = server.Close() })
		defer stop()
		_ = server.Serve(ctx, listener) // ends by Close
		_ = listener.Close()
	})
	return nil
}

// eventSink receives the events of stock shims. Only OOM events matter here: an end is
// seen by waiting for it.
type eventSink struct{ r *Runtime }

// Forward takes one event.
func (s eventSink) Forward(_ context.Context, req *events.ForwardRequest) (*emptypb.Empty, error) {
	value, err := typeurl.UnmarshalAny(req.Envelope.Event)
	if err != nil {
		return &emptypb.Empty{}, nil //nolint:nilerr // an event of a kind not known here
	}
	if oom, ok := value.(*eventstypes.TaskOOM); ok {
		if c := s.r.lookup(oom.ContainerID); c != nil {
			if conn := c.stockConn(); conn != nil {
				conn.local.OOM(c.id)
			}
		}
	}
	return &emptypb.Empty{}, nil
}

// stockConn returns the connection to a container's stock shim, or nil.
func (c *ctr) stockConn() *shimConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stock
}

// stockShim connects to a container's stock shim, starting one for a container that was
// not started before.
func (r *Runtime) stockShim(ctx context.Context, c *ctr) (*shimConn, error) {
	if conn := c.stockConn(); conn != nil {
		return conn, nil
	}
	path := filepath.Join(r.bundle(c.id), stockFile)
	var rec stockRecord
	err := readJSON(path, &rec)
	switch {
	case err == nil && rec.Process.alive():
	case err == nil:
		return nil, fmt.Errorf("the shim of container %s is dead", c.cfg.Name)
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	case c.state() != container.StateCreated:
		return nil, fmt.Errorf("container %s has no shim", c.cfg.Name)
	default:
		if rec, err = r.startStockShim(ctx, c); err != nil {
			return nil, fmt.Errorf("start stock shim: %w", err)
		}
		if err := writeJSON(path, rec); err != nil {
			return nil, fmt.Errorf("start stock shim: %w", err)
		}
	}
	return r.connectStock(c, rec)
}

// startStockShim runs containerd's own shim for one container.
func (r *Runtime) startStockShim(ctx context.Context, c *ctr) (stockRecord, error) {
	bundle := r.bundle(c.id)
	// The shim writes its log there; nobody reads it while this process is away.
	if err := os.Symlink(os.DevNull, filepath.Join(bundle, "log")); err != nil && !errors.Is(err, os.ErrExist) {
		return stockRecord{}, err
	}
	cmd, err := shimapi.Command(ctx, &shimapi.CommandConfig{ //nolint:staticcheck // there is no other way to start one
		ID:           c.id,
		RuntimePath:  r.opts.RuncShim,
		GRPCAddress:  r.eventSocket(),
		TTRPCAddress: r.eventSocket(),
		WorkDir:      bundle,
		Action:       "start",
		SocketDir:    filepath.Join("..", "..", socketsDir), // from the bundle: a whole path may be too long
	})
	if err != nil {
		return stockRecord{}, err
	}
	out, err := cmd.Output()
	if err != nil {
		return stockRecord{}, fmt.Errorf("%w: %s", err, errorOutput(err))
	}
	var boot bootapi.BootstrapResult
	if err := proto.Unmarshal(out, &boot); err != nil {
		return stockRecord{}, fmt.Errorf("its answer: %w", err)
	}
	return stockRecord{Address: boot.Address}, nil
}

// connectStock connects to a stock shim and takes over streams and events.
func (r *Runtime) connectStock(c *ctr, rec stockRecord) (*shimConn, error) {
	network, err := dialIn(filepath.Join(r.opts.State, socketsDir), filepath.Base(rec.Address))
	if err != nil {
		return nil, fmt.Errorf("connect to stock shim: %w", err)
	}
	client := ttrpc.NewClient(network)
	inner := task.NewTTRPCTaskClient(client)
	local := shim.NewLocal(inner)
	conn := &shimConn{tasks: local, client: client, local: local, gone: make(chan struct{})}
	if rec.Process.PID == 0 {
		if err := r.identifyStock(c, conn, rec); err != nil {
			_ = client.Close()
			return nil, err
		}
	} else {
		conn.proc = rec.Process
	}
	c.mu.Lock()
	c.stock = conn
	c.mu.Unlock()
	r.background.start(func() {
		defer close(conn.gone)
		ctx, cancel := context.WithCancel(r.runCtx)
		defer cancel()
		stop := context.AfterFunc(ctx, func() { _ = client.Close() })
		defer stop()
		local.Events(ctx, r.shimEvent)
	})
	return conn, nil
}

// dialIn connects to a socket in a folder whose whole path may be longer than a socket's
// may be.
func dialIn(dir, name string) (net.Conn, error) {
	opened, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	return net.DialTimeout("unix", fmt.Sprintf("/proc/self/fd/%d/%s", opened.Fd(), name), shimStartTimeout)
}

// identifyStock asks a fresh stock shim for its process and writes that down.
func (r *Runtime) identifyStock(c *ctr, conn *shimConn, rec stockRecord) error {
	ctx, cancel := context.WithTimeout(r.runCtx, shimStartTimeout)
	defer cancel()
	answer, err := conn.local.Connect(ctx, &task.ConnectRequest{ID: c.id})
	if err != nil {
		return fmt.Errorf("connect to stock shim: %w", err)
	}
	_, start, err := processStat(int(answer.ShimPid))
	if err != nil {
		return fmt.Errorf("connect to stock shim: %w", err)
	}
	rec.Process = processID{PID: int(answer.ShimPid), Start: start}
	conn.proc = rec.Process
	return writeJSON(filepath.Join(r.bundle(c.id), stockFile), rec)
}

// watchStock follows a started container of a stock shim.
func (r *Runtime) watchStock(c *ctr, conn *shimConn) {
	if conn.local == nil {
		return
	}
	r.background.start(func() {
		cgroup := memoryCgroupOf(c.rec.Cgroup)
		if err := conn.local.Follow(r.runCtx, c.id, cgroup); err != nil && r.runCtx.Err() == nil {
			r.log.Error("a stock shim died, its container is ended", "container", c.id, "error", err)
			r.endWithoutShim(c)
		}
	})
}

// reopenStock takes over a container of a stock shim after a restart of this process.
func (r *Runtime) reopenStock(c *ctr, conn *shimConn) {
	if err := conn.local.Reopen(c.id, r.bundle(c.id), c.log(), c.cfg.TTY); err != nil {
		r.log.Error("taking over a container's output", "container", c.id, "error", err)
	}
	r.watchStock(c, conn)
}

// endStockShim ends the shim of a removed container.
func (r *Runtime) endStockShim(ctx context.Context, c *ctr) {
	conn := c.stockConn()
	if conn == nil {
		return
	}
	callCtx, cancel := context.WithTimeout(ctx, shimEndTimeout)
	defer cancel()
	_, _ = conn.local.Shutdown(callCtx, &task.ShutdownRequest{ID: c.id, Now: true}) // what counts is that it ends
	if !conn.proc.waitEnd(shimEndTimeout) {
		_ = conn.proc.signal(unix.SIGKILL) // gone meanwhile is fine
		conn.proc.waitEnd(shimEndTimeout)
	}
	conn.local.Close()
	_ = conn.client.Close() // the other end is gone
	c.mu.Lock()
	c.stock = nil
	c.mu.Unlock()
}

// attachStock attaches to a container of a stock shim.
func (r *Runtime) attachStock(ctx context.Context, c *ctr, streams container.Streams) error {
	conn := c.stockConn()
	if conn == nil {
		return fmt.Errorf("attach to container %s: it does not run", c.cfg.Name)
	}
	if err := conn.local.Attach(ctx, c.id, streams); err != nil {
		return fmt.Errorf("attach to container %s: %w", c.cfg.Name, err)
	}
	return nil
}
