package fairness

import (
	"context"
	"maps"
	"slices"
	"sync"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/informer"
)

// Run follows the FlowSchemas and PriorityLevelConfigurations until ctx ends. Until it has seen them all, and while
// there are none, upstream's configuration of a new cluster holds.
func (d *Dispatcher) Run(ctx context.Context, source informer.Source) error {
	var (
		mu       sync.Mutex // guards the fields below
		complete bool
		flows    = map[string]*flowcontrolv1.FlowSchema{}
		levels   = map[string]*flowcontrolv1.PriorityLevelConfiguration{}
	)
	configureLocked := func() {
		if complete && len(flows) > 0 && len(levels) > 0 {
			d.Configure(slices.Collect(maps.Values(flows)), slices.Collect(maps.Values(levels)))
		}
	}
	stop, err := informer.Subscribe(ctx, source,
		informer.Subscription{Object: &flowcontrolv1.PriorityLevelConfiguration{}, OnEvent: func(old, current client.Object) {
			mu.Lock()
			defer mu.Unlock()
			if object, ok := current.(*flowcontrolv1.PriorityLevelConfiguration); ok {
				levels[object.Name] = object
			} else {
				delete(levels, old.GetName())
			}
			configureLocked()
		}},
		informer.Subscription{Object: &flowcontrolv1.FlowSchema{}, OnEvent: func(old, current client.Object) {
			mu.Lock()
			defer mu.Unlock()
			if object, ok := current.(*flowcontrolv1.FlowSchema); ok {
				flows[object.Name] = object
			} else {
				delete(flows, old.GetName())
			}
			configureLocked()
		}})
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer stop()
	mu.Lock()
	complete = true
	configureLocked()
	mu.Unlock()
	<-ctx.Done()
	return nil
}
