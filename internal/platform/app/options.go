package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/controller"
)

// ErrNoMetrics says that nobody in the cluster counts requests.
var ErrNoMetrics = errors.New("no metrics of requests")

// Metrics tells what gateways counted.
type Metrics interface {
	// Counts is of all requests to a Service so far. ErrNoMetrics if nobody counts.
	Counts(ctx context.Context, namespace, service string) (Counts, error)
}

// Logs reads what containers wrote.
type Logs interface {
	// Tail is the last lines of the container of a process; before asks for the container before the current one.
	Tail(ctx context.Context, namespace, pod string, before bool) (string, error)
}

// Resolver finds the addresses of a host name. *net.Resolver is one.
type Resolver interface {
	LookupHost(ctx context.Context, host string) ([]string, error)
}

// Options tunes a Controller. The zero value suits a cluster where nobody counts requests and logs cannot be read.
type Options struct {
	Workers  int           // applications looked at at once; default 4
	Metrics  Metrics       // default: nobody counts
	Logs     Logs          // default: a release that fails shows no lines
	Resolver Resolver      // default: the machine's
	Resync   time.Duration // how often an application is looked at without a cause; default 10m
	Log      *slog.Logger  // default: discard
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Controller keeps applications. Make one with New, then call Run.
type Controller struct {
	client    client.Client
	informers controller.Informers
	events    controller.Recorder
	opts      Options
	loop      *controller.Loop
	waker     *controller.Loop

	mu      sync.Mutex             // guards the fields below
	quiet   map[types.UID]quiet    // by Deployment
	domains map[string]domainCheck // by host name
	routed  bool                   // HTTPRoutes are watched
}

// NewScheme knows the kinds that a Controller works with; its client must have it or one that knows more.
func NewScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme, autoscalingv2.AddToScheme,
		gatewayv1.Install, v1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("making the scheme of applications: %w", err)
		}
	}
	return scheme, nil
}

// New checks opts and returns a Controller that has started nothing.
func New(c client.Client, informers controller.Informers, events controller.Recorder, opts Options) (*Controller, error) {
	if c == nil || informers == nil || events == nil {
		return nil, errors.New("app: a controller needs a client, informers and a recorder")
	}
	opts.Resync = cmp.Or(opts.Resync, 10*time.Minute)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Metrics == nil {
		opts.Metrics = nothing{}
	}
	if opts.Logs == nil {
		opts.Logs = nothing{}
	}
	if opts.Resolver == nil {
		opts.Resolver = new(net.Resolver)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	out := &Controller{client: c, informers: informers, events: events, opts: opts, quiet: map[types.UID]quiet{}, domains: map[string]domainCheck{}}
	var err error
	if out.loop, err = controller.NewLoop(controller.LoopOptions{Name: "app", Workers: opts.Workers, Reconcile: out.reconcile, Log: opts.Log}); err != nil {
		return nil, err
	}
	if out.waker, err = controller.NewLoop(controller.LoopOptions{Name: "app-wake", Reconcile: out.wake, Log: opts.Log}); err != nil {
		return nil, err
	}
	out.watch()
	return out, nil
}

// Run keeps applications until ctx ends and all workers have returned.
func (c *Controller) Run(ctx context.Context) error {
	return controller.RunAll(ctx, c.informers, c.loop, c.waker)
}

// watch leads events to applications.
func (c *Controller) watch() {
	c.loop.Watch(&v1alpha1.App{}, func(old, current client.Object) {
		if current != nil {
			c.loop.Add(controller.KeyOf(current))
		}
	})
	for _, kind := range []client.Object{&v1alpha1.Release{}, &appsv1.Deployment{}, &batchv1.Job{}, &corev1.Service{}, &corev1.Pod{}} {
		c.loop.Watch(kind, c.belongs)
	}
	c.loop.Watch(&corev1.Secret{}, func(old, current client.Object) {
		obj := either(old, current)
		const suffix = "-secrets" // v1alpha1.SecretName
		if name := obj.GetName(); len(name) > len(suffix) && name[len(name)-len(suffix):] == suffix {
			c.loop.Add(controller.Key{Namespace: obj.GetNamespace(), Name: name[:len(name)-len(suffix)]})
		}
	})
	c.loop.Watch(&corev1.ConfigMap{}, func(old, current client.Object) {
		if obj := either(old, current); obj.GetName() == v1alpha1.PlatformConfig && obj.GetNamespace() == v1alpha1.PlatformNamespace {
			c.lookAtAll()
		}
	})
	c.waker.Watch(&corev1.Service{}, func(old, current client.Object) {
		if current == nil || current.GetLabels()[v1alpha1.LabelApp] == "" {
			return
		}
		if wake := current.GetAnnotations()[v1alpha1.AnnotationWake]; wake != "" && (old == nil || old.GetAnnotations()[v1alpha1.AnnotationWake] != wake) {
			c.waker.Add(controller.KeyOf(current))
		}
	})
}

func either(old, current client.Object) client.Object {
	if current != nil {
		return current
	}
	return old
}

// belongs leads an event to the application that an object is labelled with.
func (c *Controller) belongs(old, current client.Object) {
	obj := either(old, current)
	if name := obj.GetLabels()[v1alpha1.LabelApp]; name != "" {
		c.loop.Add(controller.Key{Namespace: obj.GetNamespace(), Name: name})
	}
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

// nothing counts and reads nothing.
type nothing struct{}

// Counts implements Metrics.
func (nothing) Counts(context.Context, string, string) (Counts, error) { return Counts{}, ErrNoMetrics }

// Tail implements Logs.
func (nothing) Tail(context.Context, string, string, bool) (string, error) { return "", nil }
