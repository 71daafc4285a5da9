package server

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/client"
)

// The Leases that say who leads are for people and tools; nothing in Gantry waits for them to expire.
const (
	leaderLease      = 60 * time.Second
	leaderLeaseRenew = 20 * time.Second
)

// clients gives a component its client and informers, see ControlPlane.As.
type clients interface {
	as(opts client.Options, narrowed map[schema.GroupVersionKind]fields.Selector) (*client.Client, *client.Cache, error)
}

// term is the time in which this server leads: what is started with it ends with it.
type term struct {
	*ControlPlane

	run func(name string, f func(context.Context) error)
}

// as is ControlPlane.as with informers that end with the term.
func (t *term) as(opts client.Options, narrowed map[schema.GroupVersionKind]fields.Selector) (*client.Client, *client.Cache, error) {
	c, informers, err := t.newClient(opts, narrowed)
	if err == nil {
		t.run("informers", informers.Start)
	}
	return c, informers, err
}

// asUser is ControlPlane.As with informers that end with the term.
func (t *term) asUser(u user.Info, manager string) (*client.Client, *client.Cache, error) {
	return t.as(client.Options{User: u, Lister: u, Manager: manager}, nil)
}

// lead runs the controllers and the scheduler while this server leads: the one whose store's member leads the others. A
// server that is alone leads always. begun is called when it is known for the first time whether this one does, and
// they have begun if so.
func (cp *ControlPlane) lead(ctx context.Context, begun func()) error {
	begun = sync.OnceFunc(begun)
	for ctx.Err() == nil {
		leading, changed := cp.store.Leading()
		if !leading {
			begun() // elsewhere
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		if err := cp.serveTerm(ctx, changed, begun); err != nil {
			return err
		}
	}
	return nil
}

// serveTerm runs what the leader runs until over is closed, and returns when all of it has ended.
func (cp *ControlPlane) serveTerm(ctx context.Context, over <-chan struct{}, begun func()) error {
	termCtx, end := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer end()
	failed := make(chan error, 64)
	t := &term{ControlPlane: cp, run: func(name string, f func(context.Context) error) {
		group.Go(func() {
			if err := f(termCtx); err != nil && termCtx.Err() == nil {
				failed <- fmt.Errorf("%s: %w", name, err)
				end()
			}
		})
	}}
	start := t.startControllers
	if cp.opts.NoControllers {
		start = t.startScheduler
	}
	if err := start(); err != nil {
		return err
	}
	if cp.store.HasCompany() || cp.opts.Peer != nil {
		t.run("leases", t.keepLeases)
		t.run("comparison of the members", t.compareMembers)
	}
	begun()
	select {
	case <-over:
	case <-termCtx.Done():
	}
	return firstOf(failed)
}

// keepLeases says in the objects that upstream's components elect their leaders by that it is this server.
func (t *term) keepLeases(ctx context.Context) error {
	renew := time.NewTicker(leaderLeaseRenew)
	defer renew.Stop()
	for first := true; ; first = false {
		for _, name := range []string{"kube-controller-manager", "kube-scheduler"} {
			// Who is alone writes it once: idle servers leave the disk alone.
			if !first && !t.store.HasCompany() {
				continue
			}
			if err := t.renewLease(ctx, name, time.Now()); err != nil && ctx.Err() == nil {
				t.opts.Logger.LogAttrs(ctx, slog.LevelInfo, "saying who leads", slog.String("name", name), slog.Any("error", err))
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-renew.C:
		}
	}
}

func (t *term) renewLease(ctx context.Context, name string, now time.Time) error {
	key := ctrlclient.ObjectKey{Namespace: metav1.NamespaceSystem, Name: name}
	there := new(coordinationv1.Lease)
	err := t.admin.Get(ctx, key, there)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	found := err == nil
	next := planLease(there, t.opts.Name, now)
	if found {
		return t.admin.Update(ctx, next)
	}
	next.ObjectMeta = metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}
	return t.admin.Create(ctx, next)
}

// planLease is the lease as holder has it at now.
func planLease(there *coordinationv1.Lease, holder string, now time.Time) *coordinationv1.Lease {
	next := there.DeepCopy()
	at, seconds, changes := metav1.NewMicroTime(now), int32(leaderLease/time.Second), int32(0)
	spec := &next.Spec
	if spec.HolderIdentity == nil || *spec.HolderIdentity != holder {
		if spec.LeaseTransitions != nil {
			changes = *spec.LeaseTransitions + 1
		}
		spec.HolderIdentity, spec.AcquireTime, spec.LeaseTransitions = &holder, &at, &changes
	}
	spec.RenewTime, spec.LeaseDurationSeconds = &at, &seconds
	return next
}

// Leader tells whether this server leads, and which one does as far as it knows ("" while there is none).
func (cp *ControlPlane) Leader() (leading bool, name string) {
	leading, _ = cp.store.Leading()
	return leading, cp.store.Leader()
}

// Leading is whether this server leads; the channel is closed when that changes.
func (cp *ControlPlane) Leading() (leading bool, changed <-chan struct{}) { return cp.store.Leading() }
