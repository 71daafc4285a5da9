package remote

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/app"
	"gantry.dev/gantry/internal/platform/app/render"
)

// UninstallOptions says how much Uninstall takes away.
type UninstallOptions struct {
	Apps bool // the applications, and the definitions; without it they go on running, with nobody who keeps them
	Data bool // volumes and secrets of applications; only with Apps

	Timeout time.Duration        // default 3m
	Step    func(message string) // told of each thing done; default nobody
}

// Uninstall takes the platform away. What is gone already is no error.
func Uninstall(ctx context.Context, config *rest.Config, opts UninstallOptions) error {
	if opts.Step == nil {
		opts.Step = func(string) {}
	}
	if opts.Data && !opts.Apps {
		return fmt.Errorf("remote: Data without Apps would take volumes away from applications that run")
	}
	if opts.Timeout == 0 {
		opts.Timeout = defaultTimeout
	}
	if _, err := checkVersion(config); err != nil {
		return err
	}
	c, err := newClient(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, opts.Timeout)
	defer cancel()
	un := &uninstaller{Client: c, opts: opts}
	if err := un.controllers(ctx); err != nil {
		return err
	}
	if opts.Apps {
		if err := un.applications(ctx); err != nil {
			return err
		}
	}
	return un.rest(ctx)
}

type uninstaller struct {
	client.Client
	opts UninstallOptions
}

// remove deletes an object and says so.
func (un *uninstaller) remove(ctx context.Context, kind string, object client.Object, opts ...client.DeleteOption) error {
	err := un.Delete(ctx, object, opts...)
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing the %s %s: %w", kind, object.GetName(), err)
	}
	un.opts.Step(kind + " " + object.GetName() + " removed")
	return nil
}

// controllers end first, or they would make anew what is removed.
func (un *uninstaller) controllers(ctx context.Context) error {
	own := metav1.ObjectMeta{Namespace: v1alpha1.PlatformNamespace, Name: Name}
	if err := un.remove(ctx, "Deployment", &appsv1.Deployment{ObjectMeta: own}, client.PropagationPolicy(metav1.DeletePropagationForeground)); err != nil {
		return err
	}
	return un.until(ctx, "the controllers to end", func() (bool, error) {
		err := un.Get(ctx, client.ObjectKey{Namespace: own.Namespace, Name: own.Name}, &appsv1.Deployment{})
		return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
	})
}

func (un *uninstaller) until(ctx context.Context, what string, done func() (bool, error)) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-ticker.C:
		}
	}
}

// applications removes every App; the cluster's garbage collector removes what belongs to them.
func (un *uninstaller) applications(ctx context.Context) error {
	var apps v1alpha1.AppList
	if err := un.List(ctx, &apps); err != nil && !meta.IsNoMatchError(err) && !apierrors.IsNotFound(err) {
		return fmt.Errorf("listing applications: %w", err)
	}
	for i := range apps.Items {
		one := &apps.Items[i]
		if err := un.remove(ctx, "application", one, client.PropagationPolicy(metav1.DeletePropagationForeground)); err != nil {
			return err
		}
		if !un.opts.Data {
			continue
		}
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: one.Namespace, Name: v1alpha1.SecretName(one.Name)}}
		if err := un.remove(ctx, "Secret", secret); err != nil {
			return err
		}
		var claims corev1.PersistentVolumeClaimList
		err := un.List(ctx, &claims, client.InNamespace(one.Namespace), client.MatchingLabels{v1alpha1.LabelApp: one.Name, render.LabelManagedBy: render.ManagedBy})
		if err != nil {
			return fmt.Errorf("listing the volumes of %s: %w", one.Name, err)
		}
		for j := range claims.Items {
			if err := un.remove(ctx, "volume", &claims.Items[j]); err != nil {
				return err
			}
		}
	}
	err := un.until(ctx, "the applications to end", func() (bool, error) {
		var left v1alpha1.AppList
		err := un.List(ctx, &left)
		if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
			return true, nil
		}
		return err == nil && len(left.Items) == 0, err
	})
	if err != nil {
		return err
	}
	definitions, err := app.Definitions(kinds()...)
	if err != nil {
		return err
	}
	for _, d := range definitions {
		object := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: d.Name}}
		object.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
		if err := un.remove(ctx, "definition", object); err != nil {
			return err
		}
	}
	return nil
}

// rest removes account, roles and, where no application is left that reads it, the namespace with the settings.
func (un *uninstaller) rest(ctx context.Context) error {
	for _, role := range controllerRoles() {
		if err := un.remove(ctx, "ClusterRoleBinding", &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: role.Name}}); err != nil {
			return err
		}
	}
	for _, role := range clusterRoles() {
		if err := un.remove(ctx, "ClusterRole", role); err != nil {
			return err
		}
	}
	if un.opts.Apps {
		return un.remove(ctx, "Namespace", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.PlatformNamespace}})
	}
	own := metav1.ObjectMeta{Namespace: v1alpha1.PlatformNamespace, Name: Name}
	for _, one := range []struct {
		kind   string
		object client.Object
	}{
		{"RoleBinding", &rbacv1.RoleBinding{ObjectMeta: own}}, {"Role", &rbacv1.Role{ObjectMeta: own}},
		{"ServiceAccount", &corev1.ServiceAccount{ObjectMeta: own}}, {"Lease", &coordinationv1.Lease{ObjectMeta: own}},
	} {
		if err := un.remove(ctx, one.kind, one.object); err != nil {
			return err
		}
	}
	return nil
}
