package containerd

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/shim"
)

// anyValue is containerd's envelope for typed values.
type anyValue = typeurl.Any

// containerRecord is the extension of containerd's container record that holds ours.
const containerRecord = "gantry.dev/container"

// startedFile is the file in a bundle whose content is the time of the start.
const startedFile = "started"

// killWait bounds the wait for a container's end after SIGKILL, and for its log.
const killWait = 10 * time.Second

// createWait bounds the making of a container's process by the shim, which takes long only on a
// machine that is very busy.
const createWait = 2 * time.Minute

// Create makes a container in a sandbox that is there and returns its ID. Its file system
// and configuration are ready then; nothing runs.
func (r *Runtime) Create(ctx context.Context, cfg container.Config) (string, error) {
	ctx, err := r.await(ctx)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	sb := r.sandboxes[cfg.SandboxID]
	r.mu.Unlock()
	if sb == nil {
		return "", fmt.Errorf("create container %s: sandbox %s: %w", cfg.Name, cfg.SandboxID, ErrNotFound)
	}
	spec, _ := sb.snapshot()
	img, err := r.resolveImage(ctx, cfg.Image)
	if err != nil {
		return "", fmt.Errorf("create container %s: %w", cfg.Name, err)
	}
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails
	id := hex.EncodeToString(raw[:])
	r.collecting.RLock()
	defer r.collecting.RUnlock()
	c, err := r.create(ctx, id, spec, cfg, img)
	if err != nil {
		_ = os.RemoveAll(r.bundle(id))
		_ = r.snapshotter.Remove(ctx, id) // not referenced: otherwise collected later
		return "", fmt.Errorf("create container %s: %w", cfg.Name, err)
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.removed {
		_ = os.RemoveAll(r.bundle(id))
		_ = r.containers.Delete(ctx, id)
		_ = r.snapshotter.Remove(ctx, id)
		return "", fmt.Errorf("create container %s: sandbox %s is being removed", cfg.Name, cfg.SandboxID)
	}
	r.mu.Lock()
	r.ctrs[id] = c
	r.mu.Unlock()
	return id, nil
}

// create does the work of Create.
func (r *Runtime) create(ctx context.Context, id string, sb container.Sandbox, cfg container.Config, img *imageInfo) (*ctr, error) {
	rec := record{
		Config:     cfg,
		ImageID:    img.id,
		ImageRef:   cmp.Or(img.digestRef(cfg.ImageRef), img.id),
		StopSignal: cmp.Or(cfg.StopSignal, img.config.Config.StopSignal, "SIGTERM"),
		PrivatePID: !sb.HostPID && !sb.ShareProcs,
		Handler:    sb.Runtime,
		BootID:     bootID(),
		CreatedAt:  time.Now(),
	}
	if sb.CgroupPath != "" {
		rec.Cgroup = filepath.Join(sb.CgroupPath, id)
	} else {
		rec.Cgroup = filepath.Join("/gantry", id)
	}
	if _, err := parseSignal(rec.StopSignal); err != nil {
		return nil, err
	}
	bundle := r.bundle(id)
	for _, dir := range []string{bundle, filepath.Join(bundle, "rootfs"), filepath.Join(bundle, "work")} {
		if err := os.Mkdir(dir, 0o711); err != nil {
			return nil, fmt.Errorf("make bundle: %w", err)
		}
	}
	mounts, err := r.snapshotter.Prepare(ctx, id, img.chainID)
	if errdefs.IsNotFound(err) {
		// The image was unpacked for another snapshotter.
		if err := r.unpackTree(ctx, img.target); err != nil {
			return nil, fmt.Errorf("unpack image: %w", err)
		}
		mounts, err = r.snapshotter.Prepare(ctx, id, img.chainID)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare root file system: %w", err)
	}
	var group errgroup.Group
	var runsAs *container.User
	group.Go(func() error {
		accounts, err := r.accounts(img, mounts, filepath.Join(bundle, "rootfs"))
		if err != nil {
			return err
		}
		spec, err := buildSpec(specInput{
			state: r.opts.State, sandbox: sb, config: cfg, image: img.config, accounts: accounts, cgroup: rec.Cgroup,
		})
		if err != nil {
			return err
		}
		runsAs = processUser(spec.Process.User)
		data, err := json.Marshal(spec)
		if err != nil {
			return fmt.Errorf("encode OCI spec: %w", err)
		}
		return os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600)
	})
	group.Go(func() error { return r.saveContainer(ctx, id, rec, img) })
	if err := group.Wait(); err != nil {
		_ = r.containers.Delete(ctx, id) // the caller removes the rest
		return nil, err
	}
	r.imageUsed(ctx, img)
	c := newCtr(id, rec)
	c.user = runsAs
	return c, nil
}

// saveContainer writes the container's record, which keeps its snapshot from collection.
func (r *Runtime) saveContainer(ctx context.Context, id string, rec record, img *imageInfo) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	ours := &anypb.Any{TypeUrl: containerRecord, Value: data}
	_, err = r.containers.Create(ctx, containers.Container{
		ID:          id,
		Image:       img.name,
		Runtime:     containers.RuntimeInfo{Name: runtimeName(rec.Handler)},
		Spec:        &anypb.Any{TypeUrl: "gantry.dev/bundle"}, // the spec is in the bundle
		SnapshotKey: id,
		Snapshotter: r.opts.Snapshotter,
		SandboxID:   rec.Config.SandboxID,
		Extensions:  map[string]anyValue{containerRecord: ours},
	})
	if err != nil {
		return fmt.Errorf("save container: %w", err)
	}
	return nil
}

// lookup returns a container, or nil.
func (r *Runtime) lookup(id string) *ctr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ctrs[id]
}

// find waits for readiness and returns a container and its sandbox's shim, which is nil
// where none runs.
func (r *Runtime) find(ctx context.Context, id string) (context.Context, *ctr, error) {
	ctx, err := r.await(ctx)
	if err != nil {
		return nil, nil, err
	}
	c := r.lookup(id)
	if c == nil {
		return nil, nil, fmt.Errorf("container %s: %w", id, ErrNotFound)
	}
	return ctx, c, nil
}

// Start runs a created container. It returns when its process has been executed.
func (r *Runtime) Start(ctx context.Context, id string) error {
	ctx, c, err := r.find(ctx, id)
	if err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	c.op.Lock()
	defer c.op.Unlock()
	if state := c.state(); state != container.StateCreated {
		return fmt.Errorf("start container %s: it is %s", c.cfg.Name, state)
	}
	if err := r.start(ctx, c); err != nil {
		return fmt.Errorf("start container %s: %w", c.cfg.Name, err)
	}
	r.queue.add(container.Event{SandboxID: c.cfg.SandboxID, ContainerID: id, Type: container.EventStarted})
	return nil
}

// start does the work of Start. c.op is held.
func (r *Runtime) start(ctx context.Context, c *ctr) error {
	mounts, err := r.snapshotter.Mounts(ctx, c.id)
	if err != nil {
		return fmt.Errorf("mount root file system: %w", err)
	}
	conn, err := r.taskConn(ctx, c)
	if err != nil {
		return err
	}
	options, err := typeurl.MarshalAnyToProto(&runcoptions.Options{
		BinaryName:   r.opts.Runc,
		Root:         filepath.Join(r.opts.State, runcDir),
		NoNewKeyring: true,
	})
	if err != nil {
		return fmt.Errorf("encode runc options: %w", err)
	}
	request := &task.CreateTaskRequest{
		ID:       c.id,
		Bundle:   r.bundle(c.id),
		Rootfs:   mountsToProto(mounts),
		Terminal: c.cfg.TTY,
		Options:  options,
	}
	if err := connectStreams(c, request); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// Not cut off with the caller: the shim would go on by itself, and make the container's
	// mount points in a root file system that is unmounted meanwhile.
	callCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), createWait)
	defer cancel()
	created, err := conn.tasks.Create(callCtx, request)
	if err != nil {
		r.forceDelete(c.id)
		return fmt.Errorf("create process: %w", runcError(err))
	}
	if _, err := conn.tasks.Start(callCtx, &task.StartRequest{ID: c.id}); err != nil {
		err = runcError(err)
		cleanCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWait)
		defer cancel()
		_, _ = conn.tasks.Kill(cleanCtx, &task.KillRequest{ID: c.id, Signal: uint32(unix.SIGKILL), All: true})
		_, _ = conn.tasks.Delete(cleanCtx, &task.DeleteRequest{ID: c.id})
		r.forceDelete(c.id)
		return err
	}
	at := time.Now()
	if err := os.WriteFile(filepath.Join(r.bundle(c.id), startedFile), []byte(at.Format(time.RFC3339Nano)), 0o600); err != nil {
		r.log.Warn("recording a container's start", "container", c.id, "error", err)
	}
	c.setRunning(int(created.Pid), at)
	r.watchStock(c, conn)
	return nil
}

// connectStreams says in request where the container's output goes.
func connectStreams(c *ctr, request *task.CreateTaskRequest) error {
	if c.cfg.LogPath != "" {
		if err := os.MkdirAll(filepath.Dir(c.cfg.LogPath), 0o755); err != nil {
			return fmt.Errorf("make log folder: %w", err)
		}
	}
	request.Stdout = shim.LogURI(c.log())
	return nil
}

// log says where the output of a container goes.
func (c *ctr) log() shim.Log {
	return shim.Log{
		Path:      c.cfg.LogPath,
		MaxBytes:  c.cfg.LogMaxSize,
		MaxFiles:  c.cfg.LogMaxFile,
		Stdin:     c.cfg.Stdin,
		StdinOnce: c.cfg.StdinOnce,
	}
}

// taskConn returns the connection to the shim that has, or shall have, a container.
func (r *Runtime) taskConn(ctx context.Context, c *ctr) (*shimConn, error) {
	if c.rec.Handler == handlerRunc {
		return r.stockShim(ctx, c)
	}
	r.mu.Lock()
	sb := r.sandboxes[c.cfg.SandboxID]
	r.mu.Unlock()
	if sb == nil {
		return nil, fmt.Errorf("sandbox %s: %w", c.cfg.SandboxID, ErrNotFound)
	}
	conn := sb.conn()
	if conn == nil {
		return nil, fmt.Errorf("sandbox %s has no shim; it has to be ensured again", c.cfg.SandboxID)
	}
	return conn, nil
}

// Stop ends a container: with its stop signal, and when it has not ended after grace with
// SIGKILL. It returns when the container has ended. A created container is not changed.
func (r *Runtime) Stop(ctx context.Context, id string, grace time.Duration) error {
	ctx, c, err := r.find(ctx, id)
	if err != nil {
		return fmt.Errorf("stop container: %w", err)
	}
	if c.state() != container.StateRunning {
		return nil
	}
	if grace > 0 {
		signal, err := parseSignal(c.rec.StopSignal)
		if err != nil {
			signal = unix.SIGTERM // was checked at creation
		}
		if err := r.kill(ctx, c, signal, false); err != nil {
			return fmt.Errorf("stop container %s: %w", c.cfg.Name, err)
		}
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-c.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("stop container %s: %w", c.cfg.Name, ctx.Err())
		case <-timer.C:
		}
	}
	if err := r.killHard(ctx, c); err != nil {
		return fmt.Errorf("stop container %s: %w", c.cfg.Name, err)
	}
	return nil
}

// killHard ends a container with SIGKILL and waits for its end.
func (r *Runtime) killHard(ctx context.Context, c *ctr) error {
	if err := r.kill(ctx, c, unix.SIGKILL, !c.rec.PrivatePID); err != nil {
		return err
	}
	timer := time.NewTimer(killWait)
	defer timer.Stop()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return errors.New("its processes do not end after SIGKILL")
	}
}

// kill sends a signal to a container's process, or to all of them. That it has ended
// meanwhile is no error.
func (r *Runtime) kill(ctx context.Context, c *ctr, signal unix.Signal, all bool) error {
	conn, err := r.taskConn(ctx, c)
	if err != nil {
		if c.state() == container.StateExited {
			return nil
		}
		return err
	}
	_, err = conn.tasks.Kill(ctx, &task.KillRequest{ID: c.id, Signal: uint32(signal), All: all})
	if err != nil && !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		return fmt.Errorf("send %s: %w", unix.SignalName(signal), errgrpc.ToNative(err))
	}
	return nil
}

// Remove ends a container if need be and removes everything of it but its log. Removing
// what is not there is no error.
func (r *Runtime) Remove(ctx context.Context, id string) error {
	ctx, err := r.await(ctx)
	if err != nil {
		return err
	}
	if c := r.lookup(id); c != nil {
		return r.removeContainer(ctx, c)
	}
	return nil
}

// removeContainer does the work of Remove.
func (r *Runtime) removeContainer(ctx context.Context, c *ctr) error {
	c.op.Lock()
	defer c.op.Unlock()
	if r.lookup(c.id) == nil {
		return nil
	}
	if c.state() == container.StateRunning {
		if err := r.killHard(ctx, c); err != nil {
			return fmt.Errorf("remove container %s: %w", c.cfg.Name, err)
		}
	}
	if c.state() == container.StateExited {
		r.deleteTask(ctx, c)
	}
	if err := r.removeBundle(c.id); err != nil {
		return fmt.Errorf("remove container %s: %w", c.cfg.Name, err)
	}
	if err := removeCgroup(c.rec.Cgroup); err != nil {
		return fmt.Errorf("remove container %s: %w", c.cfg.Name, err)
	}
	if err := r.snapshotter.Remove(ctx, c.id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove container %s: its file system: %w", c.cfg.Name, err)
	}
	if err := r.containers.Delete(ctx, c.id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove container %s: its record: %w", c.cfg.Name, err)
	}
	r.mu.Lock()
	delete(r.ctrs, c.id)
	r.mu.Unlock()
	return nil
}

// deleteTask makes the shim forget a container that has ended. Where that does not work
// the container is deleted behind the shim's back.
func (r *Runtime) deleteTask(ctx context.Context, c *ctr) {
	conn, err := r.taskConn(ctx, c)
	if err == nil {
		// Longer than the ten seconds that the shim waits for output. Not cut off with the
		// caller: half deleted, the shim would keep the container and not end.
		callCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*killWait)
		defer cancel()
		_, err = conn.tasks.Delete(callCtx, &task.DeleteRequest{ID: c.id})
		err = errgrpc.ToNative(err)
	}
	if err != nil {
		r.forceDelete(c.id)
	}
	if c.rec.Handler == handlerRunc {
		r.endStockShim(ctx, c)
	}
}

// forceDelete makes runc kill and forget a container, and unmounts its root file system.
// What runc does not know it leaves alone.
func (r *Runtime) forceDelete(id string) {
	root := filepath.Join(r.opts.State, runcDir, r.opts.Namespace)
	if _, err := os.Stat(filepath.Join(root, id)); err == nil {
		out, err := exec.Command(r.opts.Runc, "--root", root, "delete", "--force", id).CombinedOutput()
		if err != nil {
			r.log.Warn("deleting a container by force", "container", id, "error", err, "output", string(out))
		}
	}
	if err := unmountAll(filepath.Join(r.bundle(id), "rootfs")); err != nil {
		r.log.Warn("unmounting a root file system", "container", id, "error", err)
	}
}

// removeBundle unmounts the root file system and removes the bundle.
func (r *Runtime) removeBundle(id string) error {
	bundle := r.bundle(id)
	rootfs := filepath.Join(bundle, "rootfs")
	if err := unmountAll(rootfs); err != nil {
		return err
	}
	if err := removeStubs(rootfs); err != nil {
		return fmt.Errorf("remove bundle: %w", err)
	}
	for _, dir := range []string{bundle, filepath.Join(r.opts.State, execDir, id)} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove bundle: %w", err)
		}
	}
	return nil
}

// removeStubs removes a folder on which nothing is mounted any more, with the empty folders and
// files that runc may have made in it as mount points. What has content stays, and is an error: were
// something still mounted there, its files would be deleted.
func removeStubs(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if entry.IsDir() {
			err = removeStubs(path)
		} else {
			err = removeEmpty(path)
		}
		if err != nil {
			return err
		}
	}
	return os.Remove(dir)
}

// removeEmpty removes a file that is regular and empty.
func removeEmpty(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > 0 {
		return fmt.Errorf("%s is no mount point of runc's", path)
	}
	return os.Remove(path)
}

// Status returns what is known of a container, or ErrNotFound.
func (r *Runtime) Status(ctx context.Context, id string) (container.Status, error) {
	_, c, err := r.find(ctx, id)
	if err != nil {
		return container.Status{}, err
	}
	return c.status(), nil
}

// Wait waits until a container has ended and returns its status.
func (r *Runtime) Wait(ctx context.Context, id string) (container.Status, error) {
	ctx, c, err := r.find(ctx, id)
	if err != nil {
		return container.Status{}, err
	}
	select {
	case <-c.done:
		return c.status(), nil
	case <-ctx.Done():
		return container.Status{}, ctx.Err()
	}
}

// mountsToProto converts a snapshot's mounts for the shim.
func mountsToProto(mounts []mount.Mount) []*types.Mount {
	out := make([]*types.Mount, 0, len(mounts))
	for _, m := range mounts {
		out = append(out, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return out
}

// runcError shortens the errors of containerd's shim: what runc said is at the end.
func runcError(err error) error {
	native := errgrpc.ToNative(err)
	message := native.Error()
	for _, prefix := range []string{"OCI runtime create failed: ", "OCI runtime start failed: "} {
		if _, rest, ok := strings.Cut(message, prefix); ok {
			message = rest
		}
	}
	return errors.New(message)
}

// bootID names the time since the machine was started.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// parseSignal reads "SIGTERM", "TERM" or "15".
func parseSignal(name string) (unix.Signal, error) {
	upper := strings.ToUpper(name)
	if n := unix.SignalNum(upper); n != 0 {
		return n, nil
	}
	if n := unix.SignalNum("SIG" + upper); n != 0 {
		return n, nil
	}
	if rest, ok := strings.CutPrefix(upper, "SIGRTMIN"); ok {
		var offset int
		if rest != "" {
			if _, err := fmt.Sscanf(rest, "+%d", &offset); err != nil {
				return 0, fmt.Errorf("stop signal %q is not known", name)
			}
		}
		return unix.Signal(34 + offset), nil
	}
	var n int
	if _, err := fmt.Sscanf(name, "%d", &n); err != nil || n < 1 || n > 64 {
		return 0, fmt.Errorf("stop signal %q is not known", name)
	}
	return unix.Signal(n), nil
}
