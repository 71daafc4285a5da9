package addon

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/controller"
)

// Options tunes a Controller. The zero value suits production.
type Options struct {
	Workers int           // applications looked at at once; default 2
	Resync  time.Duration // how often an application with addons is looked at without a cause; default 10m
	Log     *slog.Logger  // default: discard
	// StopHook ends programs with their signal by a hook, for nodes that do not know stop signals of pods.
	StopHook bool
}

// Controller keeps addons. Make one with New, then call Run.
type Controller struct {
	client    client.Client
	informers controller.Informers
	events    controller.Recorder
	opts      Options
	loop      *controller.Loop
}

// New checks opts and returns a Controller that has started nothing. The client needs the kinds of app.NewScheme.
func New(c client.Client, informers controller.Informers, events controller.Recorder, opts Options) (*Controller, error) {
	if c == nil || informers == nil || events == nil {
		return nil, errors.New("addon: a controller needs a client, informers and a recorder")
	}
	opts.Workers = cmp.Or(opts.Workers, 2)
	opts.Resync = cmp.Or(opts.Resync, 10*time.Minute)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	out := &Controller{client: c, informers: informers, events: events, opts: opts}
	var err error
	out.loop, err = controller.NewLoop(controller.LoopOptions{Name: "addon", Workers: opts.Workers, Reconcile: out.reconcile, Log: opts.Log})
	if err != nil {
		return nil, err
	}
	out.watch()
	return out, nil
}

// Run keeps addons until ctx ends and all workers have returned.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.informers) }

// watch leads events to applications.
func (c *Controller) watch() {
	c.loop.Watch(&v1alpha1.App{}, func(_, current client.Object) {
		if current != nil {
			c.loop.Add(controller.KeyOf(current))
		}
	})
	belongs := func(old, current client.Object) {
		obj := current
		if obj == nil {
			obj = old
		}
		if labels := obj.GetLabels(); labels[v1alpha1.LabelApp] != "" && labels[v1alpha1.LabelAddon] != "" {
			c.loop.Add(controller.Key{Namespace: obj.GetNamespace(), Name: labels[v1alpha1.LabelApp]})
		}
	}
	for _, kind := range []client.Object{
		&appsv1.StatefulSet{}, &batchv1.CronJob{}, &batchv1.Job{}, &corev1.Secret{}, &corev1.Service{}, &corev1.PersistentVolumeClaim{}, &corev1.Pod{},
	} {
		c.loop.Watch(kind, belongs)
	}
	c.loop.Watch(&corev1.ConfigMap{}, func(old, current client.Object) {
		obj := current
		if obj == nil {
			obj = old
		}
		if obj.GetName() == v1alpha1.PlatformConfig && obj.GetNamespace() == v1alpha1.PlatformNamespace {
			c.lookAtAll()
		}
	})
}

// lookAtAll asks for a look at every application.
func (c *Controller) lookAtAll() {
	var apps v1alpha1.AppList
	if err := c.client.List(context.Background(), &apps); err != nil {
		c.opts.Log.Warn("listing applications", "error", err)
		return
	}
	for i := range apps.Items {
		c.loop.Add(controller.KeyOf(&apps.Items[i]))
	}
}

// ControllerRole is what a Controller's account needs, and no more.
func ControllerRole() *rbacv1.ClusterRole {
	rule := func(group string, verbs []string, resources ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: resources, Verbs: verbs}
	}
	read := []string{"get", "list", "watch"}
	keep := []string{"get", "list", "watch", "create", "update", "delete"}
	return &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "gantry:addon"},
		Rules: []rbacv1.PolicyRule{
			rule(v1alpha1.Group, read, "apps", "releases"),
			rule(v1alpha1.Group, []string{"patch"}, "apps/status"),
			rule(v1alpha1.Group, []string{"update"}, "apps/finalizers"),
			rule("", keep, "services", "secrets"),
			rule("", []string{"get", "list", "watch", "create", "update"}, "persistentvolumeclaims"), // never deleted here
			rule("", read, "pods", "configmaps"),
			rule("apps", keep, "statefulsets"),
			rule("batch", keep, "cronjobs"),
			rule("batch", read, "jobs"),
		},
	}
}
