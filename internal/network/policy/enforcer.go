package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/informer"
	"gantry.dev/gantry/internal/lifecycle"
)

// Informers is where the enforcer hears of changes.
type Informers interface {
	GetInformer(ctx context.Context, obj client.Object, opts ...cache.InformerGetOption) (cache.Informer, error)
}

// Options tunes an Enforcer.
type Options struct {
	NodeName      string        // whose pods are covered; required
	MinInterval   time.Duration // between two transactions; default 20ms
	RetryDelay    time.Duration // before the rules are written anew after an error; default 1s
	CheckInterval time.Duration // between two looks whether the table is whole; default 10s
	// RefreshTimeout bounds the question for policies that a new pod may be ahead of; default 2s.
	RefreshTimeout time.Duration
	Logger         *slog.Logger // default: discards
}

// Enforcer keeps this node's rules equal to the cluster's NetworkPolicies. Its methods may be called at the same time.
type Enforcer struct {
	client    client.Reader
	informers Informers
	opts      Options
	log       *slog.Logger
	wake      chan struct{} // holds one token when there is work
	ready     chan struct{} // closed when the rules were right for the first time

	events sync.Mutex // guards the field below
	dirty  map[dirtyKey]news

	mu       sync.Mutex    // guards the fields below, and the kernel's table
	known    bool          // the kernel has what state says
	adopted  bool          // addresses that had rules before this process are in state
	passed   chan struct{} // closed when Run has done something, for who waits for that
	state    *state
	kernel   *kernel
	covers   map[types.UID]*pod // as Cover said
	unlisten func()             // ends the events of pods and namespaces; nil: there are none
}

// New checks opts and returns an Enforcer that has started nothing; call Run.
func New(c client.Reader, informers Informers, opts Options) (*Enforcer, error) {
	opts.MinInterval = cmp.Or(opts.MinInterval, 20*time.Millisecond)
	opts.RetryDelay = cmp.Or(opts.RetryDelay, time.Second)
	opts.CheckInterval = cmp.Or(opts.CheckInterval, 10*time.Second)
	opts.RefreshTimeout = cmp.Or(opts.RefreshTimeout, 2*time.Second)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case c == nil || informers == nil:
		return nil, errors.New("policy: client and informers are required")
	case opts.NodeName == "":
		return nil, errors.New("policy: NodeName is empty")
	case opts.MinInterval < 0 || opts.RetryDelay < 0 || opts.CheckInterval < 0 || opts.RefreshTimeout < 0:
		return nil, fmt.Errorf("policy: MinInterval is %v, RetryDelay %v, CheckInterval %v and RefreshTimeout %v, want 0 or more",
			opts.MinInterval, opts.RetryDelay, opts.CheckInterval, opts.RefreshTimeout)
	}
	return &Enforcer{client: c, informers: informers, opts: opts, log: opts.Logger, wake: make(chan struct{}, 1), ready: make(chan struct{}),
		dirty: map[dirtyKey]news{}, passed: make(chan struct{}), state: newState(), kernel: newKernel(), covers: map[types.UID]*pod{}}, nil
}

// Cleanup removes the rules from the kernel; no Enforcer may run.
func Cleanup(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("removing the rules of network policies: %w", err)
	}
	return newKernel().remove()
}

// Ready is closed when the rules were right for the first time.
func (e *Enforcer) Ready() <-chan struct{} { return e.ready }

// Run keeps the rules up until ctx ends. The rules stay: pods go on while nobody keeps them.
func (e *Enforcer) Run(ctx context.Context) error {
	stop := e.listen(ctx, informer.Subscription{Object: &networkingv1.NetworkPolicy{}, OnEvent: e.changed})
	defer stop()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.leave()
	}()
	check := time.NewTicker(e.opts.CheckInterval)
	defer check.Stop()
	for ctx.Err() == nil {
		switch err := e.sync(); {
		case errors.Is(err, errNotEntered):
			e.enter(ctx)
			continue
		case err != nil:
			e.log.Warn("network policies are behind; writing all of their rules anew", "error", err)
			if !lifecycle.Pause(ctx, e.opts.RetryDelay) {
				return nil
			}
			continue
		}
		if !lifecycle.Pause(ctx, e.opts.MinInterval) {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-e.wake:
		case <-check.C:
			e.check()
		}
	}
	return nil
}

// listen subscribes to kinds and waits until all of their objects were told, however long that takes. stop ends that.
func (e *Enforcer) listen(ctx context.Context, subs ...informer.Subscription) (stop func()) {
	for {
		stop, err := informer.Subscribe(ctx, e.informers, subs...)
		if err == nil {
			return stop
		}
		if ctx.Err() == nil {
			e.log.Warn("what network policies are made from cannot be watched", "error", err)
		}
		if !lifecycle.Pause(ctx, e.opts.RetryDelay) {
			return func() {}
		}
	}
}

// Drops are packets that network policies dropped on this node since their table was written.
type Drops struct{ Ingress, Egress uint64 }

// Dropped counts what was dropped. Without policies it is nothing.
func (e *Enforcer) Dropped() (Drops, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.kernel.rules == nil {
		return Drops{}, nil
	}
	in, err := e.kernel.dropCount(ingress)
	if err != nil {
		return Drops{}, err
	}
	out, err := e.kernel.dropCount(egress)
	return Drops{in, out}, err
}

// Cover makes the rules for a pod of this node that has, or is about to get, the addresses, and returns when the kernel has
// them. The pod's network is known by uid, which for a static pod is not that of its object. New says that nothing of the pod
// is connected yet: then Cover waits until the policies are known. A pod that runs already has the rules it had.
func (e *Enforcer) Cover(ctx context.Context, uid string, obj *corev1.Pod, addrs []netip.Addr, isNew bool) error {
	p := podOf(obj)
	p.UID, p.Addrs = types.UID(uid), wanted(addrs)
	if isNew {
		select {
		case <-e.ready:
		case <-ctx.Done():
			return fmt.Errorf("waiting for network policies: %w", ctx.Err())
		}
	}
	if isNew && p.Key.Namespace != "" { // what is no pod of the API, as a build, has no policies
		e.refresh(ctx, p.Key.Namespace)
	}
	for {
		passed, err := e.coverNow(p, isNew)
		if !errors.Is(err, errNotEntered) {
			return err
		}
		e.poke()
		select {
		case <-passed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for network policies: %w", ctx.Err())
		}
	}
}

// refresh looks for policies that were made before the pod and are still on their way here. What cannot be asked now, as while no
// server answers, comes as an event.
func (e *Enforcer) refresh(ctx context.Context, namespace string) {
	ctx, cancel := context.WithTimeout(ctx, e.opts.RefreshTimeout)
	defer cancel()
	var list networkingv1.NetworkPolicyList
	if err := e.client.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		e.log.Debug("policies of a new pod cannot be asked for", "namespace", namespace, "error", err)
		return
	}
	for i := range list.Items {
		e.changed(nil, &list.Items[i])
	}
}

// coverNow brings the rules up with one more pod. passed is closed when it may be tried again after errNotEntered.
func (e *Enforcer) coverNow(p *pod, isNew bool) (passed <-chan struct{}, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if old := e.covers[p.UID]; !isNew && old != nil && old.same(p) {
		return nil, nil
	}
	if !isReady(e.ready) {
		e.covers[p.UID] = p
		return nil, nil // the first sync covers it
	}
	if e.unlisten != nil {
		covered := *p
		e.state.cover(&covered)
	}
	if err := e.syncLocked(); err != nil {
		e.poke()
		return e.passed, fmt.Errorf("covering the pod by network policies: %w", err)
	}
	e.covers[p.UID] = p
	if isNew && slices.ContainsFunc(p.Addrs, e.state.covered) {
		// Replies to who had the address before are none of this pod's.
		e.forget(ofAddrs(p.Addrs))
	}
	return nil, nil
}

func isReady(ready <-chan struct{}) bool {
	select {
	case <-ready:
		return true
	default:
		return false
	}
}

// Uncover takes back what Cover did, when the pod's network is gone.
func (e *Enforcer) Uncover(uid string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.covers, types.UID(uid))
	e.state.uncover(types.UID(uid))
	if len(e.state.stale) > 0 {
		e.poke()
	}
}

// errNotEntered says that there are policies now, and pods and namespaces are not watched yet.
var errNotEntered = errors.New("pods and namespaces are not known yet")

// sync brings the rules up and tells who waits for that.
func (e *Enforcer) sync() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	err := e.syncLocked()
	if err == nil && !isReady(e.ready) {
		close(e.ready)
	}
	if !errors.Is(err, errNotEntered) {
		close(e.passed)
		e.passed = make(chan struct{})
	}
	return err
}

// syncLocked takes over what changed and writes it. e.mu is held.
func (e *Enforcer) syncLocked() error {
	for key, n := range e.takeDirty() {
		e.take(key, n)
	}
	var err error
	switch {
	case e.state.empty() && (e.unlisten != nil || !e.known):
		e.leave()
		err = e.kernel.remove()
	case e.state.empty():
	case e.unlisten == nil:
		err = errNotEntered
	case !e.known:
		err = e.writeAll()
	default:
		err = e.writeChange()
	}
	e.known = err == nil
	return err
}

// writeAll writes the whole table. e.mu is held.
func (e *Enforcer) writeAll() error {
	if !e.adopted {
		e.adopted = true
		for _, addr := range e.kernel.coveredAddrs() {
			e.state.orphan(addr)
		}
	}
	whole := e.state.whole()
	if err := e.kernel.replace(whole); err != nil {
		return err
	}
	e.log.Info("rules of network policies written", "pods", len(whole.Cover), "chains", len(whole.NewChains), "sets", len(whole.NewSets))
	e.cut()
	return nil
}

// writeChange writes what is new. e.mu is held.
func (e *Enforcer) writeChange() error {
	c := e.state.settleAll()
	if c.empty() {
		return nil
	}
	if err := e.kernel.apply(c); err != nil {
		return err
	}
	if c.Cuts {
		e.cut()
	}
	return nil
}

// cut ends connections that the rules do not allow any more. e.mu is held.
func (e *Enforcer) cut() {
	own, err := ownAddrs()
	if err != nil {
		e.log.Warn("connections that network policies forbid now may go on", "error", err)
		return
	}
	if n := e.forget(e.state.forbidden(own)); n > 0 {
		e.log.Info("connections cut by network policies", "count", n)
	}
}

// forget removes tracked connections. That it cannot be done is no reason to leave pods without rules.
func (e *Enforcer) forget(match func(*netlink.ConntrackFlow) bool) int {
	n, err := forgetFlows(match)
	if err != nil {
		e.log.Warn("connections that network policies forbid now may go on", "error", err)
	}
	return n
}

// check looks whether somebody removed rules; then they are written anew.
func (e *Enforcer) check() {
	e.mu.Lock()
	defer e.mu.Unlock()
	whole, err := e.kernel.whole()
	if err != nil || !whole {
		e.log.Warn("rules of network policies were removed or cannot be read; writing them anew", "error", err)
		e.known = false
	}
}
