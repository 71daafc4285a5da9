package shim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

// The file descriptors a shim inherits from who starts it.
const (
	taskSocketFD   = 3 // listening socket of the ttrpc task service
	streamSocketFD = 4 // listening socket for events and attach
)

// heapGrowth is the garbage collector's target. A shim's heap is a few hundred kilobytes,
// so collecting more often costs little and there is one shim for each pod.
const heapGrowth = 30

// Main runs the program and returns its exit code. Arguments: "serve -namespace NS" serves
// one pod on inherited sockets; "init" is process 1 of a shared PID namespace.
func Main(args []string, stderr io.Writer) int {
	var err error
	switch {
	case len(args) > 0 && args[0] == "serve":
		err = serveCommand(args[1:], stderr)
	case len(args) > 0 && args[0] == "init":
		reapForever()
	default:
		err = errors.New("usage: gantry-shim serve -namespace NS (started by gantry, not by hand)")
	}
	if err != nil {
		fmt.Fprintf(stderr, "gantry-shim: %v\n", err)
		return 1
	}
	return 0
}

// serveCommand parses the arguments of serve and serves.
func serveCommand(args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	flags.SetOutput(stderr)
	namespace := flags.String("namespace", "", "containerd namespace of the containers")
	id := flags.String("id", "", "sandbox this shim serves, to be seen in a process list")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *namespace == "" || *id == "" {
		return errors.New("-namespace and -id are needed")
	}
	taskListener, err := net.FileListener(os.NewFile(taskSocketFD, "task socket"))
	if err != nil {
		return fmt.Errorf("inherit task socket: %w", err)
	}
	streamListener, err := net.FileListener(os.NewFile(streamSocketFD, "stream socket"))
	if err != nil {
		return fmt.Errorf("inherit stream socket: %w", err)
	}
	debug.SetGCPercent(heapGrowth)
	return serve(namespaces.WithNamespace(context.Background(), *namespace), taskListener, streamListener)
}

// serve runs until Shutdown is called or SIGTERM comes. Containers that still run then
// stay, without anyone to collect their exit codes.
func serve(ctx context.Context, taskListener, streamListener net.Listener) error {
	if err := reaper.SetSubreaper(1); err != nil {
		return fmt.Errorf("become the parent of orphans: %w", err)
	}
	signals := make(chan os.Signal, 32)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGPIPE)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// containerd's context ends by Shutdown only, never with its parent.
	innerCtx, stopping := shutdown.WithShutdown(ctx)
	t := newTasks(cancel)
	t.fence.kill = func() { t.killAll(ctx) }
	inner, err := task.NewTaskService(innerCtx, t, stopping)
	if err != nil {
		return fmt.Errorf("start task service: %w", err)
	}
	t.TTRPCTaskService = inner
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		return fmt.Errorf("make ttrpc server: %w", err)
	}
	taskAPI.RegisterTTRPCTaskService(server, t)

	var serving sync.WaitGroup
	serving.Go(func() {
		_ = server.Serve(innerCtx, taskListener) // ends by Close below
		cancel()
	})
	serving.Go(func() { serveStreams(ctx, streamListener, t) })
	reapUntil(ctx, signals)
	stopping.Shutdown()
	_ = server.Close() // the process ends: nobody is left to be told
	_ = streamListener.Close()
	serving.Wait()
	return nil
}

// reapUntil collects exit codes of children until ctx ends or SIGTERM comes.
func reapUntil(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			switch s {
			case unix.SIGCHLD:
				_ = reaper.Reap() // no child left is not an error here
			case unix.SIGTERM:
				return
			}
		}
	}
}

// reapForever is process 1 of a PID namespace that the containers of a pod share: it
// collects orphans and ends when it is killed.
func reapForever() {
	signals := make(chan os.Signal, 32)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM)
	for s := range signals {
		if s == unix.SIGTERM {
			return
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 || (err != nil && !errors.Is(err, syscall.EINTR)) {
				break
			}
		}
	}
}
