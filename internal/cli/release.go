package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/deploy"
)

func (a *app) releaseCommand() *cobra.Command {
	return parent("release", "List and show releases", a.releaseListCommand(), a.releaseShowCommand())
}

func (a *app) releaseListCommand() *cobra.Command {
	f := &appFlags{}
	return f.register(&cobra.Command{
		Use: "ls [APP]", Short: "List the releases of an application, the newest first", Args: atMostOne("APP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.target(cmd, f, first(args))
			if err != nil {
				return err
			}
			if _, err := t.cluster.App(cmd.Context(), t.key); err != nil {
				return err
			}
			releases, err := t.cluster.Releases(cmd.Context(), t.key)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(append([]v1alpha1.Release{}, releases...))
			}
			rows := [][]string{{"RELEASE", "PHASE", "REASON", "COMMIT", "BY", "AGE"}}
			for i := len(releases) - 1; i >= 0; i-- {
				r := &releases[i]
				src := sourceOf(r)
				phase := strings.ToLower(cmp.Or(r.Status.Phase, v1alpha1.ReleaseWaiting))
				if r.Status.Reason != "" {
					phase += " (" + r.Status.Reason + ")"
				}
				rows = append(rows, []string{versionText(r.Spec.Number), phase, src.Reason, shortCommit(src.Commit), src.By, age(time.Since(r.CreationTimestamp.Time))})
			}
			return a.printTable(rows)
		},
	})
}

func sourceOf(r *v1alpha1.Release) v1alpha1.Source {
	if r.Spec.Content.Source == nil {
		return v1alpha1.Source{}
	}
	return *r.Spec.Content.Source
}

func shortCommit(commit string) string {
	hash, dirty, found := strings.Cut(commit, "+")
	hash = hash[:min(8, len(hash))]
	if found {
		return hash + "+" + dirty
	}
	return cmp.Or(hash, "-")
}

// parseVersion reads v7 or 7; "" is 0.
func parseVersion(word string) (int64, error) {
	if word == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(strings.TrimPrefix(word, "v"), 10, 64)
	if err != nil || n < 1 {
		return 0, usage("%q is no release, such as v7; see \"gantry release ls\"", word)
	}
	return n, nil
}

func (a *app) releaseShowCommand() *cobra.Command {
	f := &appFlags{}
	var follow bool
	cmd := f.registerWait(&cobra.Command{
		Use: "show [vN]", Short: "Show a release, the newest unless another is named", Args: atMostOne("release"),
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := parseVersion(first(args))
			if err != nil {
				return err
			}
			t, err := a.target(cmd, f, "")
			if err != nil {
				return err
			}
			if follow {
				return a.follow(cmd.Context(), t, f, func(ctx context.Context, engine *deploy.Engine) (deploy.Result, error) {
					return engine.Follow(ctx, t.key, number, f.timeout)
				})
			}
			r, err := t.release(cmd.Context(), number)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(r)
			}
			return a.printRelease(r)
		},
	})
	cmd.Flags().BoolVar(&follow, "follow", false, "watch it until it is live or ended")
	return cmd
}

// release is one release of the application; number 0 is the newest.
func (t *appTarget) release(ctx context.Context, number int64) (*v1alpha1.Release, error) {
	if _, err := t.cluster.App(ctx, t.key); err != nil {
		return nil, err
	}
	releases, err := t.cluster.Releases(ctx, t.key)
	if err != nil {
		return nil, err
	}
	for i := len(releases) - 1; i >= 0; i-- {
		if number == 0 || releases[i].Spec.Number == number {
			return &releases[i], nil
		}
	}
	if number == 0 {
		return nil, fmt.Errorf("%s has no release yet", t.key.Name)
	}
	return nil, usage("%s has no release v%d; see \"gantry release ls\"", t.key.Name, number)
}

func (a *app) printRelease(r *v1alpha1.Release) error {
	src := sourceOf(r)
	rows := [][]string{
		{"release", fmt.Sprintf("v%d of %s", r.Spec.Number, r.Spec.App)}, {"phase", strings.ToLower(r.Status.Phase), r.Status.Reason},
		{"image", r.Spec.Content.Image}, {"reason", src.Reason}, {"by", src.By}, {"from", src.Origin, src.Commit},
	}
	if r.Status.Message != "" {
		rows = append(rows, []string{"message", r.Status.Message})
	}
	if r.Status.Warning != "" {
		rows = append(rows, []string{"warning", r.Status.Warning})
	}
	for _, key := range sortedKeys(r.Spec.Content.Config) {
		rows = append(rows, []string{"env", key + "=" + r.Spec.Content.Config[key]})
	}
	for _, key := range sortedKeys(r.Spec.Content.Env) {
		rows = append(rows, []string{"env", key + "=" + r.Spec.Content.Env[key]})
	}
	if err := a.printTable(rows); err != nil {
		return err
	}
	if r.Status.Log != "" {
		return a.printf("%s\n", strings.TrimRight(r.Status.Log, "\n"))
	}
	return nil
}

// follow watches a release with progress.
func (a *app) follow(ctx context.Context, t *appTarget, f *appFlags, watch func(context.Context, *deploy.Engine) (deploy.Result, error)) error {
	sink, end := a.show(f.quiet)
	engine, err := deploy.New(deploy.Options{Cluster: t.cluster, Sink: sink})
	if err != nil {
		end()
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	result, err := watch(ctx, engine)
	end()
	if errors.Is(err, context.Canceled) {
		result.App = t.key.Name
		result.Phase = cmp.Or(result.Phase, "unknown")
		err = detached(result)
	}
	return a.finish(result, err)
}

// followChange waits for the release that a change made, unless told otherwise.
func (a *app) followChange(ctx context.Context, t *appTarget, f *appFlags, one *v1alpha1.App) error {
	if f.noWait || one.Spec.Image == "" {
		return a.finish(deploy.Result{App: one.Name, Project: one.Namespace}, nil)
	}
	return a.follow(ctx, t, f, func(ctx context.Context, engine *deploy.Engine) (deploy.Result, error) {
		return engine.FollowChange(ctx, one, f.timeout)
	})
}

func (a *app) rollbackCommand() *cobra.Command {
	f := &appFlags{}
	return f.registerWait(&cobra.Command{
		Use: "rollback [vN]", Short: "Bring image and environment of an earlier release back, as a new one", Args: atMostOne("release"),
		Long: "Bring image and environment of an earlier release back: the one that served before, or vN. It becomes a new release.\n" +
			"Secrets are what they are now, and numbers of processes and domains stay.",
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := parseVersion(first(args))
			if err != nil {
				return err
			}
			t, err := a.target(cmd, f, "")
			if err != nil {
				return err
			}
			releases, err := t.cluster.Releases(cmd.Context(), t.key)
			if err != nil {
				return err
			}
			to, err := deploy.RollbackTarget(releases, number)
			if err != nil {
				return err
			}
			a.announce(t, t.key.Name)
			for _, r := range releases {
				if r.Spec.Number > to.Spec.Number && r.Spec.Content.Release != nil && r.Status.Phase != v1alpha1.ReleaseSuperseded {
					a.warn("v%d ran the release command %q, and a rollback does not undo what it did", r.Spec.Number, r.Spec.Content.Release.Command)
				}
			}
			one, err := t.cluster.ChangeApp(cmd.Context(), t.key, deploy.ManagerDeploy, func(one *v1alpha1.App) error {
				deploy.RollBack(one, to)
				return nil
			})
			if err != nil {
				return err
			}
			return a.followChange(cmd.Context(), t, f, one)
		},
	})
}

func (a *app) promoteCommand() *cobra.Command {
	f := &appFlags{}
	return f.registerWait(&cobra.Command{
		Use: "promote [APP]", Short: "Take the canary to its next step now", Args: atMostOne("APP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.intend(cmd, f, first(args), v1alpha1.IntentPromote)
		},
	})
}

func (a *app) abortCommand() *cobra.Command {
	f := &appFlags{}
	return f.registerWait(&cobra.Command{
		Use: "abort [APP]", Short: "Give up the release that is on its way", Args: atMostOne("APP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.intend(cmd, f, first(args), v1alpha1.IntentAbort)
		},
	})
}

// intend asks something of the release that is on its way.
func (a *app) intend(cmd *cobra.Command, f *appFlags, name, intent string) error {
	ctx := cmd.Context()
	t, err := a.target(cmd, f, name)
	if err != nil {
		return err
	}
	r, err := t.release(ctx, 0)
	if err != nil {
		return err
	}
	switch r.Status.Phase {
	case v1alpha1.ReleaseLive, v1alpha1.ReleaseReplaced, v1alpha1.ReleaseSuperseded, v1alpha1.ReleaseFailed, v1alpha1.ReleaseAborted:
		return fmt.Errorf("no release of %s is on its way: v%d is %s", t.key.Name, r.Spec.Number, strings.ToLower(r.Status.Phase))
	}
	if intent == v1alpha1.IntentPromote && (r.Status.Phase != v1alpha1.ReleaseCanary || r.Status.Canary == nil) {
		return fmt.Errorf("v%d of %s is no canary that could be promoted: it is %s", r.Spec.Number, t.key.Name, strings.ToLower(r.Status.Phase))
	}
	a.announce(t, t.key.Name)
	before := r.DeepCopy()
	r.Spec.Intent = intent
	if r.Status.Canary != nil {
		r.Spec.Step = r.Status.Canary.Step
	}
	if err := t.cluster.Client.Patch(ctx, r, client.MergeFrom(before), client.FieldOwner(deploy.ManagerDeploy)); err != nil {
		return deploy.Reached(intent+" the release", err)
	}
	if f.noWait {
		return a.printf("%s v%d: asked to %s\n", t.key.Name, r.Spec.Number, intent)
	}
	err = a.follow(ctx, t, f, func(ctx context.Context, engine *deploy.Engine) (deploy.Result, error) {
		result, err := engine.FollowIntent(ctx, t.key, r, f.timeout)
		return result, err
	})
	if failed, ok := errors.AsType[*deploy.Error](err); ok && intent == v1alpha1.IntentAbort && failed.Code == deploy.CodeAborted {
		return a.printf("%s v%d is aborted\n", t.key.Name, r.Spec.Number)
	}
	return err
}
