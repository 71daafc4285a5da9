package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	clog "github.com/containerd/log"
	"github.com/sirupsen/logrus"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// The snapshotters, by containerd's names.
const (
	snapshotterOverlay = "overlayfs"
	snapshotterNative  = "native"
)

// lockTimeout bounds the wait for another process that still has the folders open.
const lockTimeout = 5 * time.Second

// openStores opens containerd's stores and returns what closes them.
func (r *Runtime) openStores(ctx context.Context) (func(), error) {
	if r.opts.Snapshotter == "" {
		r.opts.Snapshotter = snapshotterOverlay
		if err := overlayutils.Supported(r.opts.Root); err != nil {
			r.log.Warn("overlayfs does not work here, copying layers instead", "root", r.opts.Root, "error", err)
			r.opts.Snapshotter = snapshotterNative
		}
	}
	blobs, err := local.NewStore(filepath.Join(r.opts.Root, "content"))
	if err != nil {
		return nil, fmt.Errorf("open content store: %w", err)
	}
	snapshotRoot := filepath.Join(r.opts.Root, r.opts.Snapshotter)
	var layers snapshots.Snapshotter
	if r.opts.Snapshotter == snapshotterOverlay {
		layers, err = overlay.NewSnapshotter(snapshotRoot, overlay.AsynchronousRemove)
	} else {
		layers, err = native.NewSnapshotter(snapshotRoot)
	}
	if err != nil {
		return nil, fmt.Errorf("open snapshotter: %w", err)
	}
	options := *bolt.DefaultOptions
	options.NoFreelistSync = true
	options.Timeout = lockTimeout
	file, err := bolt.Open(filepath.Join(r.opts.Root, "meta.db"), 0o600, &options)
	if err != nil {
		_ = layers.Close()
		return nil, fmt.Errorf("open container database: %w", err)
	}
	db := metadata.NewDB(file, blobs, map[string]snapshots.Snapshotter{r.opts.Snapshotter: layers})
	if err := db.Init(ctx); err != nil {
		_ = file.Close()
		_ = layers.Close()
		return nil, fmt.Errorf("prepare container database: %w", err)
	}
	r.db = db
	r.content = db.ContentStore()
	r.snapshotter = db.Snapshotter(r.opts.Snapshotter)
	r.images = metadata.NewImageStore(db)
	r.containers = metadata.NewContainerStore(db)
	r.sandboxStore = metadata.NewSandboxStore(db)
	r.leases = metadata.NewLeaseManager(db)
	r.imageCache = newImageCache()
	db.RegisterMutationCallback(func(dirty bool) {
		if dirty {
			r.requestCollection()
		}
	})
	return func() {
		if err := errors.Join(db.Close(), layers.Close()); err != nil {
			r.log.Warn("closing the container database", "error", err)
		}
	}, nil
}

// requestCollection asks the collector to run soon.
func (r *Runtime) requestCollection() {
	select {
	case r.dirty <- struct{}{}:
	default:
	}
}

// collectLoop deletes content and snapshots that nothing refers to, a while after the
// last removal.
func (r *Runtime) collectLoop(ctx context.Context) {
	timer := time.NewTimer(r.opts.CollectAfter) // once at the start: leftovers of a crash
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.dirty:
			timer.Reset(r.opts.CollectAfter)
		case <-timer.C:
			r.collect(ctx)
		}
	}
}

// collect runs one collection. What is being made at the moment and not referenced yet is
// kept by r.collecting and, for long pulls, by leases.
func (r *Runtime) collect(ctx context.Context) {
	r.collecting.Lock()
	_, err := r.db.GarbageCollect(ctx)
	r.collecting.Unlock()
	if err == nil {
		if cleaner, ok := r.snapshotter.(snapshots.Cleaner); ok {
			err = cleaner.Cleanup(ctx)
		}
	}
	if err != nil && ctx.Err() == nil {
		r.log.Warn("collecting unused image content", "error", err)
	}
}

// lockState makes sure that one process at a time uses a state folder.
func lockState(state string) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(state, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock container state: %w", err)
	}
	deadline := time.Now().Add(lockTimeout)
	for {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil // closing unlocks
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			_ = file.Close()
			return nil, fmt.Errorf("lock container state %s: another process uses it: %w", state, err)
		}
		time.Sleep(20 * time.Millisecond) // flock has no timeout of its own
	}
}

// quietLibraryLogs sends what containerd's libraries log to the logger: errors as
// warnings; warnings, and what ttrpc says of answers that come too late, for debugging.
func quietLibraryLogs(logger *slog.Logger) {
	clog.L.Logger.SetOutput(io.Discard)
	clog.L.Logger.SetLevel(logrus.WarnLevel)
	clog.L.Logger.ReplaceHooks(logrus.LevelHooks{})
	clog.L.Logger.AddHook(logHook{logger})
}

// logHook passes a logrus entry to slog.
type logHook struct{ logger *slog.Logger }

// Levels lists what is passed on.
func (logHook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

// Fire passes one entry on.
func (h logHook) Fire(entry *logrus.Entry) error {
	attrs := make([]any, 0, 2*len(entry.Data)+2)
	attrs = append(attrs, "message", entry.Message)
	for key, value := range entry.Data {
		attrs = append(attrs, key, value)
	}
	level := slog.LevelDebug
	if entry.Level <= logrus.ErrorLevel && !strings.HasPrefix(entry.Message, "ttrpc: ") {
		level = slog.LevelWarn
	}
	h.logger.Log(context.Background(), level, "containerd library", attrs...)
	return nil
}
