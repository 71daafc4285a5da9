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
	Logger        *slog.Logger  // default: discards
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
	dirty  map[dirtyKey]bool

	mu       sync.Mutex // guards the fields below, and the kernel's table
	known    bool       // the kernel has what state says
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
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case c == nil || informers == nil:
		return nil, errors.New("policy: client and informers are required")
	case opts.NodeName == "":
		return nil, errors.New("policy: NodeName is empty")
	case opts.MinInterval < 0 || opts.RetryDelay < 0 || opts.CheckInterval < 0:
		return nil, fmt.Errorf("policy: MinInterval is %v, RetryDelay %v and CheckInterval %v, want 0 or more",
			opts.MinInterval, opts.RetryDelay, opts.CheckInterval)
	}
	return &Enforcer{client: c, informers: informers, opts: opts, log: opts.Logger, wake: make(chan struct{}, 1), ready: make(chan struct{}),
		dirty: map[dirtyKey]bool{}, state: newState(), kernel: newKernel(), covers: map[types.UID]*pod{}}, nil
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
	stop := e.listen(ctx)
	defer stop()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.leave()
	}()
	check := time.NewTicker(e.opts.CheckInterval)
	defer check.Stop()
	for ctx.Err() == nil {
		if err := e.sync(ctx); err != nil {
			if ctx.Err() == nil {
				e.log.Warn("network policies are behind; writing all of their rules anew", "error", err)
			}
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

// listen subscribes to policies, as soon as that can be done. stop ends that.
func (e *Enforcer) listen(ctx context.Context) (stop func()) {
	for {
		stop, err := informer.Listen(ctx, e.informers, informer.Subscription{Object: &networkingv1.NetworkPolicy{}, OnEvent: e.changed})
		if err == nil {
			return stop
		}
		if ctx.Err() == nil {
			e.log.Warn("network policies cannot be watched", "error", err)
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
	e.mu.Lock()
	defer e.mu.Unlock()
	if old := e.covers[p.UID]; !isNew && old != nil && old.same(p) {
		return nil
	}
	e.covers[p.UID] = p
	select {
	case <-e.ready:
	default:
		return nil // the first sync covers it
	}
	if err := e.coverLocked(ctx, p, isNew); err != nil {
		delete(e.covers, p.UID)
		e.poke()
		return fmt.Errorf("covering the pod by network policies: %w", err)
	}
	return nil
}

// coverLocked brings the rules up with one more pod. e.mu is held.
func (e *Enforcer) coverLocked(ctx context.Context, p *pod, isNew bool) error {
	// What was said of policies before the pod was made may still be on its way here. What is no pod of the API, as a build, has
	// no namespace and no policies.
	var list networkingv1.NetworkPolicyList
	if p.Key.Namespace != "" {
		if err := e.client.List(ctx, &list, client.InNamespace(p.Key.Namespace)); err != nil {
			return fmt.Errorf("listing network policies of %s: %w", p.Key.Namespace, err)
		}
	}
	have := e.state.policies[p.Key.Namespace]
	for i := range list.Items {
		if plan := have[list.Items[i].Name]; plan == nil || plan.Version != version(&list.Items[i]) {
			e.changed(nil, &list.Items[i])
		}
	}
	if e.unlisten != nil {
		covered := *p
		e.state.cover(&covered)
	}
	if err := e.syncLocked(ctx); err != nil {
		return err
	}
	if !isNew || !slices.ContainsFunc(p.Addrs, e.state.covered) {
		return nil
	}
	// Replies to who had the address before are none of this pod's.
	e.forget(ofAddrs(p.Addrs))
	return nil
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

// sync brings the rules up.
func (e *Enforcer) sync(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.syncLocked(ctx)
}

// syncLocked is sync with e.mu held.
func (e *Enforcer) syncLocked(ctx context.Context) error {
	err := e.syncDirty(ctx)
	if err == nil && !e.known {
		err = e.syncAll(ctx)
	}
	if err != nil {
		e.known = false
		return err
	}
	select {
	case <-e.ready:
	default:
		close(e.ready)
	}
	return nil
}

// syncAll writes the whole table. e.mu is held.
func (e *Enforcer) syncAll(ctx context.Context) error {
	e.takeDirty() // what came before the lists is in them
	var policies networkingv1.NetworkPolicyList
	if err := e.client.List(ctx, &policies); err != nil {
		return fmt.Errorf("listing network policies: %w", err)
	}
	e.state = newState()
	if len(policies.Items) == 0 {
		e.leave()
		if err := e.kernel.remove(); err != nil {
			return err
		}
		e.known = true
		return nil
	}
	if err := e.enter(ctx); err != nil {
		return err
	}
	if err := e.readAll(ctx); err != nil {
		return err
	}
	for i := range policies.Items {
		e.takePolicy(client.ObjectKeyFromObject(&policies.Items[i]), &policies.Items[i])
	}
	for _, addr := range e.kernel.coveredAddrs() {
		e.state.orphan(addr)
	}
	whole := e.state.whole()
	if err := e.kernel.replace(whole); err != nil {
		return err
	}
	e.known = true
	e.log.Info("rules of network policies written", "policies", len(policies.Items), "pods", len(whole.Cover), "sets", len(whole.NewSets))
	e.cut()
	return nil
}

// readAll fills the state with namespaces and pods. e.mu is held.
func (e *Enforcer) readAll(ctx context.Context) error {
	var namespaces corev1.NamespaceList
	if err := e.client.List(ctx, &namespaces); err != nil {
		return fmt.Errorf("listing namespaces: %w", err)
	}
	var pods corev1.PodList
	if err := e.client.List(ctx, &pods); err != nil {
		return fmt.Errorf("listing pods: %w", err)
	}
	for i := range namespaces.Items {
		e.state.setNamespace(namespaces.Items[i].Name, labelsOf(&namespaces.Items[i]))
	}
	for _, p := range e.covers {
		covered := *p
		e.state.cover(&covered)
	}
	for i := range pods.Items {
		e.takePod(client.ObjectKeyFromObject(&pods.Items[i]), &pods.Items[i])
	}
	return nil
}

// syncDirty writes what changed. e.mu is held.
func (e *Enforcer) syncDirty(ctx context.Context) error {
	if !e.known {
		return nil
	}
	for key := range e.takeDirty() {
		if err := e.take(ctx, key); err != nil {
			return err
		}
	}
	if e.state.empty() == (e.unlisten != nil) { // the first policy, or the last one
		e.known = false
		return nil
	}
	c := e.state.settleAll()
	if !c.empty() {
		if err := e.kernel.apply(c); err != nil {
			return err
		}
	}
	if c.Cuts && !c.empty() {
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
