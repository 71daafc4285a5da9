//go:build linux

package build

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/platform/build/job"
)

// Builder makes one image; Engine is it.
type Builder interface {
	Build(ctx context.Context, request job.Request, images Images, tell func(job.Event)) (job.Event, error)
}

// Options tunes a Controller. Builder, Images and LogDir are required.
type Options struct {
	Builder Builder
	// Images is what a build of a project may read and write.
	Images  func(namespace, app string) Images
	LogDir  string
	DiskDir string        // the file system that must have room; default LogDir
	Node    string        // name of this node, for the status
	AtOnce  int           // builds; default 1
	Timeout time.Duration // of one build; default 1 hour
	MinFree int           // percent of the disk below which builds are refused; default 10
	Log     *slog.Logger  // default: discards
}

// Controller runs Builds: those that wait in the order of their coming, Options.AtOnce at once.
// One that was running when the process ended is begun again.
type Controller struct {
	client    client.Client
	informers controller.Informers
	opts      Options
	logs      *logs
	loop      *controller.Loop
	builds    sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	waiting []controller.Key
	running map[controller.Key]running
}

// running is a build in this process.
type running struct{ cancel context.CancelCauseFunc }

// Why a build ends before its end.
var (
	errCanceled = errors.New("canceled")
	errGone     = errors.New("the Build was deleted")
	errTimeout  = errors.New("it took too long")
)

// New checks opts and returns a Controller that has started nothing; call Run.
func New(c client.Client, informers controller.Informers, opts Options) (*Controller, error) {
	opts.DiskDir = cmp.Or(opts.DiskDir, opts.LogDir)
	opts.AtOnce = cmp.Or(opts.AtOnce, 1)
	opts.Timeout = cmp.Or(opts.Timeout, time.Hour)
	opts.MinFree = cmp.Or(opts.MinFree, 10)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c == nil || informers == nil || opts.Builder == nil || opts.Images == nil || opts.LogDir == "":
		return nil, errors.New("build: a controller needs a client, informers, Builder, Images and LogDir")
	case opts.AtOnce < 1 || opts.AtOnce > 16 || opts.Timeout < 0 || opts.MinFree < 0 || opts.MinFree > 99:
		return nil, fmt.Errorf("build: AtOnce is %d, want 1 to 16; Timeout %v, want it positive; MinFree %d, want a percentage", opts.AtOnce, opts.Timeout, opts.MinFree)
	}
	bc := &Controller{client: c, informers: informers, opts: opts, logs: newLogs(opts.LogDir), running: map[controller.Key]running{}}
	loop, err := controller.NewLoop(controller.LoopOptions{Name: "build", Workers: 2, Log: opts.Log, Reconcile: bc.reconcile})
	if err != nil {
		return nil, err
	}
	bc.loop = loop
	loop.Watch(&v1alpha1.Build{}, bc.onEvent)
	return bc, nil
}

// Run works until ctx ends and the builds that run have.
func (c *Controller) Run(ctx context.Context) error {
	err := c.loop.Run(ctx, c.informers)
	c.builds.Wait()
	return err
}

func (c *Controller) onEvent(old, current client.Object) {
	obj := current
	if obj == nil {
		obj = old
	}
	key := controller.KeyOf(obj)
	if current == nil {
		c.stop(key, errGone)
		if err := c.logs.remove(string(old.GetUID())); err != nil {
			c.opts.Log.Warn("cannot remove a build log", "error", err)
		}
	}
	if b, ok := current.(*v1alpha1.Build); ok && b.Spec.Cancel {
		c.stop(key, errCanceled)
	}
	c.loop.Add(key)
}

// stop ends a build, if it runs.
func (c *Controller) stop(key controller.Key, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.running[key]; ok {
		r.cancel(why)
	}
	c.waiting = slices.DeleteFunc(c.waiting, func(k controller.Key) bool { return k == key })
}

func finished(phase string) bool {
	return phase == v1alpha1.BuildSucceeded || phase == v1alpha1.BuildFailed || phase == v1alpha1.BuildCanceled
}

// reconcile puts a Build into the queue, and starts what may.
func (c *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	obj := &v1alpha1.Build{}
	err := c.client.Get(ctx, key, obj)
	if apierrors.IsNotFound(err) {
		return 0, c.next(ctx)
	}
	if err != nil {
		return 0, fmt.Errorf("reading Build %s: %w", key, err)
	}
	c.mu.Lock()
	_, runs := c.running[key]
	queued := slices.Contains(c.waiting, key)
	c.mu.Unlock()
	switch {
	case finished(obj.Status.Phase) || runs:
		return 0, c.next(ctx)
	case obj.Spec.Cancel:
		return 0, c.write(ctx, obj, func(s *v1alpha1.BuildStatus) {
			s.Phase, s.Message, s.Finished = v1alpha1.BuildCanceled, "canceled before it began", now()
		})
	case obj.Status.Phase != v1alpha1.BuildWaiting:
		// New, or running when an earlier process ended: its log begins anew.
		err := c.write(ctx, obj, func(s *v1alpha1.BuildStatus) { *s = v1alpha1.BuildStatus{Phase: v1alpha1.BuildWaiting} })
		if err != nil {
			return 0, err
		}
	}
	if !queued {
		c.mu.Lock()
		c.waiting = append(c.waiting, key)
		c.mu.Unlock()
	}
	return 0, c.next(ctx)
}

func now() *metav1.Time {
	t := metav1.Now()
	return &t
}

// write changes the status, if the change is one.
func (c *Controller) write(ctx context.Context, obj *v1alpha1.Build, change func(*v1alpha1.BuildStatus)) error {
	next := obj.DeepCopy()
	change(&next.Status)
	if err := c.client.Status().Patch(ctx, next, client.MergeFrom(obj)); err != nil {
		return fmt.Errorf("writing the status of Build %s/%s: %w", obj.Namespace, obj.Name, err)
	}
	return nil
}

// next starts what waits longest while there is room.
func (c *Controller) next(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.waiting) > 0 && len(c.running) < c.opts.AtOnce && ctx.Err() == nil {
		key := c.waiting[0]
		c.waiting = c.waiting[1:]
		buildCtx, cancel := context.WithCancelCause(ctx)
		c.running[key] = running{cancel: cancel}
		c.builds.Go(func() {
			defer cancel(nil)
			if err := controller.Safely(func() error { return c.run(buildCtx, key) }); err != nil && ctx.Err() == nil {
				c.opts.Log.Warn("a build will be tried again", "namespace", key.Namespace, "name", key.Name, "error", err)
			}
			c.mu.Lock()
			delete(c.running, key)
			following := slices.Clone(c.waiting)
			c.mu.Unlock()
			c.loop.AddAfter(key, retryAfter) // nothing is left to do for one that has a result
			for _, k := range following {
				c.loop.Add(k)
			}
		})
	}
	return nil
}

// retryAfter is until a build that Gantry itself could not run is tried again.
const retryAfter = time.Second

// run makes one image and writes what became of it. An error is returned if even that was not possible.
func (c *Controller) run(ctx context.Context, key controller.Key) error {
	obj := &v1alpha1.Build{}
	if err := c.client.Get(ctx, key, obj); err != nil {
		return client.IgnoreNotFound(err)
	}
	if finished(obj.Status.Phase) || obj.Spec.Cancel {
		return nil
	}
	uid := string(obj.UID)
	if err := c.logs.begin(uid); err != nil {
		return err
	}
	status := &reporter{controller: c, obj: obj, uid: uid}
	status.show(ctx, true, func(s *v1alpha1.BuildStatus) {
		*s = v1alpha1.BuildStatus{Phase: v1alpha1.BuildRunning, Node: c.opts.Node, Started: now()}
	})
	limited, cancel := context.WithTimeoutCause(ctx, c.opts.Timeout, errTimeout)
	defer cancel()
	event, err := c.make(limited, obj, status.event)
	if err != nil && ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) { // Gantry ends; its next life begins again
		return errors.Join(err, c.logs.end(uid))
	}
	outcome := c.outcome(limited, event, err)
	if event.Type == "" { // the log ends with the reason
		status.event(job.Event{Time: time.Now().UTC(), Type: job.Failed, Text: outcome.Message})
	}
	// Also when the build was canceled or Gantry is about to end.
	writeCtx, stop := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer stop()
	err = status.change(writeCtx, true, func(s *v1alpha1.BuildStatus) {
		s.Phase, s.Message, s.Image, s.Finished = outcome.Phase, outcome.Message, outcome.Image, now()
		if outcome.Phase == v1alpha1.BuildSucceeded {
			s.Step = ""
		}
	})
	return errors.Join(client.IgnoreNotFound(err), c.logs.end(uid))
}

// writeTimeout is how long writing a result may take.
const writeTimeout = 10 * time.Second

// outcome is what a build's end means.
func (c *Controller) outcome(ctx context.Context, event job.Event, err error) v1alpha1.BuildStatus {
	failed := v1alpha1.BuildStatus{Phase: v1alpha1.BuildFailed}
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errCanceled), errors.Is(cause, errGone):
		return v1alpha1.BuildStatus{Phase: v1alpha1.BuildCanceled, Message: "canceled"}
	case errors.Is(cause, errTimeout):
		failed.Message = fmt.Sprintf("it took longer than %v", c.opts.Timeout)
	case err != nil:
		failed.Message = err.Error()
	case event.Type == job.Done:
		return v1alpha1.BuildStatus{Phase: v1alpha1.BuildSucceeded, Image: event.Image}
	default:
		failed.Message = event.Text
	}
	return failed
}

// make asks the builder.
func (c *Controller) make(ctx context.Context, obj *v1alpha1.Build, tell func(job.Event)) (job.Event, error) {
	if err := c.room(); err != nil {
		return job.Event{}, err
	}
	request, err := c.request(ctx, obj)
	if err != nil {
		return job.Event{}, err
	}
	return c.opts.Builder.Build(ctx, request, c.opts.Images(obj.Namespace, obj.Spec.App), tell)
}

// room refuses when the disk is nearly full.
func (c *Controller) room() error {
	free, size, err := diskFree(c.opts.DiskDir)
	if err != nil {
		return err
	}
	if size > 0 && free*100/size < int64(c.opts.MinFree) {
		return fmt.Errorf("the disk has %d MiB free, less than %d %%: \"gantry image prune\" removes images and build caches that nothing uses", free>>20, c.opts.MinFree)
	}
	return nil
}

// request is a Build in the builder's words.
func (c *Controller) request(ctx context.Context, obj *v1alpha1.Build) (job.Request, error) {
	spec := obj.Spec
	own := path.Join(job.RegistryHost, obj.Namespace, spec.App)
	request := job.Request{
		Repository: cmp.Or(spec.Image, own), From: own, Source: spec.Source, App: spec.App, Kind: spec.Kind, Path: spec.Path,
		File: spec.Dockerfile, Commit: spec.Commit, Args: spec.Args,
	}
	if spec.Time != nil {
		request.Time = spec.Time.Time
	}
	switch {
	case spec.App == "" || strings.Contains(spec.App, "/"):
		return request, fmt.Errorf("spec.app is %q, want the name of an application", spec.App)
	case (spec.Git == nil) == (spec.Source == ""):
		return request, errors.New("want one of spec.source, which was uploaded, and spec.git")
	case !strings.HasPrefix(request.Repository, path.Join(job.RegistryHost, obj.Namespace)+"/"):
		return request, fmt.Errorf("spec.image is %s, want a repository in %s/%s", spec.Image, job.RegistryHost, obj.Namespace)
	}
	return request, c.secrets(ctx, obj, &request)
}

// secrets adds to a request what its Build names of the application's Secret.
func (c *Controller) secrets(ctx context.Context, obj *v1alpha1.Build, request *job.Request) error {
	spec := obj.Spec
	if spec.Git != nil {
		request.Git = &job.Git{URL: spec.Git.URL, Ref: spec.Git.Ref}
	}
	if len(spec.Secrets) == 0 && (spec.Git == nil || spec.Git.Secret == "") {
		return nil
	}
	secret := &corev1.Secret{}
	err := c.client.Get(ctx, client.ObjectKey{Namespace: obj.Namespace, Name: v1alpha1.SecretName(spec.App)}, secret)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("reading the secrets of %s: %w", spec.App, err)
	}
	read := func(name string) ([]byte, error) {
		if value, ok := secret.Data[name]; ok {
			return value, nil
		}
		return nil, fmt.Errorf("the secret %s is not set: gantry secret set -a %s %s", name, spec.App, name)
	}
	request.Secrets = map[string][]byte{}
	for _, name := range spec.Secrets {
		if request.Secrets[name], err = read(name); err != nil {
			return err
		}
	}
	if spec.Git == nil || spec.Git.Secret == "" {
		return nil
	}
	value, err := read(spec.Git.Secret)
	if err == nil {
		request.Git.User, request.Git.Password = credentials(string(value))
	}
	return err
}

// credentials splits USER:PASSWORD. A token alone goes with a user's name that servers do not look at.
func credentials(value string) (user, password string) {
	value = strings.TrimSpace(value)
	if user, password, found := strings.Cut(value, ":"); found {
		return user, password
	}
	return "git", value
}

// reporter keeps the log and the status of one build that runs.
type reporter struct {
	controller *Controller
	obj        *v1alpha1.Build
	uid        string
	written    time.Time
	step       string // that is not written yet
}

// statusEvery bounds how often steps are written into the status.
const statusEvery = 200 * time.Millisecond

// event notes what a build says. It is called by one goroutine at a time.
func (r *reporter) event(event job.Event) {
	if err := r.controller.logs.add(r.uid, event); err != nil {
		r.controller.opts.Log.Warn("cannot write a build log", "error", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	switch event.Type {
	case job.Found:
		r.show(ctx, true, func(s *v1alpha1.BuildStatus) { s.Kind, s.Found, s.Processes = event.Kind, event.Text, event.Processes })
	case job.Commit:
		r.show(ctx, true, func(s *v1alpha1.BuildStatus) { s.Commit = event.Text })
	case job.Step:
		r.step = event.Text
		r.show(ctx, false, func(*v1alpha1.BuildStatus) {})
	}
}

// show is change for what a later write makes good.
func (r *reporter) show(ctx context.Context, atOnce bool, change func(*v1alpha1.BuildStatus)) {
	if err := r.change(ctx, atOnce, change); err != nil {
		r.controller.opts.Log.Debug("cannot show how far a build is", "error", err)
	}
}

// change writes the status, now or when the last time is a while ago.
func (r *reporter) change(ctx context.Context, atOnce bool, change func(*v1alpha1.BuildStatus)) error {
	if !atOnce && time.Since(r.written) < statusEvery {
		return nil
	}
	next := r.obj.DeepCopy()
	next.Status.Step = cmp.Or(r.step, next.Status.Step)
	change(&next.Status)
	if err := r.controller.client.Status().Patch(ctx, next, client.MergeFrom(r.obj)); err != nil {
		return fmt.Errorf("writing the status of a build: %w", err)
	}
	r.obj, r.written = next, time.Now()
	return nil
}

// ServeLog answers with the log of a Build as JSON lines; with the query follow=true until it ends.
func (c *Controller) ServeLog(w http.ResponseWriter, r *http.Request, key controller.Key) {
	obj := &v1alpha1.Build{}
	if err := c.client.Get(r.Context(), key, obj); err != nil {
		code := http.StatusInternalServerError
		if apierrors.IsNotFound(err) {
			code = http.StatusNotFound
		}
		http.Error(w, err.Error(), code)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	follow := r.URL.Query().Get("follow") == "true"
	out := &flushed{w: w, flush: http.NewResponseController(w).Flush}
	if follow {
		if err := out.flush(); err != nil {
			return
		}
		if !c.begun(r.Context(), key, string(obj.UID)) {
			return
		}
	}
	if err := c.logs.copy(r.Context(), string(obj.UID), follow, out); err != nil && r.Context().Err() == nil {
		c.opts.Log.Debug("cannot send a build log", "error", err)
	}
}

// begun waits until a build that waits runs, or has ended.
func (c *Controller) begun(ctx context.Context, key controller.Key, uid string) bool {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		obj := &v1alpha1.Build{}
		if err := c.client.Get(ctx, key, obj); err != nil || string(obj.UID) != uid {
			return false
		}
		if phase := obj.Status.Phase; phase == v1alpha1.BuildRunning || finished(phase) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
}

// flushed sends each piece at once.
type flushed struct {
	w     io.Writer
	flush func() error
}

// Write implements io.Writer.
func (f *flushed) Write(data []byte) (int, error) {
	n, err := f.w.Write(data)
	if err == nil {
		err = f.flush()
	}
	return n, err
}
