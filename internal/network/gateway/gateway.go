package gateway

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Options tunes a Gateway.
type Options struct {
	LogDir    *os.Root           // the access log's; required, stays the caller's
	LogBytes  int64              // of all its files; default 200 MB
	Inherited []*net.TCPListener // listeners of a predecessor; the Gateway's from New on
	Logger    *slog.Logger       // default: discards
	Drain     Drain
}

// Drain bounds how long a gateway that was replaced serves what it has.
type Drain struct {
	Idle     time.Duration // until idle connections are closed; default 5s
	Requests time.Duration // until requests are ended; default 60s
	Tunnels  time.Duration // until tunnels and streams are ended; default 1h
}

// stopDrain bounds the end of a gateway that was not replaced.
const stopDrain = 3 * time.Second

// Gateway serves HTTP by a Table.
type Gateway struct {
	opts    Options
	log     *slog.Logger
	started time.Time
	access  *accessLog
	fails   failures
	dialer  *net.Dialer

	services services
	owners   owners
	config   atomic.Pointer[config]
	slow     *slowServer
	tls      func() *tls.Config
	draining atomic.Bool
	replaced atomic.Bool
	held     atomic.Int64
	logWake  chan struct{}
	expired  context.Context //nolint:containedctx // the end of all requests, which connections outlive
	expire   context.CancelFunc

	mu     sync.Mutex // guards the fields below; tables are replaced one at a time
	table  Table
	parsed map[string]*certificate

	connMu   sync.Mutex // guards the fields below
	conns    map[*conn]struct{}
	byClient map[netip.Addr]int
	refused  map[string]uint64
	connWait sync.WaitGroup // of conns and mirrors

	listenMu   sync.Mutex // guards the fields below
	listens    map[netip.AddrPort]*listening
	inherited  []*net.TCPListener
	listenWake chan struct{}

	eventMu     sync.Mutex // guards the fields below
	subscribers map[chan Event]struct{}
	woken       map[string]time.Time // when a wake was last told, by service
}

// config is what a request needs of the table. It never changes.
type config struct {
	settings   Settings
	limits     Limits // with defaults
	router     *router
	certs      *certStore
	protocols  map[uint16]string
	challenges map[string]string
}

// New checks opts and returns a Gateway that has started nothing; call Run.
func New(opts Options) (*Gateway, error) {
	opts.LogBytes = cmp.Or(opts.LogBytes, 200<<20)
	opts.Drain.Idle = cmp.Or(opts.Drain.Idle, 5*time.Second)
	opts.Drain.Requests = cmp.Or(opts.Drain.Requests, time.Minute)
	opts.Drain.Tunnels = cmp.Or(opts.Drain.Tunnels, time.Hour)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.LogDir == nil || opts.LogBytes < 0 {
		return nil, errors.New("gateway: LogDir is required, LogBytes must not be negative")
	}
	g := &Gateway{opts: opts, log: opts.Logger, started: time.Now(), dialer: backendDialer(),
		access:   &accessLog{root: opts.LogDir, maxBytes: opts.LogBytes, log: opts.Logger},
		services: services{byID: map[string]*service{}}, owners: owners{byKey: map[string]*owner{}}, logWake: make(chan struct{}, 1),
		conns: map[*conn]struct{}{}, byClient: map[netip.Addr]int{}, refused: map[string]uint64{},
		listens: map[netip.AddrPort]*listening{}, inherited: opts.Inherited, listenWake: make(chan struct{}, 1),
		subscribers: map[chan Event]struct{}{}, woken: map[string]time.Time{}}
	g.tls = sync.OnceValue(g.tlsConfig)
	g.expired, g.expire = context.WithCancel(context.Background())
	if err := g.Apply(Table{}); err != nil {
		return nil, err
	}
	g.slow = newSlowServer(g)
	return g, nil
}

// withDefaults fills in what is zero.
func (l Limits) withDefaults() Limits {
	l.HeaderBytes = cmp.Or(l.HeaderBytes, 64<<10)
	l.HeaderCount = cmp.Or(l.HeaderCount, 200)
	l.HeaderTimeout = cmp.Or(l.HeaderTimeout, 10*time.Second)
	l.BodyStall = cmp.Or(l.BodyStall, time.Minute)
	l.Idle = cmp.Or(l.Idle, 2*time.Minute)
	l.Connections = cmp.Or(l.Connections, 10000)
	l.ConnectionsByClient = cmp.Or(l.ConnectionsByClient, 1000)
	l.Streams = cmp.Or(l.Streams, 250)
	l.HeldRequests = cmp.Or(l.HeldRequests, 1000)
	return l
}

func (c *config) trusted(peer netip.Addr) bool {
	for _, p := range c.settings.TrustedProxies {
		if p.Contains(peer) {
			return true
		}
	}
	return false
}

// Apply replaces the whole table. With an error nothing was changed.
func (g *Gateway) Apply(t Table) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := Table{Settings: t.Settings, Listeners: t.Listeners, Certificates: orEmpty(t.Certificates), Routes: orEmpty(t.Routes),
		Services: orEmpty(t.Services), Challenges: orEmpty(t.Challenges), TLSChallenges: orEmpty(t.TLSChallenges)}
	for id, s := range next.Services {
		if err := checkService(id, s); err != nil {
			return err
		}
	}
	commit, err := g.compileLocked(next)
	if err != nil {
		return err
	}
	for id, s := range next.Services {
		if err := g.setServiceLocked(id, s); err != nil {
			return err
		}
	}
	for id := range g.table.Services {
		if _, stays := next.Services[id]; !stays {
			g.services.find(id).replace(Service{}, false, nil)
		}
	}
	commit()
	g.forgetServicesLocked()
	return nil
}

// Update changes parts of the table. With an error nothing was changed.
func (g *Gateway) Update(d Delta) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, s := range d.Services {
		if s != nil {
			if err := checkService(id, *s); err != nil {
				return err
			}
		}
	}
	for id, list := range d.Endpoints {
		if err := checkService(id, Service{Endpoints: list}); err != nil {
			return err
		}
	}
	if d.Settings != nil || d.Listeners != nil || d.Certificates != nil || d.Routes != nil || d.Challenges != nil || d.TLSChallenges != nil {
		next := g.table
		if d.Settings != nil {
			next.Settings = *d.Settings
		}
		if d.Listeners != nil {
			next.Listeners = *d.Listeners
		}
		next.Certificates = merge(next.Certificates, d.Certificates)
		next.TLSChallenges = merge(next.TLSChallenges, d.TLSChallenges)
		next.Routes = mergeIf(next.Routes, d.Routes, func(set []Route) bool { return len(set) > 0 })
		next.Challenges = mergeIf(next.Challenges, d.Challenges, func(auth string) bool { return auth != "" })
		commit, err := g.compileLocked(next)
		if err != nil {
			return err
		}
		commit()
	}
	for id, s := range d.Services {
		if s == nil {
			delete(g.table.Services, id)
			g.services.find(id).replace(Service{}, false, nil)
			continue
		}
		g.table.Services[id] = *s
		if err := g.setServiceLocked(id, *s); err != nil {
			return err
		}
	}
	for id, list := range d.Endpoints {
		if s, ok := g.table.Services[id]; ok {
			s.Endpoints = list
			g.table.Services[id] = s
			g.services.find(id).replace(s, true, g.services.find(id).spec.Load().transport)
		}
	}
	if d.Services != nil || d.Routes != nil {
		g.forgetServicesLocked()
	}
	return nil
}

func orEmpty[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return maps.Clone(m)
}

func merge[V any](have map[string]V, change map[string]*V) map[string]V {
	if change == nil {
		return have
	}
	out := maps.Clone(have)
	for key, value := range change {
		if value == nil {
			delete(out, key)
		} else {
			out[key] = *value
		}
	}
	return out
}

func mergeIf[V any](have, change map[string]V, keep func(V) bool) map[string]V {
	if change == nil {
		return have
	}
	out := maps.Clone(have)
	for key, value := range change {
		if keep(value) {
			out[key] = value
		} else {
			delete(out, key)
		}
	}
	return out
}

func checkService(id string, s Service) error {
	switch s.Protocol {
	case "", BackendHTTP, BackendH2C, BackendHTTPS:
	default:
		return fmt.Errorf("service %s: protocol %q", id, s.Protocol)
	}
	for _, e := range s.Endpoints {
		if !validEndpoint(e.Address) {
			return fmt.Errorf("service %s: endpoint %q", id, e.Address)
		}
	}
	if s.Protocol == BackendHTTPS && s.TLS != nil && len(s.TLS.CA) > 0 {
		if _, err := (&Gateway{}).backendTransport(s.TLS); err != nil {
			return fmt.Errorf("service %s: %w", id, err)
		}
	}
	return nil
}

// setServiceLocked brings a service in line with the table.
func (g *Gateway) setServiceLocked(id string, s Service) error {
	one := g.services.find(id)
	old := one.spec.Load()
	transport := old.transport
	if s.Protocol != BackendHTTPS {
		transport = nil
	} else if transport == nil || !sameTLS(old.TLS, s.TLS) {
		var err error
		if transport, err = g.backendTransport(s.TLS); err != nil {
			return fmt.Errorf("service %s: %w", id, err)
		}
	}
	one.replace(s, true, transport)
	return nil
}

func sameTLS(a, b *BackendTLS) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.ServerName == b.ServerName && slices.Equal(a.CA, b.CA)
}

// compileLocked compiles all of a table but its services; commit makes it what is served.
func (g *Gateway) compileLocked(t Table) (commit func(), err error) {
	protocols := map[uint16]string{}
	for _, l := range t.Listeners {
		if l.Port == 0 || l.Protocol != ProtocolHTTP && l.Protocol != ProtocolHTTPS {
			return nil, fmt.Errorf("listener %s: port %d, protocol %q", l.Name, l.Port, l.Protocol)
		}
		if have := protocols[l.Port]; have != "" && have != l.Protocol {
			return nil, fmt.Errorf("listener %s: port %d has protocol %s already", l.Name, l.Port, have)
		}
		protocols[l.Port] = l.Protocol
	}
	router, err := compileRouter(t.Listeners, t.Routes, g.services.find, g.owners.find)
	if err != nil {
		return nil, err
	}
	certs, parsed, err := compileCerts(t.Listeners, t.Certificates, t.TLSChallenges, g.parsed)
	if err != nil {
		return nil, err
	}
	next := &config{settings: t.Settings, limits: t.Settings.Limits.withDefaults(), router: router, certs: certs, protocols: protocols, challenges: t.Challenges}
	return func() {
		g.table, g.parsed = t, parsed
		g.config.Store(next)
		select {
		case g.listenWake <- struct{}{}:
		default:
		}
	}, nil
}

// forgetServicesLocked drops services that nothing names any more.
func (g *Gateway) forgetServicesLocked() {
	ids := map[string]bool{}
	for id := range g.table.Services {
		ids[id] = true
	}
	for _, set := range g.table.Routes {
		for i := range set {
			for _, b := range set[i].Backends {
				ids[b.Service] = true
			}
		}
	}
	g.services.keep(ids)
	g.owners.keep(g.table.Routes)
}

// Table returns what is served. Its parts are shared: read-only.
func (g *Gateway) Table() Table {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.table
	t.Services = maps.Clone(t.Services)
	return t
}

// Listeners returns the sockets that are listened on, for a successor. They stay the gateway's.
func (g *Gateway) Listeners() []*net.TCPListener {
	g.listenMu.Lock()
	defer g.listenMu.Unlock()
	var out []*net.TCPListener
	for _, l := range g.listens {
		if l.listener != nil {
			out = append(out, l.listener)
		}
	}
	return out
}

// Replaced says that a successor has the listeners: Run, once its context ends, serves what
// it has for as long as Options.Drain allows.
func (g *Gateway) Replaced() { g.replaced.Store(true) }

// Run serves until ctx ends and what was under way has ended too.
func (g *Gateway) Run(ctx context.Context) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.listenLoop(groupCtx) })
	tickCtx, stopTicks := context.WithCancel(context.Background())
	ticks := make(chan struct{})
	go func() { defer close(ticks); g.tick(tickCtx) }()
	err := group.Wait() // no connection is accepted from here on
	g.drain()
	g.connWait.Wait()
	stopTicks()
	<-ticks
	g.expire()
	for _, s := range g.services.list() {
		s.replace(Service{}, false, nil)
	}
	g.slow.closeIdle()
	g.access.close()
	return err
}

// drain ends connections, gently at first.
func (g *Gateway) drain() {
	bounds := Drain{Idle: time.Millisecond, Requests: stopDrain, Tunnels: stopDrain}
	if g.replaced.Load() {
		bounds = g.opts.Drain
	}
	g.draining.Store(true)
	begun := time.Now()
	timer := time.AfterFunc(bounds.Requests, g.expire)
	defer timer.Stop()
	g.waitConns(begun.Add(bounds.Idle))
	g.closeIdleConns()
	ctx, cancel := context.WithDeadline(context.Background(), begun.Add(bounds.Tunnels))
	defer cancel()
	g.slow.shutdown(ctx)
	g.waitConns(begun.Add(bounds.Tunnels))
	g.connMu.Lock()
	left := slices.Collect(maps.Keys(g.conns))
	g.connMu.Unlock()
	for _, c := range left {
		_ = c.Close()
	}
	g.slow.close()
}

// waitConns waits until no connection is left, or a moment.
func (g *Gateway) waitConns(until time.Time) {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for time.Now().Before(until) {
		g.connMu.Lock()
		n := len(g.conns)
		g.connMu.Unlock()
		if n == 0 {
			return
		}
		<-ticker.C
	}
}

// closeIdleConns ends connections of the fast path that wait for a request.
func (g *Gateway) closeIdleConns() {
	g.connMu.Lock()
	defer g.connMu.Unlock()
	for c := range g.conns {
		if c.idle.Load() {
			_ = c.SetReadDeadline(time.Unix(1, 0))
		}
	}
}

// tick does what has to be done now and then until ctx ends.
func (g *Gateway) tick(ctx context.Context) {
	flush := time.NewTicker(logInterval)
	defer flush.Stop()
	pools := time.NewTicker(backendLookLoop)
	defer pools.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-flush.C:
			g.access.flush()
		case <-g.logWake:
			g.access.flush()
		case now := <-pools.C:
			if g.draining.Load() {
				g.closeIdleConns()
			}
			for _, s := range g.services.list() {
				for _, e := range s.spec.Load().all {
					e.pool.expire(now)
				}
			}
		}
	}
}

// Ask answers a Query.
func (g *Gateway) Ask(q Query) Answer {
	switch q.What {
	case QuerySnapshot:
		return Answer{Snapshot: g.snapshot()}
	case QueryFailures:
		return Answer{Failures: g.fails.list(q)}
	case QueryLog:
		entries, err := g.access.read(q)
		if err != nil {
			return Answer{Error: err.Error()}
		}
		return Answer{Log: entries}
	}
	return Answer{Error: fmt.Sprintf("no query is called %q", q.What)}
}

func (g *Gateway) snapshot() *Snapshot {
	now := time.Now()
	s := &Snapshot{At: now, Started: g.started, Services: map[string]ServiceStats{}, Routes: g.owners.read()}
	for _, one := range g.services.list() {
		if stats := one.stats.readAt(now.Sub(g.started), one.spec.Load().Labels); stats.Requests > 0 || stats.InFlight > 0 {
			s.Services[one.id] = stats
		}
	}
	g.connMu.Lock()
	s.Connections, s.Refused = len(g.conns), maps.Clone(g.refused)
	g.connMu.Unlock()
	g.listenMu.Lock()
	defer g.listenMu.Unlock()
	for _, l := range g.listens {
		s.Listeners = append(s.Listeners, l.status)
	}
	slices.SortFunc(s.Listeners, func(a, b ListenerStatus) int { return a.Address.Compare(b.Address) })
	return s
}

// Subscribe calls do with each event until ctx ends or do fails. Events that do is too slow
// for are lost: they are repeated or can be asked for. What listeners have to say comes first.
func (g *Gateway) Subscribe(ctx context.Context, do func(Event) error) error {
	events := make(chan Event, 256)
	g.eventMu.Lock()
	g.subscribers[events] = struct{}{}
	clear(g.woken) // who subscribes hears of all that wait
	g.eventMu.Unlock()
	defer func() {
		g.eventMu.Lock()
		defer g.eventMu.Unlock()
		delete(g.subscribers, events)
	}()
	for _, s := range g.snapshot().Listeners {
		if err := do(Event{Kind: EventListener, Listener: &s}); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-events:
			if err := do(e); err != nil {
				return err
			}
		}
	}
}

// tell sends an event to all subscribers.
func (g *Gateway) tell(e Event) {
	g.eventMu.Lock()
	defer g.eventMu.Unlock()
	for c := range g.subscribers {
		select {
		case c <- e:
		default:
		}
	}
}

// tellWaiting tells that requests wait for a service, at most once in a second.
func (g *Gateway) tellWaiting(s *service, now time.Time) {
	g.eventMu.Lock()
	soon := now.Sub(g.woken[s.id]) < wakeRepeat
	if !soon {
		g.woken[s.id] = now
	}
	g.eventMu.Unlock()
	if !soon {
		g.tell(Event{Kind: EventWake, Service: s.id, Waiting: int(s.waiting.Load())})
	}
}

// wakeRepeat is how often a wake is told again while requests wait.
const wakeRepeat = time.Second

// finish counts and logs a request that has ended.
func (g *Gateway) finish(r *record) {
	end := time.Now()
	took := end.Sub(r.start)
	failed := r.status >= 500 || r.status == 0 && r.reason != ReasonClientGone
	if r.service != nil {
		r.service.stats.end(end.Sub(g.started), took, r.status, r.in, r.out, failed, !r.tunnel)
	}
	if r.route != nil {
		r.route.shared.stats.count(took, r.status, r.in, r.out, failed, !r.tunnel)
	}
	if failed && r.reason == "" {
		r.reason = ReasonUpstreamError
	}
	var sequence uint64
	if g.config.Load().settings.NoAccessLog || r.route != nil && r.route.NoAccessLog {
		if r.reason != "" {
			sequence = g.access.next()
		}
	} else {
		var full bool
		if sequence, full = g.access.add(r, took); full {
			select {
			case g.logWake <- struct{}{}:
			default:
			}
		}
	}
	if r.reason != "" {
		g.fails.add(r.entry(sequence, took))
	}
}
