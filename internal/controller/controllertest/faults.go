package controllertest

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// Faults says how badly a controller fares. Everything random follows from Seed.
type Faults struct {
	Seed       uint64
	CrashEvery int           // the controller ends after so many writes, before it hears of the last; 0 for never
	Delay      time.Duration // events come up to so much late, those of different objects in any order
	Drop       float64       // share of objects whose events are lost until the next relist
	Relist     time.Duration // what was lost comes within it
	Duplicate  float64       // share of events that come twice
	// Stale is how much Get and List may lag behind the writes of others; a controller's own writes are in what
	// it reads, and so is what its handlers were told. Reads of untyped objects are never stale.
	Stale time.Duration
}

// Runner is a controller.
type Runner interface {
	Run(ctx context.Context) error
}

// errCrashed is what a controller hears of its API after its end.
var errCrashed = errors.New("the controller has crashed")

// Live runs a controller until ctx ends, one life after the other: whenever it crashes, newController
// makes the next, which remembers nothing. It returns how many lives there were.
func Live(ctx context.Context, c client.Client, informers controller.Informers, faults Faults,
	newController func(client.Client, controller.Informers) (Runner, error)) (lives int, err error) {
	for ctx.Err() == nil {
		lives++
		life, cancel := context.WithCancel(ctx)
		f := &faulty{Client: c, informers: informers, faults: faults, random: rand.New(rand.NewPCG(faults.Seed, uint64(lives))), ctx: life, crash: cancel}
		r, err := newController(f, f)
		if err == nil {
			err = r.Run(life)
		}
		cancel()
		f.relays.Wait()
		f.endMirrors()
		if err != nil && ctx.Err() == nil && life.Err() == nil {
			return lives, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	return lives, nil
}

// faulty is the API as one life of a controller sees it.
type faulty struct {
	client.Client
	informers controller.Informers
	faults    Faults
	ctx       context.Context //nolint:containedctx // of the life
	crash     func()
	relays    sync.WaitGroup

	mirrorsMu sync.Mutex // guards mirrors
	mirrors   map[schema.GroupVersionKind]*mirror

	mu     sync.Mutex // guards the fields below
	random *rand.Rand
	writes int
}

func (f *faulty) endMirrors() {
	f.mirrorsMu.Lock()
	defer f.mirrorsMu.Unlock()
	for _, m := range f.mirrors {
		if m.end != nil {
			m.end()
		}
	}
}

// write makes a change to obj, unless the controller is dead; it may be what it dies of.
func (f *faulty) write(ctx context.Context, obj client.Object, change func() error) error {
	if f.ctx.Err() != nil {
		return errCrashed
	}
	f.mu.Lock()
	f.writes++
	last := f.faults.CrashEvery > 0 && f.writes >= f.faults.CrashEvery
	late := f.faults.CrashEvery > 0 && f.writes > f.faults.CrashEvery
	f.mu.Unlock()
	if late {
		return errCrashed
	}
	err := change()
	if last {
		f.crash()
		return errCrashed
	}
	if err == nil && obj != nil {
		f.reached(ctx, obj)
	}
	return err
}

func (f *faulty) chance(share float64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.random.Float64() < share
}

func (f *faulty) upTo(limit time.Duration) time.Duration {
	if limit <= 0 {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Duration(f.random.Int64N(int64(limit)))
}

// Create implements client.Writer.
func (f *faulty) Create(ctx context.Context, obj client.Object, opts ...client.CreateOption) error {
	return f.write(ctx, obj, func() error { return f.Client.Create(ctx, obj, opts...) })
}

// Update implements client.Writer.
func (f *faulty) Update(ctx context.Context, obj client.Object, opts ...client.UpdateOption) error {
	return f.write(ctx, obj, func() error { return f.Client.Update(ctx, obj, opts...) })
}

// Patch implements client.Writer.
func (f *faulty) Patch(ctx context.Context, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
	return f.write(ctx, obj, func() error { return f.Client.Patch(ctx, obj, patch, opts...) })
}

// Delete implements client.Writer.
func (f *faulty) Delete(ctx context.Context, obj client.Object, opts ...client.DeleteOption) error {
	return f.write(ctx, obj, func() error { return f.Client.Delete(ctx, obj, opts...) })
}

// Status implements client.Client.
func (f *faulty) Status() client.SubResourceWriter { return f.SubResource("status") }

// SubResource implements client.Client.
func (f *faulty) SubResource(name string) client.SubResourceClient {
	return faultySub{f.Client.SubResource(name), f}
}

type faultySub struct {
	client.SubResourceClient
	f *faulty
}

// Create implements client.SubResourceWriter.
func (s faultySub) Create(ctx context.Context, obj, sub client.Object, opts ...client.SubResourceCreateOption) error {
	return s.f.write(ctx, obj, func() error { return s.SubResourceClient.Create(ctx, obj, sub, opts...) })
}

// Update implements client.SubResourceWriter.
func (s faultySub) Update(ctx context.Context, obj client.Object, opts ...client.SubResourceUpdateOption) error {
	return s.f.write(ctx, obj, func() error { return s.SubResourceClient.Update(ctx, obj, opts...) })
}

// Patch implements client.SubResourceWriter.
func (s faultySub) Patch(ctx context.Context, obj client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
	return s.f.write(ctx, obj, func() error { return s.SubResourceClient.Patch(ctx, obj, patch, opts...) })
}

// GetInformer implements controller.Informers.
func (f *faulty) GetInformer(ctx context.Context, obj client.Object, opts ...cache.InformerGetOption) (cache.Informer, error) {
	inner, err := f.informers.GetInformer(ctx, obj, opts...)
	if err != nil {
		return nil, err
	}
	return &faultyInformer{inner, f}, nil
}

type faultyInformer struct {
	cache.Informer
	f *faulty
}

// AddEventHandler implements cache.Informer.
func (i *faultyInformer) AddEventHandler(h toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	r := &relay{f: i.f, handler: h, told: map[types.NamespacedName]client.Object{}, latest: map[types.NamespacedName]client.Object{}, due: map[types.NamespacedName]bool{}}
	return i.Informer.AddEventHandler(toolscache.ResourceEventHandlerDetailedFuncs{
		AddFunc:    func(obj any, first bool) { r.observe(obj.(client.Object), false, first) },
		UpdateFunc: func(_, obj any) { r.observe(obj.(client.Object), false, false) },
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			r.observe(obj.(client.Object), true, false)
		},
	})
}

// relay passes events on, late and not all of them. What it leaves out is what a broken watch does:
// the last state of every object comes in the end, and a deletion that was followed by a creation
// looks like a change.
type relay struct {
	f       *faulty
	handler toolscache.ResourceEventHandler

	mu     sync.Mutex // guards the fields below, and calls the handler
	told   map[types.NamespacedName]client.Object
	latest map[types.NamespacedName]client.Object // nil for what is gone
	due    map[types.NamespacedName]bool
}

func (r *relay) observe(obj client.Object, gone, first bool) {
	key := client.ObjectKeyFromObject(obj)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.latest[key] = obj
	if gone {
		r.latest[key] = nil
	}
	if first {
		r.told[key] = obj
		r.handler.OnAdd(obj, true)
		return
	}
	if r.due[key] || r.f.ctx.Err() != nil {
		return
	}
	r.due[key] = true
	wait := r.f.upTo(r.f.faults.Delay)
	if r.f.chance(r.f.faults.Drop) {
		wait = r.f.upTo(r.f.faults.Relist)
	}
	r.f.relays.Go(func() {
		select {
		case <-r.f.ctx.Done():
		case <-time.After(wait):
			r.tell(key)
		}
	})
}

// tell passes on what became of an object since the last time. What is read then is not older.
func (r *relay) tell(key types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.f.faults.Stale > 0 {
		old, current := r.told[key], r.latest[key]
		r.mu.Unlock()
		if show, gone := current, current == nil; show != nil || old != nil {
			if gone {
				show = old
			}
			if m, _ := r.f.mirrorOf(show); m != nil {
				m.reach(r.f.ctx, show, gone)
			}
		}
		r.mu.Lock()
		if r.latest[key] == current {
			break
		}
	}
	r.passOnLocked(key)
}

func (r *relay) passOnLocked(key types.NamespacedName) {
	delete(r.due, key)
	old, current := r.told[key], r.latest[key]
	switch {
	case current == nil && old == nil:
	case current == nil:
		delete(r.told, key)
		r.handler.OnDelete(toolscache.DeletedFinalStateUnknown{Key: key.String(), Obj: old})
	case old == nil:
		r.told[key] = current
		r.handler.OnAdd(current, false)
	default:
		r.told[key] = current
		r.handler.OnUpdate(old, current)
	}
	if current != nil && r.f.chance(r.f.faults.Duplicate) {
		r.handler.OnUpdate(current, current)
	}
}
