package deploy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
)

// changeTries bounds how often a change is begun anew because somebody else was faster.
const changeTries = 10

// noAppError says that there is no application of that name.
type noAppError struct{ key types.NamespacedName }

func (e *noAppError) Error() string {
	return fmt.Sprintf("there is no application %s in project %s; see gantry app ls", e.key.Name, e.key.Namespace)
}

// IsNoApp reports whether an error says that there is no such application.
func IsNoApp(err error) bool {
	_, ok := errors.AsType[*noAppError](err)
	return ok
}

// notServed explains that the cluster does not know the platform's kinds.
func notServed(err error) bool { return meta.IsNoMatchError(err) }

// App returns an application. IsNoApp tells the error if there is none.
func (c *Cluster) App(ctx context.Context, key types.NamespacedName) (*v1alpha1.App, error) {
	var app v1alpha1.App
	err := c.Client.Get(ctx, key, &app)
	switch {
	case isUnknownKind(err):
		return nil, failure(CodeOther, "NoPlatform", "this cluster does not know applications").try("gantry platform install")
	case apierrors.IsNotFound(err):
		return nil, &noAppError{key}
	case err != nil:
		return nil, Reached("read the application", err)
	}
	return &app, nil
}

// isUnknownKind tells the server's answer for a kind that it does not serve from that for a missing object.
func isUnknownKind(err error) bool {
	if notServed(err) {
		return true
	}
	status, ok := errors.AsType[*apierrors.StatusError](err)
	return ok && apierrors.IsNotFound(err) && (status.ErrStatus.Details == nil || status.ErrStatus.Details.Name == "")
}

// Apps lists applications of a project, or of all projects where that is "".
func (c *Cluster) Apps(ctx context.Context, project string) ([]v1alpha1.App, error) {
	var list v1alpha1.AppList
	err := c.Client.List(ctx, &list, client.InNamespace(project))
	if isUnknownKind(err) {
		return nil, failure(CodeOther, "NoPlatform", "this cluster does not know applications").try("gantry platform install")
	}
	return list.Items, Reached("list the applications", err)
}

// Releases are an application's, the oldest first.
func (c *Cluster) Releases(ctx context.Context, key types.NamespacedName) ([]v1alpha1.Release, error) {
	var list v1alpha1.ReleaseList
	if err := c.Client.List(ctx, &list, client.InNamespace(key.Namespace)); err != nil {
		return nil, Reached("list the releases", err)
	}
	out := slices.DeleteFunc(list.Items, func(r v1alpha1.Release) bool { return r.Spec.App != key.Name })
	slices.SortFunc(out, func(a, b v1alpha1.Release) int { return cmp.Compare(a.Spec.Number, b.Spec.Number) })
	return out, nil
}

func latestOf(releases []v1alpha1.Release) *v1alpha1.Release {
	if len(releases) == 0 {
		return nil
	}
	return &releases[len(releases)-1]
}

func (e *Engine) create(ctx context.Context, app *v1alpha1.App, opts ...client.CreateOption) error {
	err := e.cluster.Client.Create(ctx, app, append(opts, client.FieldOwner(ManagerDeploy))...)
	switch {
	case err == nil:
		return nil
	case isUnknownKind(err):
		return failure(CodeOther, "NoPlatform", "this cluster does not know applications").try("gantry platform install")
	case apierrors.IsNotFound(err):
		return failure(CodeUsage, "NoProject", "there is no project %s", app.Namespace).try("gantry project create " + app.Namespace)
	case apierrors.IsAlreadyExists(err):
		return failure(CodeSuperseded, v1alpha1.ReasonSuperseded, "another deploy created %s meanwhile", app.Name).try("try again")
	case apierrors.IsInvalid(err):
		return &Error{Code: CodeUsage, Reason: "Invalid", Message: "the cluster refuses the application", Err: err}
	}
	return Reached("create the application", err)
}

// ChangeApp changes an application and returns it as it is then. What is not changed is not sent, so that a newer server's fields
// stay, and a change of somebody else in between begins it anew. change is called once or more with a copy.
func (c *Cluster) ChangeApp(ctx context.Context, key types.NamespacedName, manager string, change func(*v1alpha1.App) error, opts ...client.PatchOption) (*v1alpha1.App, error) {
	for range changeTries {
		app, err := c.App(ctx, key)
		if err != nil {
			return nil, err
		}
		patch := client.MergeFromWithOptions(app.DeepCopy(), client.MergeFromWithOptimisticLock{})
		if err := change(app); err != nil {
			return nil, err
		}
		err = c.Client.Patch(ctx, app, patch, append(opts, client.FieldOwner(manager))...)
		switch {
		case err == nil:
			return app, nil
		case apierrors.IsInvalid(err):
			return nil, &Error{Code: CodeUsage, Reason: "Invalid", Message: "the cluster refuses the change", Err: err}
		case !apierrors.IsConflict(err):
			return nil, Reached("change the application", err)
		}
	}
	return nil, failure(CodeOther, "Busy", "%s changes all the time", key.Name).try("try again")
}
