package server

import (
	"context"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/events"
	"gantry.dev/gantry/internal/platform/addon"
)

// addonController is the account of the controller of addons, in the platform's namespace.
const addonController = "gantry-addon"

// runAddons keeps addons, once the platform's kinds are served.
func (cp *term) runAddons(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-cp.platform:
	}
	if slices.Contains(cp.opts.WithoutControllers, addonController) {
		return nil
	}
	account := platformUser(addonController)
	if err := cp.awaitRight(ctx, account, v1alpha1.Group, "apps"); err != nil {
		return err
	}
	c, informers, err := asPlatform(cp, account, addonController)
	if err != nil {
		return err
	}
	built, err := addon.New(c, informers, cp.Events(events.Source{Component: addonController}), addon.Options{Log: cp.opts.Logger})
	if err != nil {
		return err
	}
	return built.Run(ctx)
}

// addonBinding gives the controller of addons its role.
func addonBinding() *rbacv1.ClusterRoleBinding {
	role := addon.ControllerRole().Name
	return &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: v1alpha1.PlatformNamespace, Name: addonController}},
	}
}
