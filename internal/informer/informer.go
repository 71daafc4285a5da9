// Package informer subscribes components to the events of kinds.
package informer

import (
	"context"
	"errors"
	"fmt"

	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Source gives events of a kind. controller-runtime's cache.Cache satisfies it, and so does
// internal/client's.
type Source interface {
	GetInformer(ctx context.Context, obj client.Object, opts ...cache.InformerGetOption) (cache.Informer, error)
}

// Subscription is a kind and what to do with its events.
type Subscription struct {
	Object client.Object // of the kind; its content does not matter
	// OnEvent gets an added object with old nil and a deleted one with current nil. It must be
	// quick, and must not change the objects.
	OnEvent func(old, current client.Object)
}

// Subscribe is Listen that returns when every handler has seen all objects there were.
func Subscribe(ctx context.Context, source Source, subs ...Subscription) (stop func(), err error) {
	listening, err := listen(ctx, source, subs)
	if err != nil {
		return nil, err
	}
	for _, l := range listening {
		select {
		case <-ctx.Done():
			listening.stop()
			return nil, fmt.Errorf("waiting for the first objects: %w", context.Cause(ctx))
		case <-l.registration.HasSyncedChecker().Done():
		}
	}
	return listening.stop, nil
}

// Listen adds the handlers and returns at once; stop removes them.
func Listen(ctx context.Context, source Source, subs ...Subscription) (stop func(), err error) {
	listening, err := listen(ctx, source, subs)
	if err != nil {
		return nil, err
	}
	return listening.stop, nil
}

// registered is one handler at its informer.
type registered struct {
	informer     cache.Informer
	registration toolscache.ResourceEventHandlerRegistration
}

type handlers []registered

func (h handlers) stop() {
	for _, r := range h {
		_ = r.informer.RemoveEventHandler(r.registration) // an informer that has ended has no handlers
	}
}

func listen(ctx context.Context, source Source, subs []Subscription) (handlers, error) {
	var out handlers
	for _, sub := range subs {
		if sub.Object == nil || sub.OnEvent == nil {
			out.stop()
			return nil, errors.New("informer: a subscription needs Object and OnEvent")
		}
		informer, err := source.GetInformer(ctx, sub.Object)
		if err != nil {
			out.stop()
			return nil, fmt.Errorf("getting the informer for %T: %w", sub.Object, err)
		}
		registration, err := informer.AddEventHandler(handler(sub.OnEvent))
		if err != nil {
			out.stop()
			return nil, fmt.Errorf("watching %T: %w", sub.Object, err)
		}
		out = append(out, registered{informer, registration})
	}
	return out, nil
}

// handler adapts onEvent to client-go, whose deletions may be wrapped.
func handler(onEvent func(old, current client.Object)) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if current, ok := obj.(client.Object); ok {
				onEvent(nil, current)
			}
		},
		UpdateFunc: func(before, after any) {
			old, ok1 := before.(client.Object)
			current, ok2 := after.(client.Object)
			if ok1 && ok2 {
				onEvent(old, current)
			}
		},
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if old, ok := obj.(client.Object); ok {
				onEvent(old, nil)
			}
		},
	}
}
