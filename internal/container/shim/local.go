package shim

import (
	"context"
	"net"
	"sync"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/types/known/emptypb"

	"gantry.dev/gantry/internal/container"
)

// Local does this package's work in the caller's process for the container of a stock
// containerd shim, which knows neither logs nor attach. What it adds ends with the
// process; Reopen goes on.
type Local struct{ *tasks }

// NewLocal wraps the task service of a stock shim.
func NewLocal(inner taskAPI.TTRPCTaskService) *Local {
	t := newTasks(func() {})
	t.TTRPCTaskService = inner
	return &Local{t}
}

// Shutdown ends the stock shim.
func (l *Local) Shutdown(ctx context.Context, r *taskAPI.ShutdownRequest) (*emptypb.Empty, error) {
	return l.TTRPCTaskService.Shutdown(ctx, r)
}

// Reopen goes on reading the output of a container that a former process created.
func (l *Local) Reopen(id, bundle string, log Log, terminal bool) error {
	out, err := reopenOutput(bundle, log, terminal)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.containers[id] = &ctr{bundle: bundle, output: out}
	return nil
}

// Follow waits for the container's end and records it. It returns early when ctx ends or
// the stock shim is gone.
func (l *Local) Follow(ctx context.Context, id, cgroup string) error {
	ended, err := l.Wait(ctx, &taskAPI.WaitRequest{ID: id})
	if err != nil {
		return err
	}
	if c := l.get(id); c != nil {
		l.mu.Lock()
		c.cgroup = cgroup
		l.mu.Unlock()
	}
	l.exited(id, Exit{Code: int(ended.ExitStatus), At: ended.ExitedAt.AsTime()})
	return nil
}

// OOM records that the container ran out of memory.
func (l *Local) OOM(id string) { l.outOfMemory(id) }

// Events calls fn for what is so and for what happens until ctx ends.
func (l *Local) Events(ctx context.Context, fn func(Event)) {
	for ctx.Err() == nil {
		now, watcher := l.watch()
		for _, event := range now {
			fn(event)
		}
		for open := true; open; {
			var event Event
			select {
			case event, open = <-watcher:
				if open {
					fn(event)
				}
			case <-ctx.Done():
				l.unwatch(watcher)
				return
			}
		}
	}
}

// Attach is the package's Attach without a socket.
func (l *Local) Attach(ctx context.Context, id string, streams container.Streams) error {
	client, server := net.Pipe()
	var serving sync.WaitGroup
	defer serving.Wait()
	defer client.Close()
	serving.Go(func() {
		defer server.Close()
		serveStream(ctx, server, l.tasks)
	})
	return attach(ctx, client, hello{Op: "attach", Container: id, Stdin: streams.Stdin != nil}, streams)
}

// Close gives up the container's output.
func (l *Local) Close() {
	l.mu.Lock()
	ids := make([]string, 0, len(l.containers))
	for id := range l.containers {
		ids = append(ids, id)
	}
	l.mu.Unlock()
	for _, id := range ids {
		l.forget(id)
	}
}
