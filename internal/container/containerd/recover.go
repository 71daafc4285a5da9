package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/container/shim"
)

// syncTimeout bounds the wait for what a shim has to tell after a restart of this process.
const syncTimeout = 10 * time.Second

// recoverAll rebuilds what is in memory from the database and connects to the shims.
func (r *Runtime) recoverAll(ctx context.Context) error {
	if err := r.loadSandboxes(ctx); err != nil {
		return err
	}
	if err := r.loadContainers(ctx); err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(8)
	r.mu.Lock()
	sandboxes := maps.Clone(r.sandboxes) // not held below: each one needs the lock itself
	r.mu.Unlock()
	for id, sb := range sandboxes {
		group.Go(func() error {
			r.recoverSandbox(ctx, id, sb)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return r.sweepBundles()
}

// loadSandboxes reads the sandboxes' records.
func (r *Runtime) loadSandboxes(ctx context.Context) error {
	records, err := r.sandboxStore.List(ctx)
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	for _, rec := range records {
		ours, ok := rec.Extensions[sandboxRecord]
		if !ok {
			continue
		}
		sb := &sandbox{created: rec.CreatedAt} // not saved: after a reboot its cgroup is gone
		if err := json.Unmarshal(ours.GetValue(), &sb.spec); err != nil {
			return fmt.Errorf("read record of sandbox %s: %w", rec.ID, err)
		}
		r.sandboxes[rec.ID] = sb
	}
	return nil
}

// loadContainers reads the containers' records.
func (r *Runtime) loadContainers(ctx context.Context) error {
	records, err := r.containers.List(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, stored := range records {
		ours, ok := stored.Extensions[containerRecord]
		if !ok {
			continue
		}
		var rec record
		if err := json.Unmarshal(ours.GetValue(), &rec); err != nil {
			return fmt.Errorf("read record of container %s: %w", stored.ID, err)
		}
		if r.sandboxes[rec.Config.SandboxID] == nil {
			// Its sandbox's record went first when a removal was cut off; its bundle is swept.
			_ = r.containers.Delete(ctx, stored.ID)
			continue
		}
		c := newCtr(stored.ID, rec)
		c.user = readUser(r.bundle(stored.ID))
		if data, err := os.ReadFile(filepath.Join(r.bundle(stored.ID), startedFile)); err == nil {
			if at, err := time.Parse(time.RFC3339Nano, string(data)); err == nil {
				c.started = at
			}
		}
		r.ctrs[stored.ID] = c
	}
	return nil
}

// recoverSandbox connects to the shim of a sandbox and works out what its containers do.
func (r *Runtime) recoverSandbox(ctx context.Context, id string, sb *sandbox) {
	containers := r.containersOf(id)
	if sb.spec.Runtime == handlerRunc {
		for _, c := range containers {
			r.recoverContainer(ctx, c)
		}
		return
	}
	proc, err := readShim(r.opts.State, id)
	if err != nil || !proc.alive() {
		for _, c := range containers {
			r.recoverDead(c)
		}
		if err := releasePID(r.opts.State, id); err != nil {
			r.log.Warn("releasing the PID namespace of a dead shim", "sandbox", id, "error", err)
		}
		return
	}
	conn, err := r.connectShim(ctx, id, proc)
	if err != nil {
		r.log.Error("a pod's shim does not answer, the pod is ended", "sandbox", id, "error", err)
		_ = proc.signal(unix.SIGKILL) // gone meanwhile is fine
		proc.waitEnd(shimEndTimeout)
		for _, c := range containers {
			r.recoverDead(c)
		}
		return
	}
	sb.mu.Lock()
	sb.shim = conn
	sb.mu.Unlock()
	for _, c := range containers {
		r.recoverContainer(ctx, c)
	}
	// After that, so that an end told here finds its container running.
	synced := make(chan struct{})
	r.background.start(func() { r.watchShim(sb, id, conn, synced) })
	select {
	case <-synced:
	case <-ctx.Done():
	case <-time.After(syncTimeout):
		r.log.Error("a pod's shim does not tell what happened", "sandbox", id)
	}
}

// recoverContainer asks the shim about one container.
func (r *Runtime) recoverContainer(ctx context.Context, c *ctr) {
	conn, err := r.taskConn(ctx, c)
	if err != nil {
		r.recoverDead(c)
		return
	}
	callCtx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	state, err := conn.tasks.State(callCtx, &task.StateRequest{ID: c.id})
	if err != nil {
		r.recoverDead(c)
		return
	}
	switch state.Status {
	case tasktypes.Status_CREATED:
		// Killed between create and start: made anew by the next Start.
		_, _ = conn.tasks.Kill(callCtx, &task.KillRequest{ID: c.id, Signal: uint32(unix.SIGKILL), All: true})
		_, _ = conn.tasks.Delete(callCtx, &task.DeleteRequest{ID: c.id})
		r.forceDelete(c.id)
	case tasktypes.Status_STOPPED:
		c.setRunning(int(state.Pid), c.startedOr(state.ExitedAt.AsTime()))
		if c.rec.Handler == handlerRunc {
			r.reopenStock(c, conn)
		}
		// The shim tells the rest, with what it knows of memory.
	default:
		c.setRunning(int(state.Pid), c.startedOr(c.created))
		r.endOldExecs(callCtx, c, conn)
		if c.rec.Handler == handlerRunc {
			r.reopenStock(c, conn)
		}
	}
}

// startedOr returns the recorded time of the start, or else another.
func (c *ctr) startedOr(other time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.started.IsZero() {
		return other
	}
	return c.started
}

// recoverDead works out how a container ended whose shim is gone. One that was never
// started stays created.
func (r *Runtime) recoverDead(c *ctr) {
	r.forceDelete(c.id)
	exit, err := shim.ReadExit(r.bundle(c.id))
	switch {
	case err == nil:
		c.setExited(exit, "")
	case c.startedOr(time.Time{}).IsZero() && c.rec.BootID == bootID():
	default:
		exit := shim.Exit{Code: exitUnknown, At: time.Now()}
		if err := shim.WriteExit(r.bundle(c.id), exit); err != nil && !errors.Is(err, os.ErrNotExist) {
			r.log.Warn("recording a container's end", "container", c.id, "error", err)
		}
		c.setExited(exit, reasonUnknown)
	}
}

// endOldExecs ends processes that a former gantry was executing: their callers are gone.
func (r *Runtime) endOldExecs(ctx context.Context, c *ctr, conn *shimConn) {
	entries, err := os.ReadDir(filepath.Join(r.opts.State, execDir, c.id))
	if err != nil {
		return
	}
	var ending sync.WaitGroup
	for _, entry := range entries {
		ending.Go(func() { r.endExec(ctx, c, conn, entry.Name()) })
	}
	ending.Wait()
}

// sweepBundles removes bundles without a record, left by an interrupted Create or Remove.
func (r *Runtime) sweepBundles() error {
	entries, err := os.ReadDir(filepath.Join(r.opts.State, bundlesDir))
	if err != nil {
		return fmt.Errorf("list bundles: %w", err)
	}
	for _, entry := range entries {
		if r.lookup(entry.Name()) != nil {
			continue
		}
		r.forceDelete(entry.Name())
		if err := r.removeBundle(entry.Name()); err != nil {
			r.log.Warn("removing a leftover bundle", "container", entry.Name(), "error", err)
		}
	}
	return r.sweepSandboxes()
}

// sweepSandboxes ends shims and namespaces without a record.
func (r *Runtime) sweepSandboxes() error {
	for _, folder := range []string{processesDir, namespacesDir} {
		entries, err := os.ReadDir(filepath.Join(r.opts.State, folder))
		if err != nil {
			return fmt.Errorf("list sandboxes on disk: %w", err)
		}
		for _, entry := range entries {
			id := entry.Name()
			if r.sandboxes[id] != nil {
				continue
			}
			if err := endLeftover(r.opts.State, id); err != nil {
				r.log.Warn("removing a leftover sandbox", "sandbox", id, "error", err)
			}
		}
	}
	return nil
}

// endLeftover kills the shim of a sandbox, if one runs, and removes its namespaces.
func endLeftover(state, id string) error {
	if proc, err := readShim(state, id); err == nil && proc.alive() {
		_ = proc.signal(unix.SIGKILL) // gone meanwhile is fine
		if !proc.waitEnd(shimEndTimeout) {
			return fmt.Errorf("shim %d does not end", proc.PID)
		}
	}
	if err := releasePID(state, id); err != nil {
		return err
	}
	if err := removeShimFiles(state, id); err != nil {
		return err
	}
	return removeNamespaces(state, id)
}
