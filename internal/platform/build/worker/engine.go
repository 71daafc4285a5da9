//go:build linux

package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"

	ctdsnapshot "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/network/netproviders"
	bkworker "github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	"github.com/moby/buildkit/worker/runc"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	gateway "github.com/moby/buildkit/frontend/gateway/client"

	"gantry.dev/gantry/internal/platform/build/job"
)

// engine is BuildKit in this process, made when the first build needs it.
type engine struct {
	setup  job.Setup
	images *imageSource
	turn   chan struct{} // has an element while nobody builds

	mu     sync.Mutex // guards the fields below
	client *client.Client
	close  []func() error
}

func newEngine(_ context.Context, setup job.Setup) (*engine, error) {
	logrus.SetOutput(io.Discard) // what matters of it comes as a build's error
	e := &engine{setup: setup, images: newImageSource(), turn: make(chan struct{}, 1)}
	e.turn <- struct{}{}
	return e, nil
}

// wait waits until nobody builds; one that was given up may take a moment to end.
func (e *engine) wait(ctx context.Context) (release func(), err error) {
	select {
	case <-e.turn:
		return func() { e.turn <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close ends the engine.
func (e *engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	for i := len(e.close) - 1; i >= 0; i-- {
		errs = append(errs, e.close[i]())
	}
	e.close = nil
	return errors.Join(errs...)
}

// buildkit returns a client of the engine, which is started by the first call.
func (e *engine) buildkit(ctx context.Context) (*client.Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client != nil {
		return e.client, nil
	}
	sessions, err := session.NewManager()
	if err != nil {
		return nil, fmt.Errorf("starting the build engine: %w", err)
	}
	workers, err := e.newWorkers()
	if err != nil {
		return nil, fmt.Errorf("starting the build engine: %w", err)
	}
	controller, err := e.newController(sessions, workers)
	if err != nil {
		return nil, fmt.Errorf("starting the build engine: %w", err)
	}
	server := grpc.NewServer(grpc.WaitForHandlers(true), // and errors keep the place in the source that they are about
		grpc.UnaryInterceptor(grpcerrors.UnaryServerInterceptor), grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor))
	controller.Register(server)
	listener := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	e.client, err = client.New(ctx, "passthrough:///build", client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return listener.DialContext(ctx)
	}))
	if err != nil {
		return nil, fmt.Errorf("starting the build engine: %w", err)
	}
	e.close = append(e.close, controller.Close, func() error {
		server.Stop()
		return <-served
	}, e.client.Close)
	return e.client, nil
}

// newWorkers makes the one worker, which runs its steps with runc.
func (e *engine) newWorkers() (*bkworker.Controller, error) {
	root := filepath.Join(e.setup.Dir, "engine")
	dns := &oci.DNSConfig{Nameservers: e.setup.DNS}
	if len(e.setup.DNS) == 0 {
		dns = nil
	}
	opt, err := runc.NewWorkerOpt(root, snapshotter(root), false, oci.ProcessSandbox, nil, nil,
		netproviders.Opt{Mode: "host"}, // "host" is this process's own network namespace
		dns, e.setup.Runc, "", false, nil, "", e.setup.Cgroup, nil)
	if err != nil {
		return nil, err
	}
	opt.RegistryHosts = e.images.hosts
	opt.GCPolicy = []client.PruneInfo{{All: true, MaxUsedSpace: e.setup.CacheBytes}}
	// Not bound to a build's context: the worker outlives it.
	w, err := base.NewWorker(context.Background(), opt)
	if err != nil {
		return nil, err
	}
	workers := &bkworker.Controller{}
	return workers, workers.Add(w)
}

// snapshotter is overlayfs where the file system carries it, else whole copies.
func snapshotter(root string) runc.SnapshotterFactory {
	if overlayutils.Supported(filepath.Dir(root)) != nil {
		return runc.SnapshotterFactory{Name: "native", New: native.NewSnapshotter}
	}
	return runc.SnapshotterFactory{Name: "overlayfs", New: func(root string) (ctdsnapshot.Snapshotter, error) {
		return overlay.NewSnapshotter(root, overlay.AsynchronousRemove)
	}}
}

func (e *engine) newController(sessions *session.Manager, workers *bkworker.Controller) (*control.Controller, error) {
	root := filepath.Join(e.setup.Dir, "engine")
	w, err := workers.GetDefault()
	if err != nil {
		return nil, err
	}
	cache, err := bboltcachestorage.NewStore(filepath.Join(root, "cache.db"))
	if err != nil {
		return nil, err
	}
	history, err := boltutil.SafeOpen(filepath.Join(root, "history.db"), 0o600, nil)
	if err != nil {
		return nil, err
	}
	entries := int64(8)
	return control.NewController(control.Opt{
		SessionManager: sessions, WorkerController: workers,
		Frontends: map[string]frontend.Frontend{
			"dockerfile.v0": forwarder.NewGatewayForwarder(workers.Infos(), dockerfile.Build),
			"gateway.v0":    forwarder.NewGatewayForwarder(workers.Infos(), builtIn),
		},
		CacheManager: solver.NewCacheManager(context.Background(), "local", cache, bkworker.NewCacheResultStorage(workers)),
		HistoryDB:    history, HistoryConfig: &config.HistoryConfig{MaxEntries: &entries}, CacheStore: cache,
		LeaseManager: w.LeaseManager(), ContentStore: w.ContentStore(), GarbageCollect: w.GarbageCollect,
	})
}

// builtIn is what a line "# syntax=docker/dockerfile:1" gets: the frontend of this program. No
// other is fetched, because a frontend is a program that somebody else wrote.
func builtIn(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	source := c.BuildOpts().Opts["source"]
	name, _, _ := strings.Cut(strings.TrimPrefix(source, "docker.io/"), "@")
	name, _, _ = strings.Cut(name, ":")
	if name != "docker/dockerfile" && name != "docker/dockerfile-upstream" {
		return nil, fmt.Errorf("the syntax %q is not known: this builder has docker/dockerfile built in and loads no other", source)
	}
	return dockerfile.Build(ctx, c)
}
