package agenttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"sync"
	"time"

	"gantry.dev/gantry/internal/container"
)

// Behavior is how a container of the fake runtime behaves once started.
type Behavior struct {
	RunFor     time.Duration // ends by itself after that; 0 runs until stopped
	ExitCode   int
	StopTakes  time.Duration // how long it takes to end after the stop signal
	IgnoreStop bool          // ends by SIGKILL only
	StartError error
	OOM        bool
	Message    string // written to the termination log's mount when it ends
}

// Runtime is a container runtime in memory. It outlives the agents that use it, as a real one
// does.
type Runtime struct {
	// Behave says how a container behaves; nil lets all run until stopped. Set it before use.
	Behave func(container.Config) Behavior
	// OnExec runs a command; nil ends every one with exit code 0.
	OnExec func(ctx context.Context, c container.Status, cmd []string, s container.Streams) (int, error)
	// OnExit is told of a container's end before its event is sent; nil does nothing.
	OnExit func(container.Config, Behavior)
	// Delay is how long making a sandbox, starting a container and removing a sandbox take.
	SandboxTakes, StartTakes, RemoveTakes time.Duration

	start time.Time // constant

	mu        sync.Mutex // guards the fields below
	next      int
	sandboxes map[string]*sandbox
	listeners map[chan container.Event]bool
	failures  map[string]error
	starts    []string // names of containers in the order they were started
	cgroups   map[string]container.Resources
	writes    []string // of limits
	fences    map[string]*time.Timer
	fired     map[string]bool
}

type sandbox struct {
	spec       container.Sandbox
	created    time.Time
	containers []*record
}

type record struct {
	config container.Config
	status container.Status
	behave Behavior
	ended  chan struct{}
	timer  *time.Timer
}

// NewRuntime makes an empty runtime.
func NewRuntime() *Runtime {
	return &Runtime{sandboxes: map[string]*sandbox{}, listeners: map[chan container.Event]bool{}, failures: map[string]error{},
		fences: map[string]*time.Timer{}, fired: map[string]bool{}, start: time.Now()}
}

// Fail makes calls of a method fail with err until it is set to nil.
func (r *Runtime) Fail(method string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures[method] = err
}

// Starts lists the containers that were started, in order.
func (r *Runtime) Starts() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.starts)
}

// EnsureSandbox implements the runtime.
func (r *Runtime) EnsureSandbox(ctx context.Context, spec container.Sandbox) error {
	if err := sleep(ctx, r.SandboxTakes); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failures["EnsureSandbox"]; err != nil {
		return err
	}
	if r.sandboxes[spec.ID] == nil {
		r.sandboxes[spec.ID] = &sandbox{created: time.Now()}
	}
	if s := r.sandboxes[spec.ID]; s.spec.ID == "" || !reflect.DeepEqual(s.spec.Resources, spec.Resources) {
		r.limitLocked(spec.CgroupPath, spec.Resources)
	}
	r.sandboxes[spec.ID].spec = spec
	return nil
}

// RemoveSandbox implements the runtime.
func (r *Runtime) RemoveSandbox(ctx context.Context, id string) error {
	if err := sleep(ctx, r.RemoveTakes); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failures["RemoveSandbox"]; err != nil {
		return err
	}
	s := r.sandboxes[id]
	if s == nil {
		return nil
	}
	for _, c := range s.containers {
		r.endLocked(c, 137, "Error")
	}
	delete(r.sandboxes, id)
	return nil
}

// Fence implements the agent's Fencer in the time of SinceStart.
func (r *Runtime) Fence(_ context.Context, id string, at time.Duration) (fired bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failures["Fence"]; err != nil {
		return false, err
	}
	if r.sandboxes[id] == nil {
		return false, nil
	}
	if r.fired[id] {
		return true, nil
	}
	if timer := r.fences[id]; timer != nil {
		timer.Stop()
	}
	delete(r.fences, id)
	if at != 0 {
		r.fences[id] = time.AfterFunc(at-r.SinceStart(), func() { r.fire(id) })
	}
	return false, nil
}

// SinceStart is the clock of deadlines: the time since the runtime was made.
func (r *Runtime) SinceStart() time.Duration { return time.Since(r.start) + time.Second }

// Fenced says whether a sandbox holds a deadline.
func (r *Runtime) Fenced(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fences[id] != nil
}

// fire kills a sandbox whose deadline has passed.
func (r *Runtime) fire(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[id]
	if s == nil {
		return
	}
	r.fired[id] = true
	for _, c := range s.containers {
		r.endLocked(c, 137, container.ReasonFenced)
	}
}

// List implements the runtime.
func (r *Runtime) List(context.Context) ([]container.SandboxStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failures["List"]; err != nil {
		return nil, err
	}
	var list []container.SandboxStatus
	for _, s := range r.sandboxes {
		list = append(list, s.status())
	}
	return list, nil
}

// Status reads one sandbox.
func (r *Runtime) Status(_ context.Context, id string) (container.SandboxStatus, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failures["List"]; err != nil {
		return container.SandboxStatus{}, false, err
	}
	s := r.sandboxes[id]
	if s == nil {
		return container.SandboxStatus{}, false, nil
	}
	return s.status(), true, nil
}

func (s *sandbox) status() container.SandboxStatus {
	status := container.SandboxStatus{Sandbox: s.spec, CreatedAt: s.created}
	for _, c := range s.containers {
		status.Containers = append(status.Containers, c.status)
	}
	return status
}

// Events implements the runtime.
func (r *Runtime) Events(ctx context.Context) <-chan container.Event {
	in, out := make(chan container.Event, 64), make(chan container.Event)
	r.mu.Lock()
	r.listeners[in] = true
	r.mu.Unlock()
	go func() {
		defer close(out)
		defer func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.listeners, in)
		}()
		var queue []container.Event
		for {
			var send chan container.Event
			var first container.Event
			if len(queue) > 0 {
				send, first = out, queue[0]
			}
			select {
			case <-ctx.Done():
				return
			case e := <-in:
				queue = append(queue, e)
			case send <- first:
				queue = queue[1:]
			}
		}
	}()
	return out
}

func (r *Runtime) emitLocked(c *record, kind container.EventType) {
	event := container.Event{SandboxID: c.config.SandboxID, ContainerID: c.status.ID, Type: kind}
	for l := range r.listeners {
		select {
		case l <- event:
		default: // the listener is ending; it empties its channel otherwise
		}
	}
}

// CreateContainer implements the runtime.
func (r *Runtime) CreateContainer(_ context.Context, config container.Config) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failures["CreateContainer"]; err != nil {
		return "", err
	}
	s := r.sandboxes[config.SandboxID]
	if s == nil {
		return "", fmt.Errorf("sandbox %q not found", config.SandboxID)
	}
	r.next++
	c := &record{
		config: config, ended: make(chan struct{}),
		status: container.Status{
			ID: fmt.Sprintf("c%04d", r.next), SandboxID: config.SandboxID, Name: config.Name, Attempt: config.Attempt,
			State: container.StateCreated, CreatedAt: time.Now(), Image: config.Image, ImageRef: config.ImageRef,
			ImageID: config.Image, LogPath: config.LogPath, Labels: config.Labels, Annotations: config.Annotations,
		},
	}
	if r.Behave != nil {
		c.behave = r.Behave(config)
	}
	s.containers = append(s.containers, c)
	return c.status.ID, nil
}

// StartContainer implements the runtime.
func (r *Runtime) StartContainer(ctx context.Context, id string) error {
	if err := sleep(ctx, r.StartTakes); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.findLocked(id)
	if err != nil {
		return err
	}
	if err := errors.Join(r.failures["StartContainer"], c.behave.StartError); err != nil {
		c.status.FinishedAt = time.Now()
		c.status.State, c.status.ExitCode, c.status.Reason, c.status.Message = container.StateExited, 128, "StartError", err.Error()
		close(c.ended)
		return err
	}
	c.status.State, c.status.StartedAt, c.status.PID = container.StateRunning, time.Now(), 1000+r.next
	r.starts = append(r.starts, c.config.Name)
	r.emitLocked(c, container.EventStarted)
	if c.behave.RunFor > 0 {
		c.timer = time.AfterFunc(c.behave.RunFor, func() { r.Exit(id, c.behave.ExitCode) })
	}
	return nil
}

// Exit ends a running container as if its process had.
func (r *Runtime) Exit(id string, code int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, err := r.findLocked(id); err == nil {
		reason := "Error"
		if code == 0 {
			reason = "Completed"
		}
		if c.behave.OOM {
			reason = "OOMKilled"
		}
		r.endLocked(c, code, reason)
	}
}

func (r *Runtime) endLocked(c *record, code int, reason string) {
	if c.status.State != container.StateRunning {
		return
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	c.status.State, c.status.FinishedAt, c.status.PID = container.StateExited, time.Now(), 0
	c.status.ExitCode, c.status.Reason, c.status.OOMKilled = code, reason, reason == "OOMKilled"
	if r.OnExit != nil {
		r.OnExit(c.config, c.behave)
	}
	close(c.ended)
	r.emitLocked(c, container.EventExited)
}

// LoseShim forgets how the containers of a sandbox are, as when their shim is killed.
func (r *Runtime) LoseShim(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[id]
	if s == nil {
		return
	}
	for _, c := range s.containers {
		if c.status.State != container.StateRunning {
			continue
		}
		if c.timer != nil {
			c.timer.Stop()
		}
		c.status.State = container.StateUnknown
		close(c.ended)
		r.emitLocked(c, container.EventExited)
	}
}

// StopContainer implements the runtime.
func (r *Runtime) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	r.mu.Lock()
	c, err := r.findLocked(id)
	if err != nil || c.status.State != container.StateRunning {
		r.mu.Unlock()
		return nil
	}
	takes, code := c.behave.StopTakes, 143
	if c.behave.ExitCode != 0 {
		code = c.behave.ExitCode
	}
	if c.behave.IgnoreStop || takes > grace {
		takes, code = grace, 137
	}
	r.mu.Unlock()
	timer := time.NewTimer(takes)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ended:
		return nil
	case <-timer.C:
	}
	r.Exit(id, code)
	return nil
}

// RemoveContainer implements the runtime.
func (r *Runtime) RemoveContainer(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sandboxes {
		s.containers = slices.DeleteFunc(s.containers, func(c *record) bool { return c.status.ID == id })
	}
	return nil
}

// Exec implements the runtime.
func (r *Runtime) Exec(ctx context.Context, id string, cmd []string, s container.Streams) (int, error) {
	r.mu.Lock()
	c, err := r.findLocked(id)
	run := r.OnExec
	r.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if run == nil {
		return 0, nil
	}
	return run(ctx, c.status, cmd, s)
}

// Attach implements the runtime: what comes in goes out, until it ends.
func (r *Runtime) Attach(ctx context.Context, id string, s container.Streams) error {
	r.mu.Lock()
	c, err := r.findLocked(id)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if s.Stdin != nil && s.Stdout != nil {
		_, err := io.Copy(s.Stdout, s.Stdin)
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ended:
		return nil
	}
}

// Config returns what a container was made with.
func (r *Runtime) Config(id string) (container.Config, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.findLocked(id)
	if err != nil {
		return container.Config{}, false
	}
	return c.config, true
}

func (r *Runtime) findLocked(id string) (*record, error) {
	for _, s := range r.sandboxes {
		for _, c := range s.containers {
			if c.status.ID == id {
				return c, nil
			}
		}
	}
	return nil, fmt.Errorf("container %q not found", id)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
