package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

// challengePath is where ACME's http-01 looks.
const challengePath = "/.well-known/acme-challenge/"

// handed is a connection that the fast path gives to net/http with what it has read.
type handed struct {
	net.Conn
	reader *bufio.Reader
	c      *conn
}

// Read reads what was read already first.
func (h *handed) Read(p []byte) (int, error) {
	if h.reader != nil {
		if h.reader.Buffered() > 0 {
			return h.reader.Read(p[:min(len(p), h.reader.Buffered())])
		}
		h.reader = nil
	}
	return h.Conn.Read(p)
}

// slowServer serves with net/http what the fast path does not.
type slowServer struct {
	g       *Gateway
	proxy   *httputil.ReverseProxy
	buffers buffers
	copies  sync.Pool
	plain   *http.Transport // to http backends
	h2c     *http.Transport
	mirrors chan struct{} // slots

	mu      sync.Mutex // guards the fields below
	servers []*limitedServer
	closed  bool // no connection is taken any more
	running sync.WaitGroup
}

// limitedServer is a server of net/http, whose limits cannot be changed. When the table's
// change another takes new connections.
type limitedServer struct {
	*http.Server
	limits Limits
	conns  chan net.Conn
	done   chan struct{}
	once   sync.Once
}

func newSlowServer(g *Gateway) *slowServer {
	s := &slowServer{g: g, plain: g.newTransport(), h2c: g.newTransport(), mirrors: make(chan struct{}, 64)}
	s.h2c.Protocols = new(http.Protocols)
	s.h2c.Protocols.SetUnencryptedHTTP2(true)
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	s.proxy = &httputil.ReverseProxy{Rewrite: s.rewrite, Transport: s, FlushInterval: -1, ErrorLog: quiet, BufferPool: s, ModifyResponse: s.modify, ErrorHandler: s.failed}
	return s
}

// newServer returns a server with limits.
func (s *slowServer) newServer(limits Limits) *limitedServer {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: s, Protocols: protocols, ReadHeaderTimeout: limits.HeaderTimeout, IdleTimeout: limits.Idle, MaxHeaderBytes: limits.HeaderBytes,
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: limits.Streams, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, connOf(c))
		}}
	return &limitedServer{Server: server, limits: limits, conns: make(chan net.Conn), done: make(chan struct{})}
}

// connKey is where a request's context holds its *conn; exchangeKey its *exchange.
type (
	connKey     struct{}
	exchangeKey struct{}
)

// connOf finds the client's connection below what net/http was given.
func connOf(c net.Conn) *conn {
	switch c := c.(type) {
	case *handed:
		return c.c
	case *tls.Conn:
		if below, ok := c.NetConn().(*conn); ok {
			return below
		}
	}
	return nil
}

// Get and Put lend memory to the ReverseProxy.
func (s *slowServer) Get() []byte {
	if b, ok := s.copies.Get().(*[32 << 10]byte); ok {
		return b[:]
	}
	return new([32 << 10]byte)[:]
}

// Put takes it back.
func (s *slowServer) Put(b []byte) { s.copies.Put((*[32 << 10]byte)(b)) }

// newTransport returns a transport to backends with a pool of its own.
func (g *Gateway) newTransport() *http.Transport {
	t := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64, MaxIdleConns: 4096, IdleConnTimeout: backendIdle,
		TLSHandshakeTimeout: 5 * time.Second, ExpectContinueTimeout: time.Second, MaxResponseHeaderBytes: 256 << 10, WriteBufferSize: 16 << 10, ReadBufferSize: 16 << 10,
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second}}
	if g.dialer != nil {
		t.DialContext = g.dialer.DialContext
	}
	return t
}

// Accept waits for a connection.
func (l *limitedServer) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// stopAccepting makes Accept fail.
func (l *limitedServer) stopAccepting() { l.once.Do(func() { close(l.done) }) }

// handedListener makes a net.Listener of a server's own queue.
type handedListener struct{ *limitedServer }

// Close makes Accept fail.
func (l handedListener) Close() error { l.stopAccepting(); return nil }

// Addr is nobody's.
func (l handedListener) Addr() net.Addr { return &net.TCPAddr{} }

// current returns the server with the table's limits, nil after the end.
func (s *slowServer) current() *limitedServer {
	limits := s.g.config.Load().limits
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	if n := len(s.servers); n > 0 && s.servers[n-1].limits == limits {
		return s.servers[n-1]
	}
	server := s.newServer(limits)
	s.servers = append(s.servers, server)
	s.running.Go(func() { _ = server.Serve(handedListener{server}) })
	return server
}

// hand gives a connection to net/http.
func (s *slowServer) hand(c net.Conn) {
	server := s.current()
	if server == nil {
		_ = c.Close()
		return
	}
	select {
	case server.conns <- c:
	case <-server.done:
		_ = c.Close()
	}
}

// shutdown ends connections when they are idle. It waits for requests until ctx ends.
func (s *slowServer) shutdown(ctx context.Context) {
	for _, server := range s.end() {
		_ = server.Shutdown(ctx)
	}
}

// end returns all servers; none is made any more.
func (s *slowServer) end() []*limitedServer {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.servers
}

// close ends what is left and waits for the servers.
func (s *slowServer) close() {
	for _, server := range s.end() {
		server.stopAccepting()
		_ = server.Close()
	}
	s.running.Wait()
}

func (s *slowServer) closeIdle() {
	s.plain.CloseIdleConnections()
	s.h2c.CloseIdleConnections()
}

// serveTLS does the handshake and gives HTTP/2 to net/http.
func (g *Gateway) serveTLS(c *conn) {
	client := tls.Server(c, g.tls())
	ctx, cancel := context.WithTimeout(context.Background(), g.config.Load().limits.HeaderTimeout)
	defer cancel()
	if err := client.HandshakeContext(ctx); err != nil {
		_ = client.Close()
		_ = c.Close()
		return
	}
	switch client.ConnectionState().NegotiatedProtocol {
	case acmeTLS:
		_ = client.Close()
	case "h2":
		g.slow.hand(client)
	default:
		g.serveFast(c, client)
	}
}

// exchange is one request on its way through net/http.
type exchange struct {
	g       *Gateway
	config  *config
	rec     record
	request *http.Request // the client's
	route   *route
	backend *Backend
	path    string // as sent
	host    string
	body    *watchedBody
	cookie  string // to set for affinity
	writer  *countingWriter
	filters []Filter
	stream  bool // may go on when requests have to end
	cancel  context.CancelCauseFunc
	counted *owner // has this request in flying
}

// header and queryValue make an exchange a request.
func (x *exchange) header(name string) (string, bool) {
	if strings.EqualFold(name, "host") {
		return x.request.Host, true
	}
	values := x.request.Header[http.CanonicalHeaderKey(name)]
	if len(values) == 0 {
		return "", false
	}
	return values[0], true
}

func (x *exchange) queryValue(name string) (string, bool) {
	values := x.request.URL.Query()[name]
	if len(values) == 0 {
		return "", false
	}
	return values[0], true
}

// ServeHTTP serves a request of a handed connection.
func (s *slowServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok || c == nil {
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	config := s.g.config.Load()
	x := &exchange{g: s.g, config: config, request: r, host: hostOnly(r.Host), path: r.URL.EscapedPath()}
	if strings.HasPrefix(r.RequestURI, "/") {
		x.path, _, _ = strings.Cut(r.RequestURI, "?")
	}
	x.path = strings.TrimSuffix("/"+strings.TrimPrefix(x.path, "/"), "*")
	id := r.Header.Get("X-Request-Id")
	if !config.trusted(c.peer) || !validID(id) {
		id = newID()
	}
	x.rec = record{start: time.Now(), id: id, client: clientAddress(config, c, r).String(), scheme: c.scheme, protocol: r.Proto, method: []byte(r.Method),
		host: []byte(x.host), path: []byte(x.path), agent: []byte(r.UserAgent()), in: max(r.ContentLength, 0)}
	x.writer = &countingWriter{ResponseWriter: w, x: x}
	w.Header().Set("X-Request-Id", id)
	if s.g.draining.Load() {
		w.Header().Set("Connection", "close") // HTTP/2: GOAWAY
	}
	defer func() {
		aborted := recover() // the proxy panics so when an answer breaks off
		if aborted != nil && x.rec.reason == "" {
			x.rec.reason, x.rec.detail = ReasonUpstreamReset, "the answer broke off"
			if r.Context().Err() != nil {
				x.rec.reason = ReasonClientGone
			}
		}
		if x.rec.status == 0 && x.rec.reason == "" && r.Context().Err() != nil {
			x.rec.reason = ReasonClientGone
		}
		if x.body != nil {
			x.body.end()
			x.rec.in = max(x.rec.in, x.body.read.Load())
		}
		if x.counted != nil {
			x.counted.flying.Add(-1)
		}
		x.rec.out = x.writer.sent
		s.g.finish(&x.rec)
		if aborted == nil && x.rec.reason == ReasonClientGone && !x.writer.wrote {
			aborted = http.ErrAbortHandler // else net/http would say 200
		}
		if aborted != nil {
			panic(aborted)
		}
	}()
	if a := x.serve(s, c); a != nil {
		x.answer(a)
	}
}

// serve does the request or returns what to answer.
func (x *exchange) serve(s *slowServer, c *conn) *answer {
	r, port := x.request, x.config.router.ports[c.port]
	if fields := countFields(r.Header); fields > x.config.limits.HeaderCount {
		s.g.refuse("headerCount")
		return &answer{status: http.StatusRequestHeaderFieldsTooLarge, reason: ReasonLimit, text: "The request has too many header fields."}
	}
	if limit := x.config.limits.BodyBytes; limit > 0 && r.ContentLength > limit {
		s.g.refuse("bodyBytes")
		return &answer{status: http.StatusRequestEntityTooLarge, reason: ReasonLimit, text: "The request is too large."}
	}
	if c.scheme == ProtocolHTTP && strings.HasPrefix(x.path, challengePath) {
		if auth, ok := x.config.challenges[x.path[len(challengePath):]]; ok {
			x.writer.Header().Set("Content-Type", "text/plain")
			_, _ = io.WriteString(x.writer, auth)
			return nil
		}
	}
	if port == nil || r.Method == http.MethodConnect {
		return answerFor(ReasonNoRoute, "no listener has routes here")
	}
	if port.redirect != 0 && c.scheme == ProtocolHTTP {
		status := http.StatusPermanentRedirect
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			status = http.StatusMovedPermanently
		}
		x.redirect(location(r, "https", port.redirect, nil, x.path, &Redirect{}), status)
		return nil
	}
	if x.route = port.find(x.host, r.Method, x.path, x); x.route == nil {
		return answerFor(ReasonNoRoute, "no route fits")
	}
	x.rec.route = x.route
	x.filters = x.route.Filters
	if a := x.limit(s, c); a != nil {
		return a
	}
	if r := x.route.Response; r != nil {
		return x.respond(r)
	}
	for _, f := range x.filters {
		if f.Redirect != nil {
			status := f.Redirect.Status
			if status == 0 {
				status = http.StatusFound
			}
			x.redirect(location(r, c.scheme, c.port, x.route, x.path, f.Redirect), status)
			return nil
		}
	}
	to := x.route.choose()
	if to == nil {
		return answerFor(ReasonBadReference, "the route has no backend with a weight")
	}
	if x.backend = to.Backend; to.Status != 0 || to.service == nil {
		a := answerFor(ReasonBadReference, "the route's backend is not valid: "+to.Service)
		if to.Status != 0 {
			a.status = to.Status
		}
		return a
	}
	if len(to.Filters) > 0 {
		x.filters = append(x.filters[:len(x.filters):len(x.filters)], to.Filters...)
	}
	x.rec.service = to.service
	x.rec.labels = to.service.spec.Load().Labels
	to.service.stats.begin(x.rec.start.Sub(s.g.started))
	return x.pass(s)
}

// limit refuses what is over the route's own limits.
func (x *exchange) limit(s *slowServer, c *conn) *answer {
	l := x.route.Limits
	if l == nil {
		return nil
	}
	if l.BodyBytes > 0 && x.request.ContentLength > l.BodyBytes {
		s.g.refuse("routeBodyBytes")
		return &answer{status: http.StatusRequestEntityTooLarge, reason: ReasonLimit, text: "The request is too large."}
	}
	if l.Rate > 0 && !x.route.shared.rate.allow(clientAddress(x.config, c, x.request), x.rec.start, l.Rate, l.Burst) {
		s.g.refuse("routeRate")
		return &answer{status: http.StatusTooManyRequests, reason: ReasonLimit, text: "Too many requests. Please try again.", retryAfter: int(math.Ceil(1 / l.Rate))}
	}
	if l.Requests > 0 {
		if x.route.shared.flying.Add(1) > int64(l.Requests) {
			x.route.shared.flying.Add(-1)
			s.g.refuse("routeRequests")
			return answerFor(ReasonLimit, "the route has too many requests under way")
		}
		x.counted = x.route.shared
	}
	return nil
}

// bodyLimit is how large a request's body may be; 0 is any size.
func (x *exchange) bodyLimit() int64 {
	limit := x.config.limits.BodyBytes
	if l := x.route.Limits; l != nil && l.BodyBytes > 0 && (limit == 0 || l.BodyBytes < limit) {
		limit = l.BodyBytes
	}
	return limit
}

// pass lets the proxy do the rest.
func (x *exchange) pass(s *slowServer) *answer {
	r := x.request
	ctx, cancel := context.WithCancelCause(context.WithValue(r.Context(), exchangeKey{}, x))
	defer cancel(nil)
	x.cancel = cancel
	stop := context.AfterFunc(s.g.expired, func() {
		if !x.stream || !s.g.replaced.Load() {
			cancel(answerFor(ReasonLimit, "the gateway ends"))
		}
	})
	defer stop()
	x.stream = httpguts.HeaderValuesContainsToken(r.Header["Connection"], "upgrade") || strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
	if x.route.RequestTimeout > 0 {
		timer := time.AfterFunc(x.route.RequestTimeout, func() { cancel(answerFor(ReasonTimeout, "the route's request timeout")) })
		defer timer.Stop()
		x.writer.begun = func() { timer.Stop() }
	}
	if r.Body != nil && r.Body != http.NoBody {
		control := http.NewResponseController(x.writer.ResponseWriter)
		if r.ProtoMajor == 1 {
			_ = control.EnableFullDuplex()
		}
		x.body = &watchedBody{ReadCloser: r.Body, stall: x.config.limits.BodyStall, limit: x.bodyLimit(), control: control, known: r.ContentLength > 0 || r.ProtoMajor == 1}
		r.Body = x.body
	}
	if a := x.mirror(s); a != nil {
		return a
	}
	s.proxy.ServeHTTP(x.writer, r.WithContext(ctx))
	return nil
}

// answer sends a page of the gateway.
func (x *exchange) answer(a *answer) {
	x.rec.reason, x.rec.detail = a.reason, a.detail
	if a.reason == ReasonClientGone || x.writer.wrote {
		return
	}
	contentType, page := a.body(x.request.Header.Get("Accept"), x.rec.id)
	h := x.writer.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(page)))
	if a.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(a.retryAfter))
	}
	if strings.HasPrefix(x.request.Header.Get("Content-Type"), "application/grpc") {
		// A client of gRPC reads the trailers; the status is 200 as the protocol wants it.
		h.Del("Content-Length")
		h.Set("Content-Type", "application/grpc")
		h.Set("Grpc-Status", grpcStatus(a.reason))
		h.Set("Grpc-Message", a.text+" (request "+x.rec.id+")")
		x.writer.WriteHeader(http.StatusOK)
		x.rec.status = a.status
		return
	}
	x.writer.WriteHeader(a.status)
	if x.request.Method != http.MethodHead {
		_, _ = io.WriteString(x.writer, page)
	}
}

// grpcStatus is what a client of gRPC is told: unimplemented, deadline exceeded, else unavailable, which it may try again.
func grpcStatus(reason string) string {
	switch reason {
	case ReasonNoRoute:
		return "12"
	case ReasonTimeout:
		return "4"
	default:
		return "14"
	}
}

func (x *exchange) redirect(to string, status int) {
	x.writer.Header().Set("Location", to)
	x.writer.WriteHeader(status)
}

// respond answers with what the route says.
func (x *exchange) respond(r *Response) *answer {
	if r.Body == "" {
		reason := map[int]string{404: ReasonNoRoute, 503: ReasonNoEndpoint, 500: ReasonBadReference}[r.Status]
		a := answerFor(reason, "the route answers so")
		if a.status = r.Status; reason == "" {
			a.reason, a.text = "", http.StatusText(r.Status)+"."
		}
		return a
	}
	x.writer.Header().Set("Content-Type", r.Type)
	x.writer.WriteHeader(r.Status)
	_, _ = io.WriteString(x.writer, r.Body)
	return nil
}

// clientAddress returns whom a request is from: the last address of X-Forwarded-For that is no
// trusted proxy, if the peer is one.
func clientAddress(config *config, c *conn, r *http.Request) netip.Addr {
	if !config.trusted(c.peer) {
		return c.peer
	}
	client := c.peer
	hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop := strings.TrimSpace(hops[i])
		addr, err := netip.ParseAddr(strings.Trim(hop, "[]"))
		if err != nil {
			if at, err := netip.ParseAddrPort(hop); err == nil {
				addr = at.Addr()
			} else {
				return client
			}
		}
		if client = addr.Unmap().WithZone(""); !config.trusted(client) {
			return client
		}
	}
	return client
}

func countFields(h http.Header) int {
	n := 0
	for _, values := range h {
		n += len(values)
	}
	return n
}

// rewrite makes the request that a backend gets.
func (s *slowServer) rewrite(p *httputil.ProxyRequest) {
	x, ok := p.In.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		return
	}
	c, _ := p.In.Context().Value(connKey{}).(*conn)
	out := p.Out
	out.URL.Scheme, out.URL.Host, out.Host = "http", "backend.invalid", p.In.Host
	out.URL.RawQuery, out.URL.ForceQuery = p.In.URL.RawQuery, p.In.URL.ForceQuery
	if x.path != "" {
		setPath(out.URL, x.path)
	}
	forwarded, scheme, host := x.g.forwarded(x, c, p.In)
	for name := range out.Header {
		if strings.Contains(name, "_") && spoofs(name) {
			out.Header.Del(name)
		}
	}
	for _, name := range []string{"X-Real-Ip", "X-Forwarded-Port", "Forwarded"} {
		out.Header.Del(name)
	}
	out.Header.Set("X-Forwarded-For", forwarded)
	out.Header.Set("X-Forwarded-Proto", scheme)
	out.Header.Set("X-Forwarded-Host", host)
	out.Header.Set("X-Request-Id", x.rec.id)
	if x.config.settings.Forwarded {
		client := x.rec.client
		if strings.Contains(client, ":") {
			client = `"[` + client + `]"`
		}
		out.Header.Set("Forwarded", "for="+client+";proto="+scheme+";host="+strconv.Quote(host))
	}
	for _, f := range x.filters {
		if f.RequestHeaders != nil {
			changeRequestHeaders(out, f.RequestHeaders)
		}
		if f.Rewrite != nil {
			rewrite(out, x.route, x.path, f.Rewrite)
		}
	}
}

// forwarded returns what a backend is told of the client.
func (g *Gateway) forwarded(x *exchange, c *conn, in *http.Request) (chain, scheme, host string) {
	chain, scheme, host = c.client, c.scheme, in.Host
	if !x.config.trusted(c.peer) {
		return chain, scheme, host
	}
	if before := strings.Join(in.Header["X-Forwarded-For"], ", "); before != "" {
		chain = before + ", " + chain
	}
	if told := in.Header.Get("X-Forwarded-Proto"); told == "http" || told == "https" {
		scheme = told
	}
	if told := in.Header.Get("X-Forwarded-Host"); told != "" {
		host = told
	}
	return chain, scheme, host
}

// spoofs reports whether a backend that takes _ for - could take a field for one of ours.
func spoofs(name string) bool {
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	return strings.HasPrefix(name, "x-forwarded-") || name == "forwarded" || name == "x-real-ip" || name == "x-request-id" ||
		name == "transfer-encoding" || name == "content-length" || name == "host"
}

// modify changes an answer on its way to the client.
func (s *slowServer) modify(r *http.Response) error {
	x, ok := r.Request.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		return nil
	}
	r.Header.Del("X-Request-Id") // ours is set already
	for _, f := range x.filters {
		if f.ResponseHeaders != nil {
			changeHeaders(r.Header, f.ResponseHeaders)
		}
	}
	if x.cookie != "" {
		r.Header.Add("Set-Cookie", x.cookie+"; Path=/; HttpOnly; SameSite=Lax")
	}
	if r.StatusCode == http.StatusSwitchingProtocols || strings.HasPrefix(r.Header.Get("Content-Type"), "text/event-stream") {
		x.stream, x.rec.tunnel = true, true
	}
	x.rec.tunnel = x.rec.tunnel || x.stream && r.ProtoMajor == 2
	if x.writer.begun != nil {
		x.writer.begun()
	}
	return nil
}

// failed answers for a backend that did not.
func (s *slowServer) failed(_ http.ResponseWriter, r *http.Request, err error) {
	x, ok := r.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		return
	}
	x.answer(x.answerTo(r.Context(), err))
}

// answerTo says what to answer to an error of a try.
func (x *exchange) answerTo(ctx context.Context, err error) *answer {
	if a, ok := errors.AsType[*answer](context.Cause(ctx)); ok {
		return a
	}
	if a, ok := errors.AsType[*answer](err); ok {
		return a
	}
	if x.body != nil && x.body.slow.Load() {
		x.g.refuse("bodyStall")
		return &answer{status: http.StatusRequestTimeout, reason: ReasonLimit, text: "The request came too slowly.", detail: err.Error()}
	}
	if x.body != nil && x.body.large.Load() {
		x.g.refuse("bodyBytes")
		return &answer{status: http.StatusRequestEntityTooLarge, reason: ReasonLimit, text: "The request is too large."}
	}
	if x.body != nil && x.body.failed.Load() || x.request.Context().Err() != nil {
		return &answer{reason: ReasonClientGone, detail: err.Error()}
	}
	if connectFailed(err) {
		return answerFor(ReasonConnect, err.Error())
	}
	return answerFor(ReasonUpstreamReset, err.Error())
}

// mirror sends a copy of the request where filters say so.
func (x *exchange) mirror(s *slowServer) *answer {
	for _, f := range x.filters {
		m := f.Mirror
		if m == nil || m.Percent > 0 && rand.IntN(100) >= m.Percent || x.stream || x.request.ContentLength > maxMirror || x.request.ContentLength < 0 {
			continue
		}
		var body []byte
		if x.request.ContentLength > 0 {
			var err error
			if body, err = io.ReadAll(io.LimitReader(x.request.Body, maxMirror)); err != nil {
				return x.answerTo(x.request.Context(), err)
			}
			x.request.Body = io.NopCloser(bytes.NewReader(body))
		}
		select {
		case s.mirrors <- struct{}{}:
		default:
			continue // the copy is not worth a wait
		}
		copied := x.request.Clone(context.WithoutCancel(x.request.Context()))
		s.g.connWait.Go(func() {
			defer func() { <-s.mirrors }()
			x.g.sendCopy(s, m.Service, copied, body)
		})
	}
	return nil
}

// maxMirror bounds a mirrored request's body.
const maxMirror = 64 << 10

// sendCopy sends a mirrored request and forgets the answer.
func (g *Gateway) sendCopy(s *slowServer, id string, r *http.Request, body []byte) {
	spec := g.services.find(id).spec.Load()
	e := spec.pick(nil, time.Now().UnixNano())
	if e == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out := r.WithContext(ctx)
	out.RequestURI, out.URL.Scheme, out.URL.Host = "", "http", e.address
	out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	for _, name := range []string{"Connection", "Upgrade", "Te", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Trailer"} {
		out.Header.Del(name)
	}
	transport, scheme := s.transport(spec)
	out.URL.Scheme = scheme
	if answer, err := transport.RoundTrip(out); err == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 1<<20))
		_ = answer.Body.Close()
	}
}
