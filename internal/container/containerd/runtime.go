package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	sandboxstore "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"gantry.dev/gantry/internal/container"
)

// maxStatePath leaves room for the longest socket name within the 107 bytes that the
// kernel allows for a socket's path.
const maxStatePath = 80

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("not found") // a sandbox, container or image is not there
	ErrStopped  = errors.New("the container runtime has stopped")
)

// Options configure a Runtime. Root, State, Runc and Shim are needed.
type Options struct {
	Root  string // absolute; images and layers: survives a reboot
	State string // absolute, at most 80 bytes; what runs: worthless after a reboot

	Runc     string // absolute paths of the unpacked programs
	Shim     string
	RuncShim string // stock shim for the runtime handler "runc"; "" refuses that handler

	Namespace   string       // containerd namespace; default "k8s.io"
	Snapshotter string       // "overlayfs" or "native"; default: overlayfs where it works
	Logger      *slog.Logger // default: discards
	// PlainHTTP says which registries are spoken to without TLS besides those on localhost.
	PlainHTTP func(host string) bool
	// Registry is the cluster's own registry; nil: there is none.
	Registry *Registry
	// CollectAfter is how long after a removal content that nothing uses is deleted;
	// default 5s.
	CollectAfter time.Duration
}

// Runtime is the containers of one node.
type Runtime struct {
	opts  Options
	log   *slog.Logger
	ready chan struct{}
	ended chan struct{} // closed when Run has returned
	queue *eventQueue

	// Set by Run before ready is closed.
	runCtx       context.Context //nolint:containedctx // ends what Run's callers start; set by Run alone
	db           *metadata.DB
	content      content.Store
	snapshotter  snapshots.Snapshotter
	images       images.Store
	containers   containers.Store
	sandboxStore sandboxstore.Store
	leases       leases.Manager
	imageCache   *imageCache

	collecting sync.RWMutex  // held for reading while something is made that is not referenced yet
	dirty      chan struct{} // asks for a collection

	background background // everything that Run waits for

	mu        sync.Mutex // guards the maps
	sandboxes map[string]*sandbox
	ctrs      map[string]*ctr
}

// New checks opts and returns a Runtime that does nothing yet; call Run.
func New(opts Options) (*Runtime, error) {
	opts.Namespace = cmp.Or(opts.Namespace, "k8s.io")
	opts.CollectAfter = cmp.Or(opts.CollectAfter, 5*time.Second)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	for name, path := range map[string]string{"Root": opts.Root, "State": opts.State, "Runc": opts.Runc, "Shim": opts.Shim} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("containerd: %s is %q, want an absolute path", name, path)
		}
	}
	if len(opts.State) > maxStatePath {
		return nil, fmt.Errorf("containerd: State %q has %d bytes, want at most %d: sockets are kept there", opts.State, len(opts.State), maxStatePath)
	}
	if opts.Root == opts.State {
		return nil, errors.New("containerd: Root and State are the same folder")
	}
	switch opts.Snapshotter {
	case "", snapshotterOverlay, snapshotterNative:
	default:
		return nil, fmt.Errorf("containerd: Snapshotter is %q, want %q or %q", opts.Snapshotter, snapshotterOverlay, snapshotterNative)
	}
	return &Runtime{
		opts:      opts,
		log:       opts.Logger,
		ready:     make(chan struct{}),
		ended:     make(chan struct{}),
		queue:     newEventQueue(),
		dirty:     make(chan struct{}, 1),
		sandboxes: map[string]*sandbox{},
		ctrs:      map[string]*ctr{},
	}, nil
}

// Ready is closed when Run has taken over what was running; every other method waits for
// it by itself.
func (r *Runtime) Ready() <-chan struct{} { return r.ready }

// Events says what happened to containers. Events of the same type for one container are
// merged while nobody reads. What was so before Run is not told: use List first.
func (r *Runtime) Events() <-chan container.Event { return r.queue.out }

// Run opens the stores, connects to what runs and serves until ctx ends. Containers keep
// running then. A Runtime can be run once.
func (r *Runtime) Run(ctx context.Context) error {
	defer close(r.ended)
	quietLibraryLogs(r.log)
	if err := r.makeFolders(); err != nil {
		return err
	}
	unlock, err := lockState(r.opts.State)
	if err != nil {
		return err
	}
	defer unlock()
	runCtx, cancel := context.WithCancel(namespaces.WithNamespace(ctx, r.opts.Namespace))
	defer cancel()
	r.runCtx = runCtx
	closeStores, err := r.openStores(runCtx)
	if err != nil {
		return err
	}
	defer closeStores()
	defer r.background.wait()
	defer cancel() // before waiting

	r.background.start(func() { r.queue.run(runCtx) })
	if r.opts.RuncShim != "" {
		if err := r.serveEvents(runCtx); err != nil {
			return err
		}
	}
	if err := r.recoverAll(runCtx); err != nil {
		return fmt.Errorf("take over running containers: %w", err)
	}
	r.background.start(func() { r.collectLoop(runCtx) })
	close(r.ready)
	<-runCtx.Done()
	r.disconnectShims()
	return nil
}

// await waits until Run is ready and returns ctx with the containerd namespace in it.
func (r *Runtime) await(ctx context.Context) (context.Context, error) {
	select {
	case <-r.ready:
	default:
		select {
		case <-r.ready:
		case <-r.ended:
			return nil, ErrStopped
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the container runtime: %w", ctx.Err())
		}
	}
	if r.runCtx.Err() != nil {
		return nil, ErrStopped
	}
	return namespaces.WithNamespace(ctx, r.opts.Namespace), nil
}

// makeFolders makes the folders below State and Root.
func (r *Runtime) makeFolders() error {
	// Root file systems below State are reached by users other than root.
	for path, mode := range map[string]os.FileMode{r.opts.Root: 0o711, r.opts.State: 0o711} {
		if err := os.MkdirAll(path, mode); err != nil {
			return fmt.Errorf("make container folders: %w", err)
		}
	}
	for _, name := range []string{bundlesDir, namespacesDir, processesDir, socketsDir, runcDir, execDir} {
		if err := os.MkdirAll(filepath.Join(r.opts.State, name), 0o711); err != nil {
			return fmt.Errorf("make container folders: %w", err)
		}
	}
	return nil
}

// The folders below State.
const (
	bundlesDir    = "b"
	namespacesDir = "ns"
	processesDir  = "p"
	socketsDir    = "s"
	runcDir       = "runc"
	execDir       = "x"
)

// bundle returns the folder of a container's bundle.
func (r *Runtime) bundle(id string) string { return filepath.Join(r.opts.State, bundlesDir, id) }

// background is a set of goroutines. Once wait was called no more are started.
type background struct {
	running sync.WaitGroup

	mu     sync.Mutex // guards the field below
	closed bool
}

// start runs fn, unless the set is closed.
func (b *background) start(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.running.Go(fn)
	}
}

// wait closes the set and waits for those that run.
func (b *background) wait() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.running.Wait()
}
