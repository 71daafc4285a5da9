package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/addon"
	"gantry.dev/gantry/internal/platform/app"
)

// Times of the Lease. Source: the defaults of Kubernetes' own components.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// ErrLost says that another copy may lead now. Whoever gets it ends its process.
var ErrLost = errors.New("the lease was lost")

// Options tunes a Platform. Config and Identity are required.
type Options struct {
	Config   *rest.Config
	Identity string       // of this copy, such as the pod's name
	Rate     float32      // requests to the API a second, in the mean; default 100
	Log      *slog.Logger // default: discard
}

// Platform keeps the applications of a cluster while it leads. Make one with New, then call Run.
type Platform struct {
	opts    Options
	leading atomic.Bool
	asked   atomic.Bool // the API has answered
}

// New checks opts and returns a Platform that has started nothing.
func New(opts Options) (*Platform, error) {
	if opts.Config == nil || opts.Identity == "" {
		return nil, errors.New("remote: Config and Identity are required")
	}
	opts.Rate = cmp.Or(opts.Rate, 100)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	opts.Config = rest.CopyConfig(opts.Config)
	opts.Config.QPS, opts.Config.Burst = opts.Rate, int(2*opts.Rate)
	return &Platform{opts: opts}, nil
}

// Leading says whether this copy works.
func (p *Platform) Leading() bool { return p.leading.Load() }

// Handler answers probes: /healthz while Run runs, /readyz when the cluster's API has answered.
func (p *Platform) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !p.asked.Load() {
			http.Error(w, "the API has not answered yet", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintf(w, "ok, leading: %t\n", p.Leading())
	})
	return mux
}

// Run waits to lead, then keeps applications until ctx ends. The Lease is given back when all work has ended. ErrLost says that it was
// lost before.
func (p *Platform) Run(ctx context.Context) error {
	leases, err := coordinationv1.NewForConfig(p.opts.Config)
	if err != nil {
		return fmt.Errorf("making a client of the cluster: %w", err)
	}
	started, lost := make(chan struct{}), make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name: Name, LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod, ReleaseOnCancel: true,
		Lock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: v1alpha1.PlatformNamespace, Name: Name}, Client: leases,
			LockConfig: resourcelock.ResourceLockConfig{Identity: p.opts.Identity},
		},
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { close(started) },
			OnStoppedLeading: func() {},
			OnNewLeader: func(identity string) {
				p.asked.Store(true)
				p.opts.Log.Info("leader is known", "leader", identity, "self", identity == p.opts.Identity)
			},
		},
	})
	if err != nil {
		return fmt.Errorf("preparing to elect a leader: %w", err)
	}
	electing, endElection := context.WithCancel(context.WithoutCancel(ctx))
	var election sync.WaitGroup
	election.Go(func() {
		defer close(lost)
		elector.Run(electing)
	})
	defer election.Wait()
	defer endElection()
	select {
	case <-ctx.Done():
		return nil
	case <-lost:
		return ErrLost
	case <-started:
	}
	return p.lead(ctx, lost)
}

// lead works until ctx ends or the Lease is lost.
func (p *Platform) lead(ctx context.Context, lost <-chan struct{}) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer stop(nil)
	watching.Go(func() {
		select {
		case <-lost:
			stop(ErrLost)
		case <-ctx.Done():
		}
	})
	p.leading.Store(true)
	defer p.leading.Store(false)
	err := p.work(ctx)
	if errors.Is(context.Cause(ctx), ErrLost) {
		return ErrLost
	}
	return err
}

// work runs the controllers. What they read comes from the API and what they hear of from watches, so a look at an application
// sees what the one before wrote.
func (p *Platform) work(ctx context.Context) error {
	c, err := newClient(p.opts.Config)
	if err != nil {
		return err
	}
	c = client.WithFieldOwner(c, Name)
	informers, err := newInformers(p.opts.Config, c)
	if err != nil {
		return err
	}
	core, err := typedcorev1.NewForConfig(p.opts.Config)
	if err != nil {
		return fmt.Errorf("making a client for events: %w", err)
	}
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: core.Events("")})
	events := broadcaster.NewRecorder(c.Scheme(), corev1.EventSource{Component: Name})
	web, err := rest.HTTPClientFor(p.opts.Config)
	if err != nil {
		return fmt.Errorf("making an HTTP client: %w", err)
	}
	host, _, err := rest.DefaultServerUrlFor(p.opts.Config)
	if err != nil {
		return fmt.Errorf("reading the cluster's address: %w", err)
	}
	// Nobody is asked for counts: what another adapter of custom metrics says of a Service is not what gateways of ours count,
	// and an application that was put to sleep by it would have nobody to wake it.
	apps, err := app.New(c, informers, events, app.Options{Logs: &app.API{HTTP: web, Host: host.String()}, Log: p.opts.Log})
	if err != nil {
		return err
	}
	addons, err := addon.New(c, informers, events, addon.Options{StopHook: true, Log: p.opts.Log})
	if err != nil {
		return err
	}
	return runAll(ctx, informers.Start, apps.Run, addons.Run)
}

// runAll runs functions until ctx ends or one of them returns, and waits for all.
func runAll(ctx context.Context, functions ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(functions))
	var running sync.WaitGroup
	for i, f := range functions {
		running.Go(func() {
			defer cancel()
			errs[i] = f(ctx)
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

// newInformers follows what belongs to applications. Of each object it keeps what it is called: that is all that handlers look
// at, and a cluster of somebody else may be large.
func newInformers(config *rest.Config, c client.Client) (cache.Cache, error) {
	ours, err := labels.NewRequirement(v1alpha1.LabelApp, selection.Exists, nil)
	if err != nil {
		return nil, fmt.Errorf("selecting what belongs to applications: %w", err)
	}
	labelled := cache.ByObject{Label: labels.NewSelector().Add(*ours)}
	out, err := cache.New(config, cache.Options{
		Scheme: c.Scheme(), Mapper: c.RESTMapper(), DefaultTransform: onlyMeta,
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}: labelled, &corev1.Service{}: labelled, &corev1.Secret{}: labelled, &corev1.PersistentVolumeClaim{}: labelled,
			&appsv1.Deployment{}: labelled, &appsv1.StatefulSet{}: labelled, &batchv1.Job{}: labelled, &batchv1.CronJob{}: labelled,
			&corev1.ConfigMap{}: {Namespaces: map[string]cache.Config{v1alpha1.PlatformNamespace: {}}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("making informers: %w", err)
	}
	return out, nil
}

// onlyMeta empties an object but for its metadata.
func onlyMeta(obj any) (any, error) {
	object, ok := obj.(client.Object)
	if !ok {
		return obj, nil
	}
	object.SetManagedFields(nil)
	v := reflect.ValueOf(obj).Elem()
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; name != "TypeMeta" && name != "ObjectMeta" {
			v.Field(i).SetZero()
		}
	}
	return obj, nil
}
