//go:build linux

package build

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"gantry.dev/gantry/internal/platform/build/job"
)

// Network gives the building process a network that leads to the internet and nowhere else.
type Network interface {
	// Setup returns the path of a network namespace; calls for one that is there return it.
	Setup(ctx context.Context) (string, error)
	// Teardown removes it; without one it does nothing.
	Teardown(ctx context.Context) error
}

// EngineOptions say what an Engine may use. Program, Runc, Dir and RunDir are required.
type EngineOptions struct {
	Program string // gantry-build
	Runc    string
	Prepare func() error `json:"-"` // makes Program and Static, before each start of the process; nil: they are there
	Static  string       // the file server for static sites; "" refuses those
	Dir     string       // cache and temporary files
	RunDir  string       // for sockets; keep it short
	// Cgroup is the name of the own cgroup; default "gantry-build-" and a hash of Dir, so that nodes on one machine differ.
	Cgroup      string
	Network     Network       `json:"-"` // nil has no network at all
	DNS         []string      // name servers; empty are the machine's
	Idle        time.Duration // without a build until the process ends; default 1 minute
	MemoryBytes int64         // limit of the cgroup; default half of what is free when the process starts
	CPUWeight   int64         // cpu.shares of the cgroup; default 512, half of the usual
	CacheBytes  int64         // default 10 GiB or a tenth of the disk, whichever is less
	Bases       map[string]string
	Log         *slog.Logger // default: discards
}

// Engine runs the process that builds. Its methods may be called at the same time; builds wait
// for each other.
type Engine struct {
	opts  EngineOptions
	turn  chan struct{} // has an element while nobody builds
	wants chan chan starting

	mu      sync.Mutex // guards the field below
	process *process
}

type starting struct {
	process *process
	err     error
}

// ErrCrashed says that the building process ended while it built.
var ErrCrashed = errors.New("the building process ended: it was killed, or ran out of memory")

// NewEngine checks opts and returns an Engine that has started nothing.
func NewEngine(opts EngineOptions) (*Engine, error) {
	for name, path := range map[string]string{"Program": opts.Program, "Runc": opts.Runc, "Dir": opts.Dir, "RunDir": opts.RunDir} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("build: %s is %q, want an absolute path", name, path)
		}
	}
	opts.Cgroup = cmp.Or(opts.Cgroup, cgroupName(opts.Dir))
	opts.Idle = cmp.Or(opts.Idle, time.Minute)
	opts.CPUWeight = cmp.Or(opts.CPUWeight, 512)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{opts: opts, turn: make(chan struct{}, 1), wants: make(chan chan starting)}
	e.turn <- struct{}{}
	return e, nil
}

// Run sweeps what an earlier life left, and starts and ends the process as builds want it, until
// ctx ends; then it ends the process and what belongs to it.
func (e *Engine) Run(ctx context.Context) error {
	if err := e.sweep(ctx); err != nil {
		return err
	}
	defer e.end()
	timer := time.NewTimer(e.opts.Idle)
	defer timer.Stop()
	for {
		var idle <-chan time.Time
		var died <-chan struct{}
		if p := e.current(); p != nil {
			timer.Reset(e.opts.Idle)
			died, idle = p.done, timer.C
		}
		select {
		case <-ctx.Done():
			return nil
		case answer := <-e.wants:
			p, err := e.ensure(ctx)
			answer <- starting{p, err}
		case <-died:
			e.opts.Log.Warn("the building process ended")
			e.end()
		case <-idle:
			select {
			case <-e.turn: // nobody builds
				e.end()
				e.turn <- struct{}{}
			default:
			}
		}
	}
}

func (e *Engine) current() *process {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.process
}

// ensure returns the process, started if there is none.
func (e *Engine) ensure(ctx context.Context) (*process, error) {
	if p := e.current(); p != nil {
		select {
		case <-p.done:
			e.end()
		default:
			return p, nil
		}
	}
	p, err := e.start(ctx)
	if err != nil {
		e.remove()
		return nil, err
	}
	e.mu.Lock()
	e.process = p
	e.mu.Unlock()
	return p, nil
}

// end ends the process, if there is one, and removes what it had.
func (e *Engine) end() {
	e.mu.Lock()
	p := e.process
	e.process = nil
	e.mu.Unlock()
	if p != nil {
		p.kill()
	}
	e.remove()
}

// remove takes away the cgroup and the network.
func (e *Engine) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := e.sweep(ctx); err != nil {
		e.opts.Log.Warn("cannot remove what a build left", "error", err)
	}
}

// sweep kills what is in the cgroup and removes it, the network and the sockets.
func (e *Engine) sweep(ctx context.Context) error {
	err := removeCgroups(ctx, e.opts.Cgroup)
	if e.opts.Network != nil {
		err = errors.Join(err, e.opts.Network.Teardown(ctx))
	}
	for _, name := range []string{workerSocket, imagesSocket} {
		if removeErr := os.Remove(filepath.Join(e.opts.RunDir, name)); !errors.Is(removeErr, os.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	}
	if err != nil {
		return fmt.Errorf("removing what builds left: %w", err)
	}
	return nil
}

// Sockets below RunDir.
const (
	workerSocket = "build.sock"
	imagesSocket = "build-images.sock"
)

// get asks Run for the process.
func (e *Engine) get(ctx context.Context) (*process, error) {
	answer := make(chan starting, 1)
	select {
	case e.wants <- answer:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case s := <-answer:
		return s.process, s.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Images is what a build may read and write.
type Images struct {
	Registry http.Handler // serves /v2/ with the rights of the build's project
	Node     http.Handler // serves NodePath, images that the node has; nil serves none
}

// Build asks for one image and passes on what is said; it returns the last event, which is a
// Done or a Failed. An error is one of Gantry, not of the source. When ctx ends the build does.
func (e *Engine) Build(ctx context.Context, request job.Request, images Images, tell func(job.Event)) (job.Event, error) {
	select {
	case <-e.turn:
	case <-ctx.Done():
		return job.Event{}, ctx.Err()
	}
	defer func() { e.turn <- struct{}{} }()
	p, err := e.get(ctx)
	if err != nil {
		return job.Event{}, err
	}
	stop, err := e.serveImages(ctx, images)
	if err != nil {
		return job.Event{}, err
	}
	defer stop()
	request.Images = filepath.Join(e.opts.RunDir, imagesSocket)
	body, err := json.Marshal(request)
	if err != nil {
		return job.Event{}, fmt.Errorf("encoding a build: %w", err)
	}
	response, err := p.do(ctx, http.MethodPost, "/build", bytes.NewReader(body))
	if err != nil {
		return job.Event{}, p.explain(ctx, err)
	}
	defer response.Body.Close()
	return p.read(ctx, response.Body, tell)
}

// maxEvent bounds one line of a build's answer.
const maxEvent = 4 << 20

func (p *process) read(ctx context.Context, body io.Reader, tell func(job.Event)) (job.Event, error) {
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxEvent)
	for lines.Scan() {
		var event job.Event
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			return job.Event{}, fmt.Errorf("reading what a build says: %w", err)
		}
		tell(event)
		if event.Type == job.Done || event.Type == job.Failed {
			if err := ctx.Err(); err != nil && event.Type == job.Failed {
				return event, err
			}
			return event, nil
		}
	}
	return job.Event{}, p.explain(ctx, cmp.Or(lines.Err(), io.ErrUnexpectedEOF))
}

// explain says why a request to the process broke off.
func (p *process) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	select {
	case <-p.done:
		return ErrCrashed
	case <-time.After(time.Second): // the kernel tells of the socket's end before that of the process
		return fmt.Errorf("speaking to the building process: %w", err)
	}
}

// serveImages serves what a build may use at the socket, until stop.
func (e *Engine) serveImages(ctx context.Context, images Images) (stop func(), err error) {
	socket := filepath.Join(e.opts.RunDir, imagesSocket)
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing an old socket: %w", err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listening for a build: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protecting a build's socket: %w", err), listener.Close())
	}
	mux := http.NewServeMux()
	mux.Handle("/v2/", images.Registry)
	if images.Node != nil {
		mux.Handle(job.NodePath+"/", images.Node)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			e.opts.Log.Warn("serving images to a build", "error", err)
		}
	}()
	return func() {
		_ = server.Close() // also removes the socket
		<-done
	}, nil
}

// Usage is what is kept for later builds, by files on disk; it starts nothing.
func (e *Engine) Usage() (job.Usage, error) {
	var usage job.Usage
	err := filepath.WalkDir(e.opts.Dir, func(_ string, entry os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		if info, err := entry.Info(); err == nil {
			usage.Bytes += info.Size()
			usage.Entries++
		}
		return nil
	})
	if err != nil {
		return usage, fmt.Errorf("measuring the build cache: %w", err)
	}
	return usage, nil
}

// Prune removes the cache of builds and returns what that freed. It waits for a build that runs.
func (e *Engine) Prune(ctx context.Context) (job.Usage, error) {
	select {
	case <-e.turn:
	case <-ctx.Done():
		return job.Usage{}, ctx.Err()
	}
	defer func() { e.turn <- struct{}{} }()
	p, err := e.get(ctx)
	if err != nil {
		return job.Usage{}, err
	}
	response, err := p.do(ctx, http.MethodPost, "/prune", nil)
	if err != nil {
		return job.Usage{}, p.explain(ctx, err)
	}
	defer response.Body.Close()
	var usage job.Usage
	if err := json.NewDecoder(response.Body).Decode(&usage); err != nil {
		return usage, fmt.Errorf("reading what pruning freed: %w", err)
	}
	return usage, nil
}

// do sends a request to the process.
func (p *process) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://build"+path, body)
	if err != nil {
		return nil, fmt.Errorf("making a build request: %w", err)
	}
	response, err := p.client.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return nil, errors.New(strings.TrimSpace(string(text)))
	}
	return response, nil
}
