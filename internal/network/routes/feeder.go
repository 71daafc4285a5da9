package routes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/informer"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/network/dns"
	"gantry.dev/gantry/internal/network/feed"
)

// Informers is where the feeder hears of changes.
type Informers interface {
	GetInformer(ctx context.Context, obj client.Object, opts ...cache.InformerGetOption) (cache.Informer, error)
}

// Options says which edge to keep and what it serves.
type Options struct {
	Binary      string           // gantry-edge's path
	Socket      string           // its control socket, at most 107 bytes
	StateDir    string           // its last good table
	LogFile     string           // where it logs; default StateDir + ".log"
	UID         int              // user and group it becomes; 0 stays. Default 0
	Listen      []netip.AddrPort // where it answers DNS: the cluster's DNS address, port 53
	ResolvConf  string           // names the servers it forwards to; default /etc/resolv.conf
	Domain      string           // default "cluster.local"
	Ranges      []netip.Prefix   // of services and pods, for reverse names
	MinInterval time.Duration    // between two updates; default 10ms
	RetryDelay  time.Duration    // after an error; default 100ms
	Gateway     *GatewayOptions  // nil: the edge answers DNS only
	Logger      *slog.Logger     // default: discards
}

// maxRetryDelay bounds the wait for an edge that does not start.
const maxRetryDelay = 5 * time.Second

// itemKey names what a set of records is made of.
type itemKey struct {
	kind string // "service" or "namespace"
	types.NamespacedName
}

func (k itemKey) String() string { return k.kind + "/" + k.NamespacedName.String() }

// Feeder keeps one edge.
type Feeder struct {
	client    client.Reader
	informers Informers
	opts      Options
	log       *slog.Logger
	wake      chan struct{} // holds one token when there is work
	children  []int         // edges that we started and have not reaped; only Run touches it
	gateway   *gatewayState // nil without a gateway

	mu    sync.Mutex // guards the fields below
	dirty map[itemKey]bool
	ready bool
}

// New checks opts and returns a Feeder that has started nothing; call Run.
func New(c client.Reader, informers Informers, opts Options) (*Feeder, error) {
	opts.Domain = cmp.Or(opts.Domain, "cluster.local")
	opts.ResolvConf = cmp.Or(opts.ResolvConf, "/etc/resolv.conf")
	opts.LogFile = cmp.Or(opts.LogFile, opts.StateDir+".log")
	opts.MinInterval = cmp.Or(opts.MinInterval, 10*time.Millisecond)
	opts.RetryDelay = cmp.Or(opts.RetryDelay, 100*time.Millisecond)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if c == nil || informers == nil {
		return nil, errors.New("routes: client and informers are required")
	}
	for name, path := range map[string]string{"Binary": opts.Binary, "Socket": opts.Socket, "StateDir": opts.StateDir, "LogFile": opts.LogFile} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("routes: %s is %q, want an absolute path", name, path)
		}
	}
	if len(opts.Socket) > 107 || len(opts.Listen) == 0 || opts.UID < 0 {
		return nil, fmt.Errorf("routes: Socket has %d bytes, Listen %d addresses, UID is %d: want at most 107, one or more, 0 or more", len(opts.Socket), len(opts.Listen), opts.UID)
	}
	f := &Feeder{client: c, informers: informers, opts: opts, log: opts.Logger, wake: make(chan struct{}, 1), dirty: map[itemKey]bool{}}
	if g := opts.Gateway; g != nil {
		if g.Kinds == nil || g.Writer == nil || g.Informers == nil || g.NodeName == "" {
			return nil, errors.New("routes: Gateway needs Kinds, Writer, Informers and NodeName")
		}
		f.gateway = newGatewayState(*g)
	}
	return f, nil
}

// Ready reports whether the edge runs and has the whole table.
func (f *Feeder) Ready() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ready
}

func (f *Feeder) setReady(ready bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ready = ready
}

// Run keeps the edge running and fed until ctx ends. The edge goes on then.
func (f *Feeder) Run(ctx context.Context) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return f.keep(groupCtx) })
	if f.gateway != nil {
		group.Go(func() error { return f.listenGateway(groupCtx) })
		group.Go(func() error { return f.followEdge(groupCtx) })
	}
	return group.Wait()
}

// keep has sessions with the edge, one after the other.
func (f *Feeder) keep(ctx context.Context) error {
	stop, err := f.listen(ctx)
	if err != nil {
		return err
	}
	defer stop()
	delay, said := f.opts.RetryDelay, ""
	for ctx.Err() == nil {
		begun := time.Now()
		err := f.session(ctx)
		f.setReady(false)
		f.reap()
		if ctx.Err() != nil {
			break
		}
		// One that served for a while is replaced at once; one that cannot start is tried less and
		// less often, and what keeps it is said once.
		if served := time.Since(begun) >= f.opts.RetryDelay; served {
			delay, said = f.opts.RetryDelay, ""
		}
		if text := fmt.Sprint(err); text != said {
			f.log.Warn("the edge is gone; starting or finding one", "error", err)
			said = text
			continue
		}
		if !lifecycle.Pause(ctx, delay) {
			break
		}
		delay = min(2*delay, maxRetryDelay)
	}
	return nil
}

// session feeds one edge until it is gone (io.EOF), something fails, or ctx ends.
func (f *Feeder) session(ctx context.Context) error {
	conn, hello, err := f.connect(ctx)
	if err != nil {
		return err
	}
	answers := make(chan answer, 1)
	var reader sync.WaitGroup
	reader.Go(func() { readAnswers(conn, answers) })
	defer reader.Wait()
	defer func() { _ = conn.Close() }()

	f.awaitGateway(ctx, hello)
	generation := hello.Generation + 1
	f.takeDirty() // what came before the lists is in them
	table, err := f.table(ctx)
	if err != nil {
		return err
	}
	if err := send(ctx, conn, answers, feed.KindTable, feed.Table{Generation: generation, DNS: table, Gateway: f.gatewayTable()}); err != nil {
		return err
	}
	f.setReady(true)
	f.log.Info("edge fed", "pid", hello.PID, "sets", len(table.Sets))
	for {
		if !lifecycle.Pause(ctx, f.opts.MinInterval) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case a, open := <-answers:
			return errors.Join(errors.New("the connection to the edge ended"), a.result(open))
		case <-f.wake:
		}
		f.reap()
		sets := map[string][]dns.Record{}
		for key := range f.takeDirty() {
			if sets[key.String()], err = f.compile(ctx, key); err != nil {
				return err
			}
		}
		changed := f.gatewayDelta()
		if len(sets) == 0 && changed == nil {
			continue
		}
		generation++
		if err := send(ctx, conn, answers, feed.KindDelta, feed.Delta{Generation: generation, DNS: sets, Gateway: changed}); err != nil {
			return err
		}
	}
}

// answer is what the edge said, or why it says nothing more.
type answer struct {
	ack feed.Ack
	err error
}

// readAnswers reads until the connection ends, so that the edge's death is seen at once, and
// closes answers then. At most one request is under way, so it never waits to hand one on.
func readAnswers(conn net.Conn, answers chan<- answer) {
	defer close(answers)
	for {
		var a answer
		a.err = feed.Expect(conn, feed.KindAck, &a.ack)
		if errors.Is(a.err, io.EOF) {
			return
		}
		select {
		case answers <- a:
		default:
			return // nobody asked
		}
		if a.err != nil {
			return
		}
	}
}

// result returns what an answer says; a closed channel is io.EOF.
func (a answer) result(open bool) error {
	if !open {
		return io.EOF
	}
	return a.err
}

// send makes a request and waits for its answer.
func send(ctx context.Context, conn net.Conn, answers <-chan answer, kind feed.Kind, body any) error {
	_ = conn.SetWriteDeadline(time.Now().Add(startTimeout))
	if err := feed.Write(conn, kind, body); err != nil {
		return err
	}
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return errors.New("the edge does not answer")
	case a, open := <-answers:
		return a.result(open)
	}
}

// table compiles everything.
func (f *Feeder) table(ctx context.Context) (dns.Table, error) {
	t := dns.Table{Config: dns.Config{Domain: f.opts.Domain, Ranges: f.opts.Ranges},
		Sets: map[string][]dns.Record{"version": versionRecords(f.opts.Domain)}}
	var namespaces corev1.NamespaceList
	var services corev1.ServiceList
	var endpointSlices discoveryv1.EndpointSliceList
	for _, list := range []client.ObjectList{&namespaces, &services, &endpointSlices} {
		if err := f.client.List(ctx, list); err != nil {
			return t, fmt.Errorf("listing %T: %w", list, err)
		}
	}
	for i := range namespaces.Items {
		key := itemKey{"namespace", client.ObjectKeyFromObject(&namespaces.Items[i])}
		t.Sets[key.String()] = namespaceRecords(key.Name, f.opts.Domain)
	}
	byService := map[types.NamespacedName][]discoveryv1.EndpointSlice{}
	for _, s := range endpointSlices.Items {
		key := types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
		byService[key] = append(byService[key], s)
	}
	for i := range services.Items {
		key := client.ObjectKeyFromObject(&services.Items[i])
		t.Sets[itemKey{"service", key}.String()] = serviceRecords(&services.Items[i], byService[key], f.opts.Domain)
	}
	return t, nil
}

// compile reads and compiles one item; what is gone has no records.
func (f *Feeder) compile(ctx context.Context, key itemKey) ([]dns.Record, error) {
	if key.kind == "namespace" {
		err := f.client.Get(ctx, key.NamespacedName, &corev1.Namespace{})
		if apierrors.IsNotFound(err) {
			return nil, nil
		} else if err != nil {
			return nil, fmt.Errorf("reading %s: %w", key, err)
		}
		return namespaceRecords(key.Name, f.opts.Domain), nil
	}
	var svc corev1.Service
	if err := f.client.Get(ctx, key.NamespacedName, &svc); apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading %s: %w", key, err)
	}
	var endpointSlices discoveryv1.EndpointSliceList
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		if err := f.client.List(ctx, &endpointSlices, client.InNamespace(key.Namespace),
			client.MatchingLabels{discoveryv1.LabelServiceName: key.Name}); err != nil {
			return nil, fmt.Errorf("listing endpoint slices of %s: %w", key, err)
		}
	}
	return serviceRecords(&svc, endpointSlices.Items, f.opts.Domain), nil
}

// listen subscribes to changes. stop ends that.
func (f *Feeder) listen(ctx context.Context) (stop func(), err error) {
	var subs []informer.Subscription
	for _, kind := range []client.Object{&corev1.Namespace{}, &corev1.Service{}, &discoveryv1.EndpointSlice{}} {
		subs = append(subs, informer.Subscription{Object: kind, OnEvent: func(old, current client.Object) { f.changed(old); f.changed(current) }})
	}
	return informer.Listen(ctx, f.informers, subs...)
}

// changed notes what an event is about.
func (f *Feeder) changed(obj client.Object) {
	var key itemKey
	switch o := obj.(type) {
	case *corev1.Namespace:
		key = itemKey{"namespace", client.ObjectKeyFromObject(o)}
	case *corev1.Service:
		key = itemKey{"service", client.ObjectKeyFromObject(o)}
	case *discoveryv1.EndpointSlice:
		name := o.Labels[discoveryv1.LabelServiceName]
		if name == "" {
			return
		}
		key = itemKey{"service", types.NamespacedName{Namespace: o.Namespace, Name: name}}
	default:
		return
	}
	f.mu.Lock()
	f.dirty[key] = true
	f.mu.Unlock()
	f.wakeUp()
}

// wakeUp tells the session that there is work.
func (f *Feeder) wakeUp() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *Feeder) takeDirty() map[itemKey]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	taken := f.dirty
	f.dirty = map[itemKey]bool{}
	return taken
}
