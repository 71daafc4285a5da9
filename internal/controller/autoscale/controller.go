package autoscale

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/client-go/discovery"
	autoscalingclient "k8s.io/client-go/kubernetes/typed/autoscaling/v2"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/controller/podautoscaler"
	"k8s.io/kubernetes/pkg/controller/podautoscaler/metrics"
	resourceclient "k8s.io/metrics/pkg/client/clientset/versioned/typed/metrics/v1beta1"
	"k8s.io/metrics/pkg/client/custom_metrics"
	"k8s.io/metrics/pkg/client/external_metrics"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/informer"
)

// Options tunes a Controller. Config is required; the others have kube-controller-manager's defaults.
type Options struct {
	Config *rest.Config // the API, as the controller's own account

	Workers          int           // autoscalers looked at at once; default 5
	Sync             time.Duration // how often each is looked at; default 15s
	DownscaleWindow  time.Duration // stabilization of scaling down where the spec has none; default 5m
	Tolerance        float64       // by how much a metric may be off; default 0.1
	CPUInitialPeriod time.Duration // how long a pod's start may disturb its CPU; default 5m
	ReadinessDelay   time.Duration // within which a pod may become ready for the first time; default 30s
}

// Controller keeps the autoscalers of a cluster. Make one with New, then call Run.
type Controller struct {
	client    client.Client
	informers controller.Informers
	opts      Options
}

// New checks opts and returns a Controller that has started nothing.
func New(c client.Client, informers controller.Informers, opts Options) (*Controller, error) {
	if c == nil || informers == nil || opts.Config == nil {
		return nil, errors.New("autoscale: a client, informers and Options.Config are required")
	}
	opts.Workers = cmp.Or(opts.Workers, 5)
	opts.Sync = cmp.Or(opts.Sync, 15*time.Second)
	opts.DownscaleWindow = cmp.Or(opts.DownscaleWindow, 5*time.Minute)
	opts.Tolerance = cmp.Or(opts.Tolerance, 0.1)
	opts.CPUInitialPeriod = cmp.Or(opts.CPUInitialPeriod, 5*time.Minute)
	opts.ReadinessDelay = cmp.Or(opts.ReadinessDelay, 30*time.Second)
	return &Controller{client: c, informers: informers, opts: opts}, nil
}

// Run looks after the autoscalers until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	config := rest.CopyConfig(c.opts.Config)
	config.QPS = -1 // the API has its own fairness
	events, err := coreclient.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("autoscale: client of events: %w", err)
	}
	scalers, err := autoscalingclient.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("autoscale: client of autoscalers: %w", err)
	}
	measures, available, err := c.metrics(config)
	if err != nil {
		return err
	}
	seen, all := &handlers{}, view{ctx: ctx, client: c.client}
	upstream := podautoscaler.NewHorizontalController(ctx, events, scales{c.client}, scalers, c.client.RESTMapper(), measures,
		hpaView{all, seen}, podView{all},
		c.opts.Sync, c.opts.DownscaleWindow, c.opts.Tolerance, c.opts.CPUInitialPeriod, c.opts.ReadinessDelay)
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { custom_metrics.PeriodicallyInvalidate(available, c.opts.Sync, ctx.Done()) })
	group.Go(func() { upstream.Run(ctx, c.opts.Workers) })
	stop, err := informer.Subscribe(ctx, c.informers, informer.Subscription{Object: &autoscalingv2.HorizontalPodAutoscaler{}, OnEvent: seen.tell})
	if err != nil {
		if ctx.Err() != nil {
			return nil // asked to stop before all was there
		}
		return fmt.Errorf("autoscale: %w", err)
	}
	defer stop()
	seen.synced.Store(true)
	<-ctx.Done()
	return nil
}

// metrics is how upstream's controller asks for metrics: of resources, and of other API servers.
func (c *Controller) metrics(config *rest.Config) (metrics.MetricsClient, custom_metrics.AvailableAPIsGetter, error) {
	resources, err := resourceclient.NewForConfig(config)
	if err != nil {
		return nil, nil, fmt.Errorf("autoscale: client of metrics.k8s.io: %w", err)
	}
	external, err := external_metrics.NewForConfig(config)
	if err != nil {
		return nil, nil, fmt.Errorf("autoscale: client of external.metrics.k8s.io: %w", err)
	}
	groups, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, nil, fmt.Errorf("autoscale: client of discovery: %w", err)
	}
	available := custom_metrics.NewAvailableAPIsGetter(groups)
	custom := custom_metrics.NewForConfig(config, c.client.RESTMapper(), available)
	return metrics.NewRESTMetricsClient(resources, custom, external), available, nil
}
