package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	sandboxstore "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/shim"
)

// The runtime handlers.
const (
	handlerShim = ""
	handlerRunc = "runc"
)

// sandboxRecord is the extension of containerd's sandbox record that holds ours.
const sandboxRecord = "gantry.dev/sandbox"

// sandbox is one sandbox in memory.
type sandbox struct {
	op sync.Mutex // one change at a time

	mu      sync.Mutex // guards the fields below
	spec    container.Sandbox
	created time.Time
	saved   bool      // record and cgroup are as spec says
	shim    *shimConn // nil while none runs
	removed bool
}

func (s *sandbox) snapshot() (container.Sandbox, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spec, s.created
}

func (s *sandbox) conn() *shimConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shim
}

// EnsureSandbox makes a sandbox ready for containers: its record, namespaces, cgroup and
// shim. For one that is there it makes what is missing and takes over changed settings.
func (r *Runtime) EnsureSandbox(ctx context.Context, spec container.Sandbox) error {
	ctx, err := r.await(ctx)
	if err != nil {
		return err
	}
	if spec.ID == "" {
		return errors.New("make sandbox: it has no ID")
	}
	if spec.Runtime != handlerShim && (spec.Runtime != handlerRunc || r.opts.RuncShim == "") {
		return fmt.Errorf("failed to get sandbox runtime: no runtime for %q is configured", spec.Runtime)
	}
	r.mu.Lock()
	sb := r.sandboxes[spec.ID]
	if sb == nil {
		sb = &sandbox{created: time.Now()}
		r.sandboxes[spec.ID] = sb
	}
	r.mu.Unlock()
	sb.op.Lock()
	defer sb.op.Unlock()
	sb.mu.Lock()
	removed, known := sb.removed, sb.saved && reflect.DeepEqual(sb.spec, spec)
	created, conn := sb.created, sb.shim
	if !removed {
		sb.spec, sb.saved = spec, known // also of one that is made in part, to be removed
	}
	sb.mu.Unlock()
	if removed {
		return fmt.Errorf("make sandbox %s: it is being removed", spec.ID)
	}
	if err := writeCgroupRecord(r.opts.State, spec); err != nil {
		return fmt.Errorf("make sandbox %s: %w", spec.ID, err)
	}
	var group errgroup.Group
	if !known {
		group.Go(func() error { return r.saveSandbox(ctx, spec, created) })
		group.Go(func() error { return ensureCgroup(spec.CgroupPath, spec.Resources) })
	}
	group.Go(func() error { return ensureNamespaces(r.opts.State, spec) })
	if conn == nil && spec.Runtime == handlerShim {
		group.Go(func() error {
			conn, err := r.startShim(ctx, spec.ID)
			if err != nil {
				return err
			}
			r.adoptShim(sb, spec.ID, conn)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("make sandbox %s: %w", spec.ID, err)
	}
	sb.mu.Lock()
	sb.saved = true
	sb.mu.Unlock()
	if spec.ShareProcs && !spec.HostPID {
		if err := r.ensurePIDNamespace(spec.ID); err != nil {
			return fmt.Errorf("make sandbox %s: %w", spec.ID, err)
		}
	}
	return nil
}

// cgroupFile is the file in a sandbox's process folder that names its cgroup, for StopAll.
const cgroupFile = "cgroup.json"

// writeCgroupRecord writes down a sandbox's cgroup where StopAll finds it.
func writeCgroupRecord(state string, spec container.Sandbox) error {
	dir := processDir(state, spec.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return writeJSON(filepath.Join(dir, cgroupFile), spec.CgroupPath)
}

// saveSandbox writes the sandbox's record.
func (r *Runtime) saveSandbox(ctx context.Context, spec container.Sandbox, created time.Time) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	record := sandboxstore.Sandbox{
		ID:        spec.ID,
		Labels:    nil, // ours may be longer than containerd allows; they are in the extension
		Runtime:   sandboxstore.RuntimeOpts{Name: runtimeName(spec.Runtime)},
		Sandboxer: "gantry",
		CreatedAt: created,
		UpdatedAt: time.Now(),
		Extensions: map[string]anyValue{
			sandboxRecord: &anypb.Any{TypeUrl: sandboxRecord, Value: data},
		},
	}
	if _, err := r.sandboxStore.Create(ctx, record); err != nil {
		if !errdefs.IsAlreadyExists(err) {
			return fmt.Errorf("save sandbox: %w", err)
		}
		if _, err := r.sandboxStore.Update(ctx, record, "extensions"); err != nil {
			return fmt.Errorf("save sandbox: %w", err)
		}
	}
	return nil
}

// runtimeName is containerd's name for a runtime handler.
func runtimeName(handler string) string {
	if handler == handlerRunc {
		return "io.containerd.runc.v2"
	}
	return "dev.gantry.shim.v1"
}

// adoptShim keeps the connection to a sandbox's shim and watches it.
func (r *Runtime) adoptShim(sb *sandbox, id string, conn *shimConn) {
	sb.mu.Lock()
	sb.shim = conn
	sb.mu.Unlock()
	r.background.start(func() { r.watchShim(sb, id, conn, nil) })
}

// watchShim follows the events of a shim until the shim is dead or Run ends. synced, if
// not nil, is closed when all that was so before has been taken in, or cannot be.
func (r *Runtime) watchShim(sb *sandbox, id string, conn *shimConn, synced chan struct{}) {
	finishSync := sync.OnceFunc(func() {
		if synced != nil {
			close(synced)
		}
	})
	defer finishSync()
	for {
		err := shim.Events(r.runCtx, conn.stream, func(event shim.Event) {
			if event.Type == shim.EventSynced {
				finishSync()
				return
			}
			r.shimEvent(event)
		})
		if err == nil { // Run ends
			return
		}
		// Cut off because it was slow, or dead: a dead one is gone within moments.
		if conn.proc.waitEnd(100 * time.Millisecond) {
			break
		}
	}
	r.shimDied(sb, id, conn)
}

// shimEvent takes in one event.
func (r *Runtime) shimEvent(event shim.Event) {
	c := r.lookup(event.Container)
	if c == nil {
		return
	}
	switch event.Type {
	case shim.EventOOM:
		if c.setOOM() {
			r.queue.add(container.Event{SandboxID: c.cfg.SandboxID, ContainerID: c.id, Type: container.EventOOM})
		}
	case shim.EventExited:
		r.exited(c, *event.Exit)
	}
}

// exited records that a container has ended.
func (r *Runtime) exited(c *ctr, exit shim.Exit) {
	if c.setExited(exit, "") {
		r.queue.add(container.Event{SandboxID: c.cfg.SandboxID, ContainerID: c.id, Type: container.EventExited})
	}
}

// shimDied cleans up after a shim that ended: its containers cannot be watched any more,
// so they are ended too. After RemoveSandbox there are none.
func (r *Runtime) shimDied(sb *sandbox, id string, conn *shimConn) {
	_ = conn.client.Close() // the other end is gone
	sb.mu.Lock()
	if sb.shim == conn {
		sb.shim = nil
	}
	removed := sb.removed
	sb.mu.Unlock()
	defer close(conn.gone)
	if removed {
		return
	}
	r.log.Error("a pod's shim died, its containers are ended", "sandbox", id, "message", lastMessage(processDir(r.opts.State, id)))
	for _, c := range r.containersOf(id) {
		r.endWithoutShim(c)
	}
	if err := releasePID(r.opts.State, id); err != nil {
		r.log.Warn("releasing the PID namespace of a dead shim", "sandbox", id, "error", err)
	}
}

// endWithoutShim ends what is left of a container whose shim is dead and records how it
// ended as far as that is known.
func (r *Runtime) endWithoutShim(c *ctr) {
	state := c.state()
	r.forceDelete(c.id)
	if state != container.StateRunning {
		return
	}
	exit, err := shim.ReadExit(r.bundle(c.id))
	if err == nil {
		r.exited(c, exit)
		return
	}
	unknown := shim.Exit{Code: exitUnknown, At: time.Now()}
	if err := shim.WriteExit(r.bundle(c.id), unknown); err != nil {
		r.log.Warn("recording a container's end", "container", c.id, "error", err)
	}
	if c.setExited(unknown, reasonUnknown) {
		r.queue.add(container.Event{SandboxID: c.cfg.SandboxID, ContainerID: c.id, Type: container.EventExited})
	}
}

// RemoveSandbox ends and removes everything of a sandbox. Removing what is not there is
// no error.
func (r *Runtime) RemoveSandbox(ctx context.Context, id string) error {
	ctx, err := r.await(ctx)
	if err != nil {
		return err
	}
	r.mu.Lock()
	sb := r.sandboxes[id]
	r.mu.Unlock()
	if sb == nil {
		return nil
	}
	sb.op.Lock()
	defer sb.op.Unlock()
	sb.mu.Lock()
	if sb.removed {
		sb.mu.Unlock()
		return nil
	}
	sb.removed = true // no shim or container is made any more
	spec, conn := sb.spec, sb.shim
	sb.mu.Unlock()
	if err := r.tearDown(ctx, id, spec, conn); err != nil {
		sb.mu.Lock()
		sb.removed = false // to be tried again
		sb.mu.Unlock()
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	r.mu.Lock()
	delete(r.sandboxes, id)
	r.mu.Unlock()
	return nil
}

// tearDown removes containers, shim, namespaces, cgroup and record of a sandbox.
func (r *Runtime) tearDown(ctx context.Context, id string, spec container.Sandbox, conn *shimConn) error {
	var group errgroup.Group
	for _, c := range r.containersOf(id) {
		group.Go(func() error { return r.removeContainer(ctx, c) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if conn != nil {
		r.endShim(ctx, conn)
	}
	if err := releasePID(r.opts.State, id); err != nil {
		return err
	}
	if err := removeShimFiles(r.opts.State, id); err != nil {
		return err
	}
	if err := removeNamespaces(r.opts.State, id); err != nil {
		return err
	}
	if err := removeCgroup(spec.CgroupPath); err != nil {
		return err
	}
	if err := r.sandboxStore.Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete record: %w", err)
	}
	return nil
}

// endShim tells a shim without containers to end, and kills one that does not.
func (r *Runtime) endShim(ctx context.Context, conn *shimConn) {
	callCtx, cancel := context.WithTimeout(ctx, shimEndTimeout)
	defer cancel()
	// It may hang up before it has answered: what counts is that it ends.
	_, _ = conn.tasks.Shutdown(callCtx, &taskAPI.ShutdownRequest{Now: true})
	if !conn.proc.waitEnd(shimEndTimeout) {
		r.log.Warn("a shim did not end and is killed", "pid", conn.proc.PID)
		_ = conn.proc.signal(unix.SIGKILL) // gone meanwhile is fine
		conn.proc.waitEnd(shimEndTimeout)
	}
	select {
	case <-conn.gone:
	case <-r.runCtx.Done():
	case <-time.After(shimEndTimeout):
	}
}

// disconnectShims closes the connections and leaves the shims running.
func (r *Runtime) disconnectShims() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, sb := range r.sandboxes {
		if conn := sb.conn(); conn != nil {
			_ = conn.client.Close() // only our end
		}
	}
}

// List returns all sandboxes with their containers, oldest first.
func (r *Runtime) List(ctx context.Context) ([]container.SandboxStatus, error) {
	if _, err := r.await(ctx); err != nil {
		return nil, err
	}
	r.mu.Lock()
	sandboxes := slices.Collect(maps.Values(r.sandboxes))
	r.mu.Unlock()
	list := make([]container.SandboxStatus, 0, len(sandboxes))
	for _, sb := range sandboxes {
		spec, created := sb.snapshot()
		if spec.ID == "" { // being made for the first time
			continue
		}
		list = append(list, r.sandboxStatus(spec, created))
	}
	slices.SortFunc(list, func(a, b container.SandboxStatus) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return list, nil
}

// Sandbox returns one sandbox, or ErrNotFound.
func (r *Runtime) Sandbox(ctx context.Context, id string) (container.SandboxStatus, error) {
	if _, err := r.await(ctx); err != nil {
		return container.SandboxStatus{}, err
	}
	r.mu.Lock()
	sb := r.sandboxes[id]
	r.mu.Unlock()
	if sb == nil {
		return container.SandboxStatus{}, fmt.Errorf("sandbox %s: %w", id, ErrNotFound)
	}
	spec, created := sb.snapshot()
	if spec.ID == "" {
		return container.SandboxStatus{}, fmt.Errorf("sandbox %s: %w", id, ErrNotFound)
	}
	return r.sandboxStatus(spec, created), nil
}

func (r *Runtime) sandboxStatus(spec container.Sandbox, created time.Time) container.SandboxStatus {
	status := container.SandboxStatus{Sandbox: spec, CreatedAt: created}
	for _, c := range r.containersOf(spec.ID) {
		status.Containers = append(status.Containers, c.status())
	}
	return status
}

// containersOf returns the containers of a sandbox, oldest first.
func (r *Runtime) containersOf(sandboxID string) []*ctr {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []*ctr
	for _, c := range r.ctrs {
		if c.cfg.SandboxID == sandboxID {
			found = append(found, c)
		}
	}
	slices.SortFunc(found, func(a, b *ctr) int { return a.created.Compare(b.created) })
	return found
}
