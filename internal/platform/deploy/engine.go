package deploy

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/source"
)

// defaultTimeout bounds a deploy. A canary with the default steps takes twenty minutes.
const defaultTimeout = 30 * time.Minute

// Options tune an Engine. Cluster is required.
type Options struct {
	Cluster *Cluster
	Sink    func(Event) // gets events, one at a time; default none
}

// Engine deploys to one cluster.
type Engine struct {
	cluster *Cluster
	mu      sync.Mutex // events come from the build's log, too
	sink    func(Event)
}

// New checks opts and returns an Engine that has asked nothing.
func New(opts Options) (*Engine, error) {
	if opts.Cluster == nil {
		return nil, errors.New("deploy: Cluster is nil")
	}
	if opts.Sink == nil {
		opts.Sink = func(Event) {}
	}
	return &Engine{cluster: opts.Cluster, sink: opts.Sink}, nil
}

// Request says what to deploy.
type Request struct {
	Project, App string
	// Spec is what the file says. Its image stays empty where it is built; Config and Restarts are not looked at.
	Spec v1alpha1.AppSpec
	// Tree is the source to build from; nil where Spec has an image or a repository.
	Tree *source.Tree
	// Kind and Main are what was found in the source: a way to build, and of Go the folder of the program.
	Kind, Main string
	// Local compiles Go on this machine if it can.
	Local bool
	// Registry is pushed to instead of the cluster's, as Registry/APP; empty is what Spec.Build says.
	Registry string
	// Expires is when a preview ends; nil is never.
	Expires *time.Time
	// TakeOver allows another origin than the application's.
	TakeOver bool
	NoWait   bool          // end when the App is written
	Timeout  time.Duration // of the whole; default half an hour
}

func (r *Request) key() types.NamespacedName {
	return types.NamespacedName{Namespace: r.Project, Name: r.App}
}

func (e *Engine) emit(event Event) {
	event.Time = time.Now().UTC()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sink(event)
}

// step tells that something begins; the function that it returns tells that it is done.
func (e *Engine) step(name, format string, args ...any) func(format string, args ...any) {
	e.emit(Event{Type: EventStep, Step: name, Text: fmt.Sprintf(format, args...)})
	return func(format string, args ...any) {
		e.emit(Event{Type: EventDone, Step: name, Text: fmt.Sprintf(format, args...)})
	}
}

func (e *Engine) warn(format string, args ...any) {
	e.emit(Event{Type: EventWarning, Text: fmt.Sprintf(format, args...)})
}

// Deploy does the whole. When ctx ends while a release is on its way, that goes on without us: the result names it, and the error
// is that of ctx. Before, nothing was changed.
func (e *Engine) Deploy(ctx context.Context, req Request) (Result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cmp.Or(req.Timeout, defaultTimeout), errTimeout)
	defer cancel()
	result := Result{App: req.App, Project: req.Project}
	if req.Spec.Source == nil {
		req.Spec.Source = &v1alpha1.Source{}
	}
	req.Spec.Source.ID = newID()
	before, err := e.check(ctx, &req)
	if err != nil {
		return result, timedOut(ctx, err, "checking")
	}
	if req.Spec.Image == "" {
		image, err := e.build(ctx, &req)
		if err != nil {
			return result, timedOut(ctx, err, "building")
		}
		req.Spec.Image = image
	}
	result.Image = req.Spec.Image
	written, err := e.write(ctx, &req, before)
	if err != nil {
		return result, timedOut(ctx, err, "writing the application")
	}
	if req.NoWait {
		result.URLs = written.Status.URLs
		return result, nil
	}
	return e.follow(ctx, target{key: req.key(), id: req.Spec.Source.ID, generation: written.Generation}, result)
}

// Plan says what a deploy would make of the App: as it is, nil if there is none, and as it would be. The server checks it. Where
// the image is still to be built, it stays as it is, or has none.
func (e *Engine) Plan(ctx context.Context, req Request) (before, after *v1alpha1.App, err error) {
	if req.Spec.Source == nil {
		req.Spec.Source = &v1alpha1.Source{}
	}
	if before, err = e.check(ctx, &req); err != nil {
		return nil, nil, err
	}
	if before == nil {
		after = &v1alpha1.App{ObjectMeta: metav1.ObjectMeta{Namespace: req.Project, Name: req.App}, Spec: specOf(&req, nil, nil)}
		return nil, after, e.create(ctx, after, client.DryRunAll)
	}
	if req.Spec.Image == "" {
		req.Spec.Image = before.Spec.Image
	}
	after, err = e.cluster.ChangeApp(ctx, req.key(), ManagerDeploy, func(app *v1alpha1.App) error {
		app.Spec = specOf(&req, app, nil)
		return nil
	}, client.DryRunAll)
	return before, after, err
}

// write creates the App or changes what of it a deploy owns. The environment of `gantry env` and what acts at once stay.
func (e *Engine) write(ctx context.Context, req *Request, before *v1alpha1.App) (*v1alpha1.App, error) {
	if before == nil {
		app := &v1alpha1.App{
			TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion().String(), Kind: "App"},
			ObjectMeta: metav1.ObjectMeta{Namespace: req.Project, Name: req.App},
			Spec:       specOf(req, nil, nil),
		}
		return app, e.create(ctx, app)
	}
	releases, err := e.cluster.Releases(ctx, req.key())
	if err != nil {
		return nil, err
	}
	return e.cluster.ChangeApp(ctx, req.key(), ManagerDeploy, func(app *v1alpha1.App) error {
		delete(app.Annotations, v1alpha1.AnnotationRemoved)
		app.Spec = specOf(req, app, latestOf(releases))
		return nil
	})
}

// specOf is what the App's spec becomes. A release that failed is tried again by counting a restart: the content alone would say
// that nothing changed.
func specOf(req *Request, app *v1alpha1.App, latest *v1alpha1.Release) v1alpha1.AppSpec {
	out := *req.Spec.DeepCopy()
	out.Config, out.Restarts, out.Expires = nil, 0, nil
	if app != nil {
		out.Config, out.Restarts, out.Suspended = app.Spec.Config, app.Spec.Restarts, app.Spec.Suspended
		if len(out.Domains) == 0 {
			out.Domains = app.Spec.Domains // a file without the key leaves them to `gantry domain`
		}
		keepAddons(&out, app.Spec.Addons, func(a v1alpha1.Addon) bool { return a.Added })
	}
	if req.Expires != nil {
		out.Expires = &metav1.Time{Time: req.Expires.UTC().Truncate(time.Second)}
	}
	if latest != nil && failedPhase(latest.Status.Phase) && sameContent(&out, &latest.Spec.Content) {
		out.Restarts = max(out.Restarts, latest.Spec.Content.Restarts) + 1
	}
	return out
}

// keepAddons adds those addons of an application that the spec does not name.
func keepAddons(spec *v1alpha1.AppSpec, have map[string]v1alpha1.Addon, keep func(v1alpha1.Addon) bool) {
	for name, addon := range have {
		if _, named := spec.Addons[name]; named || !keep(addon) {
			continue
		}
		if spec.Addons == nil {
			spec.Addons = map[string]v1alpha1.Addon{}
		}
		spec.Addons[name] = addon
	}
}

func failedPhase(phase string) bool {
	return phase == v1alpha1.ReleaseFailed || phase == v1alpha1.ReleaseAborted
}

// sameContent says whether two specs would be the same release.
func sameContent(a, b *v1alpha1.AppSpec) bool {
	return equality.Semantic.DeepEqual(content(a), content(b))
}

// MakesRelease says whether a change of a spec is one that makes a release.
func MakesRelease(before, after *v1alpha1.AppSpec) bool { return !sameContent(before, after) }

// content is what of a spec makes a release.
func content(spec *v1alpha1.AppSpec) *v1alpha1.AppSpec {
	out := spec.DeepCopy()
	out.Domains, out.Source, out.Expires, out.Rollout, out.Build = nil, nil, nil, nil, nil
	out.Restarts, out.Suspended = 0, false
	for name, addon := range out.Addons { // all else of them acts at once
		out.Addons[name] = v1alpha1.Addon{Type: addon.Type}
	}
	for name, process := range out.Processes {
		process.Scale = nil
		out.Processes[name] = process
	}
	return out
}

// newID names a deploy.
func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails; it ends the program instead
	return hex.EncodeToString(b[:])
}

// errTimeout is the cause of a context that took too long.
var errTimeout = errors.New("the time is up")

// timedOut says of a step that ran into the time-out what it was.
func timedOut(ctx context.Context, err error, doing string) error {
	if errors.Is(context.Cause(ctx), errTimeout) {
		return failure(CodeTimeout, "Timeout", "%s took longer than --timeout allows; nothing was deployed", doing)
	}
	return err
}
