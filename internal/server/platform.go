package server

import (
	"context"
	"errors"
	"net/http"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/client"
	"gantry.dev/gantry/internal/events"
	"gantry.dev/gantry/internal/platform/addon"
	"gantry.dev/gantry/internal/platform/app"
)

// appController is the account of the controller of applications, in the platform's namespace.
const appController = "gantry-app"

// platformUser is the service account under which a controller of the platform works.
func platformUser(name string) user.Info {
	return &user.DefaultInfo{
		Name:   "system:serviceaccount:" + v1alpha1.PlatformNamespace + ":" + name,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + v1alpha1.PlatformNamespace, user.AllAuthenticated},
	}
}

// AsPlatform is As with the kinds of gantry.dev and of the Gateway API as Go types.
func (cp *ControlPlane) AsPlatform(u user.Info, manager string) (*client.Client, *client.Cache, error) {
	return asPlatform(cp, u, manager)
}

func asPlatform(from clients, u user.Info, manager string) (*client.Client, *client.Cache, error) {
	scheme, err := app.NewScheme()
	if err != nil {
		return nil, nil, err
	}
	return from.as(client.Options{User: u, Lister: u, Manager: manager, Scheme: scheme}, nil)
}

// Platform is closed when the kinds of gantry.dev are served.
func (cp *ControlPlane) Platform() <-chan struct{} { return cp.platform }

// preparePlatform makes what the platform needs. It begins beside the controllers, so that no start of the server
// waits for it.
func (cp *ControlPlane) preparePlatform(ctx context.Context) error {
	if err := cp.insist(ctx, "making the platform's own objects", func() error { return cp.bootstrapPlatform(ctx) }); err != nil {
		return nil // ctx has ended
	}
	close(cp.platform)
	return nil
}

// runPlatform keeps applications, once the platform's kinds are served.
func (cp *term) runPlatform(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-cp.platform:
	}
	if slices.Contains(cp.opts.WithoutControllers, appController) {
		return nil
	}
	account := platformUser(appController)
	if err := cp.awaitRight(ctx, account, v1alpha1.Group, "apps"); err != nil {
		return err
	}
	c, informers, err := asPlatform(cp, account, appController)
	if err != nil {
		return err
	}
	config := cp.local(account, appController)
	api := &app.API{HTTP: &http.Client{Transport: config.Transport}, Host: config.Host}
	built, err := app.New(c, informers, cp.Events(events.Source{Component: appController}), app.Options{Metrics: api, Logs: api, Log: cp.opts.Logger})
	if err != nil {
		return err
	}
	return built.Run(ctx)
}

// bootstrapPlatform makes the roles and the kinds of the platform. What is as it should be stays untouched.
func (cp *ControlPlane) bootstrapPlatform(ctx context.Context) error {
	for _, role := range append(app.ProjectRoles(), app.ControllerRole(), addon.ControllerRole()) {
		if err := cp.ensureRole(ctx, role); err != nil {
			return err
		}
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: app.ControllerRole().Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: app.ControllerRole().Name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: v1alpha1.PlatformNamespace, Name: appController}},
	}
	if err := errors.Join(cp.ensure(ctx, binding), cp.ensure(ctx, addonBinding())); err != nil {
		return err
	}
	return app.InstallDefinitions(ctx, cp.admin, nil)
}

// ensureRole creates a role, or gives one that is there the rules of this version.
func (cp *ControlPlane) ensureRole(ctx context.Context, role *rbacv1.ClusterRole) error {
	there := &rbacv1.ClusterRole{}
	err := cp.admin.Get(ctx, ctrlclient.ObjectKeyFromObject(role), there)
	if apierrors.IsNotFound(err) {
		return ctrlclient.IgnoreAlreadyExists(cp.admin.Create(ctx, role))
	}
	if err != nil || equality.Semantic.DeepEqual(there.Rules, role.Rules) {
		return err
	}
	next := there.DeepCopy()
	next.Rules = role.Rules
	return cp.admin.Update(ctx, next)
}
