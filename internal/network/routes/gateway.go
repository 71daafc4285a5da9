package routes

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/informer"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/network/feed"
	"gantry.dev/gantry/internal/network/gateway"
	"gantry.dev/gantry/internal/network/routes/compile"
)

// GatewayOptions says what the edge's gateway serves.
type GatewayOptions struct {
	HTTPPort, HTTPSPort uint16                                 // of Ingress
	Public              []netip.Addr                           // see compile.Options
	NodeName            string                                 // whose annotation says which ports are taken
	Kinds               <-chan struct{}                        // closed when the Gateway API's kinds are served
	Writer              client.Client                          // patches Services and the Node
	Informers           Informers                              // knows the Gateway API's Go types
	Holder              func(at netip.AddrPort) (string, bool) // who listens there: "nginx (pid 7)"
	Say                 func(text string)                      // tells the person at the terminal; may be nil
	Patience            time.Duration                          // how long an edge that serves is not fed until all is known; default 10s
}

// gatewayState is what the feeder knows of the gateway. The Feeder's mutex guards it.
type gatewayState struct {
	opts      GatewayOptions
	objects   *compile.Objects
	synced    bool                 // objects holds all there is
	known     chan struct{}        // closed with synced
	all       bool                 // everything must be compiled
	endpoints map[compile.Key]bool // services whose endpoints changed
	last      *compile.Result      // nil before the first

	sent *gateway.Table // what the edge has; only Run's goroutine touches it
}

func newGatewayState(opts GatewayOptions) *gatewayState {
	opts.Patience = cmp.Or(opts.Patience, 10*time.Second)
	return &gatewayState{opts: opts, objects: compile.NewObjects(), known: make(chan struct{}), endpoints: map[compile.Key]bool{}}
}

// listenGateway subscribes to what the gateway's tables are made of, once all kinds are served. It
// returns when ctx ends.
func (f *Feeder) listenGateway(ctx context.Context) error {
	g := f.gateway
	select {
	case <-ctx.Done():
		return nil
	case <-g.opts.Kinds:
	}
	var subs []informer.Subscription
	for _, kind := range compile.Kinds() {
		subs = append(subs, informer.Subscription{Object: kind, OnEvent: f.gatewayEvent})
	}
	stop, err := informer.Subscribe(ctx, g.opts.Informers, subs...)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("following the gateway's objects: %w", err)
	}
	defer stop()
	f.mu.Lock()
	g.synced, g.all = true, true
	f.mu.Unlock()
	close(g.known)
	f.wakeUp()
	<-ctx.Done()
	return nil
}

// gatewayEvent notes what changed.
func (f *Feeder) gatewayEvent(old, current client.Object) {
	g := f.gateway
	f.mu.Lock()
	g.objects.Put(old, current)
	work := true
	slice, isSlice := either(old, current).(*discoveryv1.EndpointSlice)
	switch {
	case isSlice:
		key := compile.ServiceOf(slice)
		if work = g.last == nil || g.last.ServiceRefs.Has(key); work {
			g.endpoints[key] = true
		}
	case compile.Matters(g.last, old, current):
		g.all = true
	default:
		work = false
	}
	f.mu.Unlock()
	if work {
		f.wakeUp()
	}
}

func either(old, current client.Object) client.Object {
	if current != nil {
		return current
	}
	return old
}

// awaitGateway gives the informers time, so that an edge that serves is not told to serve nothing.
func (f *Feeder) awaitGateway(ctx context.Context, hello feed.Hello) {
	if f.gateway == nil || hello.Generation == 0 {
		return
	}
	timer := time.NewTimer(f.gateway.opts.Patience)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
		f.log.Warn("the gateway's objects are not known yet; the edge serves what it knows of them only after that")
	case <-f.gateway.known:
	}
}

// gatewayTable compiles everything for an edge that is fed anew; nil is no gateway.
func (f *Feeder) gatewayTable() *gateway.Table {
	g := f.gateway
	if g == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !g.synced {
		g.sent = &gateway.Table{}
		return g.sent
	}
	g.sent = f.compileGatewayLocked()
	return g.sent
}

// compileGatewayLocked compiles all there is. Nothing is dirty afterwards.
func (f *Feeder) compileGatewayLocked() *gateway.Table {
	g := f.gateway
	g.all = false
	clear(g.endpoints)
	g.last = compile.Compile(g.objects, compile.Options{HTTPPort: g.opts.HTTPPort, HTTPSPort: g.opts.HTTPSPort, Public: g.opts.Public})
	table := g.last.Table
	return &table
}

// gatewayDelta is what changed since the last call; nil is nothing.
func (f *Feeder) gatewayDelta() *gateway.Delta {
	g := f.gateway
	if g == nil || g.sent == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !g.synced {
		return nil
	}
	if g.all {
		next := f.compileGatewayLocked()
		delta := compile.Diff(g.sent, next)
		g.sent = next
		return delta
	}
	if len(g.endpoints) == 0 {
		return nil
	}
	delta := &gateway.Delta{Endpoints: map[string][]gateway.Endpoint{}}
	for id, svc := range g.sent.Services {
		if !g.endpoints[compile.Key{Namespace: svc.Namespace, Name: svc.Name}] {
			continue
		}
		endpoints := g.objects.Endpoints(id)
		if slices.Equal(endpoints, svc.Endpoints) {
			continue
		}
		if delta.Endpoints[id] = endpoints; endpoints == nil {
			delta.Endpoints[id] = []gateway.Endpoint{}
		}
		svc.Endpoints = endpoints
		g.sent.Services[id] = svc
	}
	clear(g.endpoints)
	if len(delta.Endpoints) == 0 {
		return nil
	}
	return delta
}

// followEdge hears what the edge tells by itself, and connects again when that ends.
func (f *Feeder) followEdge(ctx context.Context) error {
	wakes := map[string]time.Time{}
	for delay := f.opts.RetryDelay; ctx.Err() == nil; {
		begun := time.Now()
		if err := f.hear(ctx, wakes); err != nil && ctx.Err() == nil {
			f.log.Debug("listening to the edge", "error", err)
			delay = min(2*delay, maxRetryDelay)
		}
		if time.Since(begun) > f.opts.RetryDelay {
			delay = f.opts.RetryDelay
		}
		if !lifecycle.Pause(ctx, delay) {
			break
		}
	}
	return nil
}

// hear reads events until the connection ends.
func (f *Feeder) hear(ctx context.Context, wakes map[string]time.Time) error {
	if !f.Ready() {
		return nil
	}
	conn, _, err := dial(ctx, f.opts.Socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := feed.Write(conn, feed.KindEvents, nil); err != nil {
		return err
	}
	ports := map[uint16]string{}
	if err := f.askPorts(ctx, ports); err != nil {
		return err
	}
	f.reportPorts(ctx, ports)
	for {
		var event gateway.Event
		if err := feed.Expect(conn, feed.KindEvent, &event); err != nil {
			return err
		}
		switch event.Kind {
		case gateway.EventWake:
			f.wakeService(ctx, event.Service, wakes)
		case gateway.EventListener:
			clear(ports) // who has a port may have changed with the rest
			if err := f.askPorts(ctx, ports); err != nil {
				return err
			}
			f.reportPorts(ctx, ports)
		}
	}
}

// wakeEvery is how often a service is woken that does not get up.
const wakeEvery = 5 * time.Second

// wakeService says on a Service that requests wait for it.
func (f *Feeder) wakeService(ctx context.Context, id string, wakes map[string]time.Time) {
	now := time.Now()
	if now.Sub(wakes[id]) < wakeEvery {
		return
	}
	maps.DeleteFunc(wakes, func(_ string, at time.Time) bool { return now.Sub(at) > wakeEvery })
	wakes[id] = now
	key := compile.ServiceKey(id)
	svc := &corev1.Service{}
	svc.Namespace, svc.Name = key.Namespace, key.Name
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, compile.AnnotationWake, now.UTC().Format(time.RFC3339Nano))
	if err := f.gateway.opts.Writer.Patch(ctx, svc, client.RawPatch("application/merge-patch+json", []byte(patch))); client.IgnoreNotFound(err) != nil {
		f.log.Warn("waking a service", "namespace", key.Namespace, "name", key.Name, "error", err)
	}
}

// askPorts learns which ports the edge could not take.
func (f *Feeder) askPorts(ctx context.Context, ports map[uint16]string) error {
	snapshot, err := Snapshot(ctx, f.opts.Socket)
	if err != nil {
		return err
	}
	for _, l := range snapshot.Listeners {
		if l.Error == "" {
			continue
		}
		port := l.Address.Port()
		ports[port] = fmt.Sprintf("port %d cannot be listened on: %s", port, l.Error)
		if !l.InUse {
			continue
		}
		ports[port] = fmt.Sprintf("port %d is taken by another program", port)
		if f.gateway.opts.Holder != nil {
			if holder, ok := f.gateway.opts.Holder(l.Address); ok {
				ports[port] = fmt.Sprintf("port %d is taken by %s", port, holder)
			}
		}
	}
	return nil
}

// reportPorts says on the Node which ports are taken, and takes back what is over.
func (f *Feeder) reportPorts(ctx context.Context, ports map[uint16]string) {
	text := compile.WritePorts(ports)
	node := &corev1.Node{}
	if err := f.gateway.opts.Writer.Get(ctx, client.ObjectKey{Name: f.gateway.opts.NodeName}, node); err != nil || node.Annotations[compile.AnnotationPorts] == text {
		return
	}
	set := "null"
	if text != "" {
		set = fmt.Sprintf("%q", text)
		for _, port := range slices.Sorted(maps.Keys(ports)) {
			f.log.Error("the gateway cannot serve", "problem", ports[port])
			if f.gateway.opts.Say != nil {
				f.gateway.opts.Say("gateway: " + ports[port] + "; end it, or choose another port with --gateway-http-port or --gateway-https-port")
			}
		}
	}
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}}}`, compile.AnnotationPorts, set)
	if err := f.gateway.opts.Writer.Patch(ctx, node.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(patch))); err != nil {
		f.log.Warn("saying which ports are taken", "error", err)
	}
}

// Snapshot asks a running edge for the state and counts of its gateway.
func Snapshot(ctx context.Context, socket string) (*gateway.Snapshot, error) {
	answer, err := Query(ctx, socket, gateway.Query{What: gateway.QuerySnapshot})
	if err != nil {
		return nil, err
	}
	if answer.Snapshot == nil {
		return &gateway.Snapshot{}, nil
	}
	return answer.Snapshot, nil
}

// Query asks a running edge about its gateway.
func Query(ctx context.Context, socket string, q gateway.Query) (gateway.Answer, error) {
	var answer gateway.Answer
	conn, _, err := dial(ctx, socket)
	if err != nil {
		return answer, err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(startTimeout))
	if err := feed.Write(conn, feed.KindQuery, q); err != nil {
		return answer, fmt.Errorf("asking the gateway: %w", err)
	}
	if err := feed.Expect(conn, feed.KindAnswer, &answer); err != nil {
		return answer, fmt.Errorf("asking the gateway: %w", err)
	}
	if answer.Error != "" {
		return answer, fmt.Errorf("asking the gateway: %s", answer.Error)
	}
	return answer, nil
}
