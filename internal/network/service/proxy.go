package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/informer"
	"gantry.dev/gantry/internal/lifecycle"
)

// Informers is where the proxy hears of changes.
type Informers interface {
	GetInformer(ctx context.Context, obj client.Object, opts ...cache.InformerGetOption) (cache.Informer, error)
}

// Options tunes a Proxy.
type Options struct {
	NodeName    string        // whose endpoints are local; required
	ClusterCIDR netip.Prefix  // all pods of the cluster; required
	ServiceCIDR netip.Prefix  // all cluster addresses of services; required
	SkipIPs     []netip.Addr  // service addresses that this node answers itself: the DNS address
	MinInterval time.Duration // between two transactions; default 20ms
	RetryDelay  time.Duration // before the full sync that follows an error; default 1s
	// Reset ends the clients' side of connections whose server is gone: one that only waits would not notice. nil does not.
	Reset  func(ctx context.Context, list []Connection) error
	Logger *slog.Logger // default: discards
}

// Proxy keeps this node's rules equal to the cluster's services.
type Proxy struct {
	client    client.Reader
	informers Informers
	opts      Options
	node      nodeView
	log       *slog.Logger
	wake      chan struct{} // holds one token when there is work

	mu     sync.Mutex // guards the fields below
	dirty  map[types.NamespacedName]bool
	silent map[netip.Addr]bool // API servers that do not answer this node
}

// New checks opts and returns a Proxy that has started nothing; call Run.
func New(c client.Reader, informers Informers, opts Options) (*Proxy, error) {
	opts.MinInterval = cmp.Or(opts.MinInterval, 20*time.Millisecond)
	opts.RetryDelay = cmp.Or(opts.RetryDelay, time.Second)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case c == nil || informers == nil:
		return nil, errors.New("service: client and informers are required")
	case opts.NodeName == "":
		return nil, errors.New("service: NodeName is empty")
	case !opts.ClusterCIDR.Addr().Is4() || !opts.ServiceCIDR.Addr().Is4():
		return nil, fmt.Errorf("service: ClusterCIDR is %v and ServiceCIDR %v, want IPv4 prefixes", opts.ClusterCIDR, opts.ServiceCIDR)
	case opts.MinInterval < 0 || opts.RetryDelay < 0:
		return nil, fmt.Errorf("service: MinInterval is %v and RetryDelay %v, want 0 or more", opts.MinInterval, opts.RetryDelay)
	}
	node := nodeView{Name: opts.NodeName, Skip: map[netip.Addr]bool{}}
	for _, ip := range opts.SkipIPs {
		node.Skip[ip] = true
	}
	return &Proxy{client: c, informers: informers, opts: opts, node: node, log: opts.Logger,
		wake: make(chan struct{}, 1), dirty: map[types.NamespacedName]bool{}, silent: map[netip.Addr]bool{}}, nil
}

// Cleanup removes the rules from the kernel; no Proxy may run.
func Cleanup(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("removing the service rules: %w", err)
	}
	return deleteTable()
}

// Run keeps the rules up until ctx ends. The rules stay: connections go on while nobody
// keeps them.
func (p *Proxy) Run(ctx context.Context) error {
	stop, err := p.listen(ctx)
	if err != nil {
		return err
	}
	defer stop()
	k := newKernel(p.opts.ClusterCIDR.Masked(), p.opts.ServiceCIDR.Masked())
	var want *desired // nil: the kernel's state is unknown
	for ctx.Err() == nil {
		next := p.opts.MinInterval
		if want == nil {
			want, err = p.syncAll(ctx, k)
		} else {
			err = p.syncDirty(ctx, k, want)
		}
		if err != nil && ctx.Err() == nil {
			p.log.Warn("service rules are behind; writing all of them anew", "error", err)
			want, next = nil, p.opts.RetryDelay
		}
		if !lifecycle.Pause(ctx, next) {
			return nil
		}
		if want == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-p.wake:
		}
	}
	return nil
}

// listen subscribes to changes. stop ends that.
func (p *Proxy) listen(ctx context.Context) (stop func(), err error) {
	onEvent := func(old, current client.Object) { p.changed(old); p.changed(current) }
	return informer.Listen(ctx, p.informers,
		informer.Subscription{Object: &corev1.Service{}, OnEvent: onEvent},
		informer.Subscription{Object: &discoveryv1.EndpointSlice{}, OnEvent: onEvent})
}

// changed notes the service that an event is about.
func (p *Proxy) changed(obj client.Object) {
	var key types.NamespacedName
	switch o := obj.(type) {
	case *corev1.Service:
		key = client.ObjectKeyFromObject(o)
	case *discoveryv1.EndpointSlice:
		name := o.Labels[discoveryv1.LabelServiceName]
		if name == "" {
			return
		}
		key = types.NamespacedName{Namespace: o.Namespace, Name: name}
	default:
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noteLocked(key)
}

// noteLocked asks for a look at a service. p.mu is held.
func (p *Proxy) noteLocked(key types.NamespacedName) {
	p.dirty[key] = true
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// takeDirty returns the services to look at and starts a new list.
func (p *Proxy) takeDirty() map[types.NamespacedName]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := p.dirty
	p.dirty = map[types.NamespacedName]bool{}
	return taken
}

// syncAll writes the whole table.
func (p *Proxy) syncAll(ctx context.Context, k *kernel) (*desired, error) {
	p.takeDirty() // what came before the lists is in them
	var services corev1.ServiceList
	if err := p.client.List(ctx, &services); err != nil {
		return nil, fmt.Errorf("listing services: %w", err)
	}
	var endpointSlices discoveryv1.EndpointSliceList
	if err := p.client.List(ctx, &endpointSlices); err != nil {
		return nil, fmt.Errorf("listing endpoint slices: %w", err)
	}
	byService := map[types.NamespacedName][]discoveryv1.EndpointSlice{}
	for _, s := range endpointSlices.Items {
		key := types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
		byService[key] = append(byService[key], s)
	}
	want := newDesired()
	touched := map[elementKey]bool{}
	for i := range services.Items {
		key := client.ObjectKeyFromObject(&services.Items[i])
		want.set(key.String(), p.elementsOf(&services.Items[i], byService[key]), touched)
	}
	if err := k.replace(planChange(want, nil, touched).Add); err != nil {
		return nil, err
	}
	p.log.Info("service rules written", "services", len(services.Items), "elements", len(k.have))
	return want, nil
}

// syncDirty writes what changed.
func (p *Proxy) syncDirty(ctx context.Context, k *kernel, want *desired) error {
	touched := map[elementKey]bool{}
	servers := want.byService[apiServers().String()]
	for key := range p.takeDirty() {
		elements, err := p.planOne(ctx, key)
		if err != nil {
			return err
		}
		want.set(key.String(), elements, touched)
	}
	c := planChange(want, k.have, touched)
	if c.empty() {
		return nil
	}
	stale, lost, dead := planStale(c, k.have, want), lostEndpoints(c, k.have, want), planCut(c, k.have, want, servers)
	if err := k.apply(c); err != nil {
		return err
	}
	if len(lost) > 0 {
		if err := k.forgetClients(lost); err != nil {
			return err
		}
	}
	if err := forgetFlows(stale); err != nil {
		return err
	}
	return p.cut(ctx, dead)
}

// planOne reads one service and plans it; one that is gone needs nothing.
func (p *Proxy) planOne(ctx context.Context, key types.NamespacedName) (map[elementKey]elementValue, error) {
	var svc corev1.Service
	if err := p.client.Get(ctx, key, &svc); apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading service %s: %w", key, err)
	}
	var endpointSlices discoveryv1.EndpointSliceList
	if err := p.client.List(ctx, &endpointSlices, client.InNamespace(key.Namespace),
		client.MatchingLabels{discoveryv1.LabelServiceName: key.Name}); err != nil {
		return nil, fmt.Errorf("listing endpoint slices of %s: %w", key, err)
	}
	return p.elementsOf(&svc, endpointSlices.Items), nil
}

// elementsOf plans one service. The list is shared.
func (p *Proxy) elementsOf(svc *corev1.Service, list []discoveryv1.EndpointSlice) map[elementKey]elementValue {
	if isAPIServers(svc) {
		list = p.heard(list)
	}
	return planService(svc, list, p.node).elements()
}
