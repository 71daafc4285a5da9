package auth

import (
	"context"
	"errors"
	"log/slog"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Aggregator keeps the rules of ClusterRoles with an aggregationRule up to date while roles come, change and go.
type Aggregator struct {
	client    client.Client
	informers Informers
	log       *slog.Logger
}

// NewAggregator returns an Aggregator that has started nothing; call Run. log may be nil.
func NewAggregator(c client.Client, informers Informers, log *slog.Logger) (*Aggregator, error) {
	if c == nil || informers == nil {
		return nil, errors.New("auth: an Aggregator needs a client and informers")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Aggregator{client: c, informers: informers, log: log}, nil
}

// aggregationRetry is how long Run waits after a failure.
const aggregationRetry = 5 * time.Second

// Run aggregates after each change of a ClusterRole until ctx ends. Changes that come while it works are taken
// together.
func (a *Aggregator) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	mark := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	informer, err := a.informers.GetInformer(ctx, &rbacv1.ClusterRole{})
	if err != nil {
		return err
	}
	registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { mark() }, UpdateFunc: func(any, any) { mark() }, DeleteFunc: func(any) { mark() },
	})
	if err != nil {
		return err
	}
	defer func() { _ = informer.RemoveEventHandler(registration) }()
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-retry:
		}
		retry = nil
		if err := AggregateRoles(ctx, a.client); err != nil && ctx.Err() == nil {
			a.log.Warn("aggregating clusterroles", "error", err)
			retry = time.After(aggregationRetry)
		}
	}
}
