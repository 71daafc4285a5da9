package shim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/events"
	"google.golang.org/protobuf/types/known/emptypb"
)

// exitKilled is the exit code of what SIGKILL ended.
const exitKilled = 137

// drainLimit bounds the wait for output after a container's end.
const drainLimit = 2 * time.Second

// tasks is containerd's task service with logs, exit records and events around it. It is
// also the publisher that the inner service reports to.
type tasks struct {
	taskAPI.TTRPCTaskService        // set once, before the first call
	shutdown                 func() // ends the program
	fence                    fence

	mu         sync.Mutex // guards the fields below
	containers map[string]*ctr
	watchers   map[chan Event]struct{}
}

// ctr is what the shim knows of one container.
type ctr struct {
	bundle string
	cgroup string  // where the kernel counts its OOM kills, "" if unknown
	output *output // nil when the caller handles the streams
	oom    bool
	exit   *Exit
}

func newTasks(shutdown func()) *tasks {
	return &tasks{
		shutdown:   shutdown,
		containers: map[string]*ctr{},
		watchers:   map[chan Event]struct{}{},
	}
}

// Create makes the container. With a LogURI as its stdout the shim takes the streams.
func (t *tasks) Create(ctx context.Context, r *taskAPI.CreateTaskRequest) (*taskAPI.CreateTaskResponse, error) {
	if t.fence.passed() {
		return nil, errFenced
	}
	c := &ctr{bundle: r.Bundle}
	log, ours, err := parseLogURI(r.Stdout)
	if err != nil {
		return nil, err
	}
	// Before the container exists, so that its exit cannot come too early.
	t.mu.Lock()
	_, taken := t.containers[r.ID]
	if !taken {
		t.containers[r.ID] = c
	}
	t.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("container %s is there already", r.ID)
	}
	if ours {
		out, err := openOutput(r.Bundle, log, r.Terminal)
		if err != nil {
			t.forget(r.ID)
			return nil, fmt.Errorf("open output of %s: %w", r.ID, err)
		}
		t.mu.Lock()
		c.output = out
		t.mu.Unlock()
		r.Stdin, r.Stdout, r.Stderr = out.stdin, out.stdout, out.stderr
	}
	response, err := t.TTRPCTaskService.Create(ctx, r)
	if err != nil {
		t.forget(r.ID)
		return nil, err
	}
	cgroup := memoryCgroup(int(response.Pid))
	t.mu.Lock()
	c.cgroup = cgroup
	t.mu.Unlock()
	return response, nil
}

// Start runs a container or an exec process, unless the pod was fenced.
func (t *tasks) Start(ctx context.Context, r *taskAPI.StartRequest) (*taskAPI.StartResponse, error) {
	if t.fence.passed() {
		return nil, errFenced
	}
	return t.TTRPCTaskService.Start(ctx, r)
}

// Delete removes a container or an exec process.
func (t *tasks) Delete(ctx context.Context, r *taskAPI.DeleteRequest) (*taskAPI.DeleteResponse, error) {
	response, err := t.TTRPCTaskService.Delete(ctx, r)
	if err == nil && r.ExecID == "" {
		t.forget(r.ID)
	}
	return response, err
}

// Shutdown ends the program when no container is left.
func (t *tasks) Shutdown(context.Context, *taskAPI.ShutdownRequest) (*emptypb.Empty, error) {
	t.mu.Lock()
	left := len(t.containers)
	t.mu.Unlock()
	if left == 0 {
		t.shutdown()
	}
	return &emptypb.Empty{}, nil
}

// forget drops a container and its streams.
func (t *tasks) forget(id string) {
	t.mu.Lock()
	c := t.containers[id]
	delete(t.containers, id)
	t.mu.Unlock()
	if c != nil && c.output != nil {
		c.output.abandon()
	}
}

// get returns a container, or nil.
func (t *tasks) get(id string) *ctr {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.containers[id]
}

// Publish receives the inner service's events.
func (t *tasks) Publish(_ context.Context, _ string, event events.Event) error {
	switch e := event.(type) {
	case *eventstypes.TaskOOM:
		t.outOfMemory(e.ContainerID)
	case *eventstypes.TaskExit:
		if e.ID == e.ContainerID {
			// The events behind this one must not wait for the output.
			go t.exited(e.ContainerID, Exit{Code: int(e.ExitStatus), At: e.ExitedAt.AsTime()})
		}
	}
	return nil
}

// Close is part of the publisher; there is nothing to close.
func (t *tasks) Close() error { return nil }

// outOfMemory records and tells that a container ran out of memory.
func (t *tasks) outOfMemory(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.containers[id]
	if c == nil || c.oom {
		return
	}
	c.oom = true
	t.tellLocked(Event{Type: EventOOM, Container: id})
}

// exited records and tells that a container has ended, after its output is in the log.
func (t *tasks) exited(id string, exit Exit) {
	c := t.get(id)
	if c == nil {
		return
	}
	if c.output != nil {
		c.output.drain(drainLimit)
	}
	t.mu.Lock()
	cgroup := c.cgroup
	t.mu.Unlock()
	// The counter, unlike the event, cannot come too late.
	if oomKills(cgroup) > 0 {
		t.outOfMemory(id)
	}
	t.mu.Lock()
	exit.OOM = c.oom
	t.mu.Unlock()
	exit.Fenced = exit.Code == exitKilled && t.fence.passed()
	// Should the record be lost, the event and the task's own state still say it.
	_ = WriteExit(c.bundle, exit)
	t.mu.Lock()
	c.exit = &exit
	t.tellLocked(Event{Type: EventExited, Container: id, Exit: &exit})
	t.mu.Unlock()
	if c.output != nil {
		c.output.finish()
	}
}

// tellLocked passes an event to all watchers. One that does not keep up is cut off: it
// comes again and is told the whole state. t.mu is held.
func (t *tasks) tellLocked(event Event) {
	for watcher := range t.watchers {
		select {
		case watcher <- event:
		default:
			delete(t.watchers, watcher)
			close(watcher)
		}
	}
}

// watch returns what is so now and a channel of what follows. The channel is closed when
// the watcher is too slow; end it with unwatch.
func (t *tasks) watch() ([]Event, chan Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var now []Event
	for id, c := range t.containers {
		if c.oom {
			now = append(now, Event{Type: EventOOM, Container: id})
		}
		if c.exit != nil {
			now = append(now, Event{Type: EventExited, Container: id, Exit: c.exit})
		}
	}
	now = append(now, Event{Type: EventSynced})
	watcher := make(chan Event, 256)
	t.watchers[watcher] = struct{}{}
	return now, watcher
}

func (t *tasks) unwatch(watcher chan Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.watchers, watcher)
}

// memoryCgroup returns the folder in which the kernel accounts the memory of pid.
func memoryCgroup(pid int) string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return ""
	}
	unified := ""
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(fields) != 3:
		case fields[1] == "memory":
			return filepath.Join("/sys/fs/cgroup/memory", fields[2])
		case fields[1] == "" && fields[0] == "0":
			unified = filepath.Join("/sys/fs/cgroup", fields[2])
		}
	}
	return unified
}

// oomKills reads how many processes of a cgroup the kernel has killed for memory: from
// memory.events on cgroup v2, from memory.oom_control on v1.
func oomKills(cgroup string) int {
	if cgroup == "" {
		return 0
	}
	for _, file := range []string{"memory.events", "memory.oom_control"} {
		data, err := os.ReadFile(filepath.Join(cgroup, file))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
				n, err := strconv.Atoi(value)
				if err != nil {
					return 0
				}
				return n
			}
		}
	}
	return 0
}
