package deploy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
)

// lookAgain is how often is looked without an event: a watch may be cut off, or not be allowed.
const lookAgain = time.Second

// Await calls look until it is done: at once, at each event of the kinds in the project, and now and then.
func (c *Cluster) Await(ctx context.Context, project string, look func() (bool, error), kinds ...client.ObjectList) error {
	watching, cancel := context.WithCancel(ctx)
	events := make(chan struct{}, 1)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	for _, kind := range kinds {
		watch, err := c.Client.Watch(watching, kind, client.InNamespace(project))
		if err != nil {
			continue // then looking now and then has to do
		}
		defer watch.Stop()
		group.Go(func() {
			for range watch.ResultChan() {
				select {
				case events <- struct{}{}:
				default:
				}
			}
		})
	}
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	failures := 0
	for {
		done, err := look()
		if done {
			return err
		}
		if err != nil {
			// The server may be restarting: a deploy outlives that.
			if failures++; ctx.Err() == nil && (failures > 30 || !isPassing(err)) {
				return err
			}
		} else {
			failures = 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-events:
		case <-tick.C:
		}
	}
}

// isPassing tells that nobody answers from an answer.
func isPassing(err error) bool {
	reached, ok := errors.AsType[*Error](err)
	return ok && reached.Reason == "Unreachable"
}

// target is the release that is followed: the one of a deploy, or the one with a number.
type target struct {
	key        types.NamespacedName
	id         string // of the deploy
	generation int64  // that the deploy made of the App
	number     int64  // instead of id
	past       int32  // the first step of a canary that ends the watching
}

// Follow watches a release until it is live or ended. Number 0 is the newest.
func (e *Engine) Follow(ctx context.Context, key types.NamespacedName, number int64, timeout time.Duration) (Result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cmp.Or(timeout, defaultTimeout), errTimeout)
	defer cancel()
	if number == 0 {
		releases, err := e.cluster.Releases(ctx, key)
		if err != nil {
			return Result{}, err
		}
		if latestOf(releases) == nil {
			return Result{}, failure(CodeOther, "NoRelease", "%s has no release yet", key.Name)
		}
		number = latestOf(releases).Spec.Number
	}
	return e.follow(ctx, target{key: key, number: number}, Result{App: key.Name, Project: key.Namespace})
}

// FollowChange watches the release that a change of the App makes, if it makes one.
func (e *Engine) FollowChange(ctx context.Context, app *v1alpha1.App, timeout time.Duration) (Result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cmp.Or(timeout, defaultTimeout), errTimeout)
	defer cancel()
	id := ""
	if app.Spec.Source != nil {
		id = app.Spec.Source.ID
	}
	return e.follow(ctx, target{key: client.ObjectKeyFromObject(app), id: id, generation: app.Generation}, Result{App: app.Name, Project: app.Namespace})
}

// follow watches the target. The result has what is known when the error comes.
func (e *Engine) follow(ctx context.Context, t target, result Result) (Result, error) {
	f := &follower{engine: e, target: t, result: result}
	f.done = e.step("release", "releasing")
	err := e.cluster.Await(ctx, t.key.Namespace, func() (bool, error) { return f.look(ctx) }, &v1alpha1.ReleaseList{}, &v1alpha1.AppList{})
	if err != nil && errors.Is(context.Cause(ctx), errTimeout) {
		out := failure(CodeTimeout, "Timeout", "%s is still on its way: %s", nameOf(f.result), cmp.Or(f.said, "waiting"))
		err = out.try(fmt.Sprintf("go on watching: gantry release show v%d -a %s --follow", f.result.Release, t.key.Name), "give it up: gantry abort -a "+t.key.Name)
	}
	return f.result, err
}

func nameOf(r Result) string {
	if r.Release == 0 {
		return r.App
	}
	return fmt.Sprintf("v%d of %s", r.Release, r.App)
}

// follower is one watching of a release.
type follower struct {
	engine *Engine
	target target
	result Result
	said   string
	warned string // the release's warning, told once
	done   func(string, ...any)
}

// look reads and tells what changed.
func (f *follower) look(ctx context.Context) (bool, error) {
	app, err := f.engine.cluster.App(ctx, f.target.key)
	if err != nil {
		return false, err
	}
	releases, err := f.engine.cluster.Releases(ctx, f.target.key)
	if err != nil {
		return false, err
	}
	release, done, err := f.find(app, releases)
	if done || err != nil || release == nil {
		return done, err
	}
	f.result.Release, f.result.Phase, f.result.Image = release.Spec.Number, release.Status.Phase, release.Spec.Content.Image
	if text := releaseText(release); text != f.said {
		f.said = text
		f.engine.emit(Event{Type: EventRelease, Step: "release", Release: release.Spec.Number, Phase: release.Status.Phase, Text: text})
	}
	if warning := release.Status.Warning; warning != "" && warning != f.warned && !f.result.Unchanged {
		f.warned = warning
		f.engine.warn("v%d: %s", release.Spec.Number, warning)
	}
	switch release.Status.Phase {
	case v1alpha1.ReleaseLive, v1alpha1.ReleaseReplaced:
		if release.Status.Phase == v1alpha1.ReleaseLive && app.Status.Release != release.Spec.Number {
			return false, nil // the App's status, with the addresses, follows at once
		}
		f.result.URLs = app.Status.URLs
		f.done("v%d is live", release.Spec.Number)
		return true, nil
	case v1alpha1.ReleaseSuperseded, v1alpha1.ReleaseFailed, v1alpha1.ReleaseAborted:
		return true, releaseFailure(release, serving(releases))
	case v1alpha1.ReleaseCanary:
		if canary := release.Status.Canary; canary != nil && canary.Waits && canary.Step >= f.target.past {
			f.result.URLs = app.Status.URLs
			f.done("v%d gets %d %% of the requests and waits: gantry promote, or gantry abort", release.Spec.Number, canary.Weight)
			return true, nil
		}
	}
	return false, nil
}

// find picks the release that is followed. Where a deploy made none, because nothing changed, it is the newest.
func (f *follower) find(app *v1alpha1.App, releases []v1alpha1.Release) (*v1alpha1.Release, bool, error) {
	for i := range releases {
		r := &releases[i]
		if (f.target.number > 0 && r.Spec.Number == f.target.number) ||
			(f.target.number == 0 && f.target.id != "" && r.Spec.Content.Source != nil && r.Spec.Content.Source.ID == f.target.id) {
			return r, false, nil
		}
	}
	if f.target.number > 0 {
		return nil, true, failure(CodeUsage, "NoRelease", "%s has no release v%d", f.target.key.Name, f.target.number).try("gantry release ls -a " + f.target.key.Name)
	}
	if app.Status.ObservedGeneration < f.target.generation {
		return nil, false, nil
	}
	if app.Spec.Source != nil && app.Spec.Source.ID != f.target.id {
		return nil, true, failure(CodeSuperseded, v1alpha1.ReasonSuperseded, "another deploy of %s came before this one was released", app.Name).
			try("gantry release ls -a " + app.Name)
	}
	latest := latestOf(releases)
	if latest == nil {
		if text := cmp.Or(app.Status.Message, "waiting"); text != f.said {
			f.said = text
			f.engine.emit(Event{Type: EventRelease, Step: "release", Phase: app.Status.Phase, Text: text})
		}
		return nil, false, nil
	}
	f.result.Unchanged = true
	return latest, false, nil
}

// serving is the number of the release that serves; 0 is none.
func serving(releases []v1alpha1.Release) int64 {
	for _, r := range slices.Backward(releases) {
		if r.Status.Phase == v1alpha1.ReleaseLive {
			return r.Spec.Number
		}
	}
	return 0
}

// releaseText says in a line where a release is.
func releaseText(r *v1alpha1.Release) string {
	name := fmt.Sprintf("v%d", r.Spec.Number)
	status := r.Status
	switch status.Phase {
	case "", v1alpha1.ReleaseWaiting:
		return strings.TrimSuffix(name+" waits: "+status.Message, ": ")
	case v1alpha1.ReleaseCommanding:
		return name + " runs the release command"
	case v1alpha1.ReleaseCanary:
		return name + canaryText(status.Canary)
	case v1alpha1.ReleaseLive:
		return name + " is live"
	case v1alpha1.ReleaseRolling:
		return name + " starts" + progressText(status.Progress)
	}
	return name + " " + pastOf(status.Phase)
}

func canaryText(c *v1alpha1.CanaryStatus) string {
	if c == nil {
		return " starts as a canary"
	}
	text := fmt.Sprintf(" gets %d %% of the requests", c.Weight)
	if c.Requests > 0 {
		text += fmt.Sprintf(": %d requests, %d errors", c.Requests, c.Errors)
		if c.P95 != nil {
			text += ", p95 " + c.P95.Duration.Round(time.Millisecond).String()
		}
	}
	return text
}

func progressText(progress map[string]v1alpha1.ProcessStatus) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(progress)) {
		parts = append(parts, fmt.Sprintf("%s %d/%d", name, progress[name].Ready, progress[name].Desired))
	}
	if len(parts) == 0 {
		return ""
	}
	return ": " + strings.Join(parts, ", ") + " ready"
}

// FollowIntent watches a release that was asked to go on or to end. A canary that waits at the step it was asked at is still on
// its way.
func (e *Engine) FollowIntent(ctx context.Context, key types.NamespacedName, asked *v1alpha1.Release, timeout time.Duration) (Result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cmp.Or(timeout, defaultTimeout), errTimeout)
	defer cancel()
	t := target{key: key, number: asked.Spec.Number}
	if asked.Status.Canary != nil {
		t.past = asked.Status.Canary.Step + 1
	}
	return e.follow(ctx, t, Result{App: key.Name, Project: key.Namespace})
}
