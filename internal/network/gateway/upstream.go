package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

// transport returns how to speak to a service.
func (s *slowServer) transport(spec *serviceSpec) (t *http.Transport, scheme string) {
	switch {
	case spec.transport != nil:
		return spec.transport, "https"
	case spec.Protocol == BackendH2C:
		return s.h2c, "http"
	}
	return s.plain, "http"
}

const (
	holdPoll   = 5 * time.Millisecond // between tries of an endpoint that is ready and refuses yet
	smallReply = 16 << 10             // a reply up to this is read whole before it is passed on, if it may be tried again
)

// RoundTrip sends a request of the proxy to an endpoint of its service, to others if that
// fails and it may, and waits for one where the service holds.
func (s *slowServer) RoundTrip(r *http.Request) (*http.Response, error) {
	x, ok := r.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		return nil, errors.New("not a request of the gateway")
	}
	t := &tries{s: s, x: x, request: r, safe: idempotent(r.Method) && !x.stream, left: maxTries - 1}
	if x.route.Retry != nil {
		t.codes = min(x.route.Retry.Attempts, 10)
	}
	for {
		response, again, err := t.once(r.Context())
		if err == nil || !again {
			return response, err
		}
		x.rec.detail = err.Error()
	}
}

// tries is the state of one request over its tries.
type tries struct {
	s       *slowServer
	x       *exchange
	request *http.Request
	safe    bool // may be sent twice
	left    int  // after failures
	codes   int  // tries left after answers that the route wants tried again
	tried   []*endpoint
	last    error
}

// once makes one try. again says that there may be another.
func (t *tries) once(ctx context.Context) (response *http.Response, again bool, err error) {
	x := t.x
	service := x.rec.service
	spec, e, err := t.endpoint(ctx)
	if err != nil {
		return nil, false, err
	}
	x.rec.endpoint = e
	x.rec.tries++
	if x.rec.tries > 1 {
		service.stats.retries.Add(1)
	}
	e.active.Add(1)
	response, err = t.send(ctx, spec, e)
	if err != nil {
		e.active.Add(-1)
		if ctx.Err() != nil {
			return nil, false, err
		}
		if x.body == nil || !x.body.failed.Load() {
			service.failed(e, time.Now())
		}
		t.last = err
		refused := connectFailed(err)
		unread := x.body == nil || x.body.read.Load() == 0 && !x.body.failed.Load()
		if !unread || !refused && !t.safe {
			return nil, false, err
		}
		if refused && spec.Hold > 0 { // it was scaled up this moment, and does not listen yet
			return nil, true, t.pause(ctx, spec, holdPoll, err)
		}
		t.tried = append(t.tried, e)
		t.left--
		return nil, t.left >= 0, err
	}
	e.succeeded()
	if t.codes > 0 && t.safe && x.body == nil && slices.Contains(x.route.Retry.Codes, response.StatusCode) {
		t.codes--
		_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10))
		_ = response.Body.Close()
		e.active.Add(-1)
		t.last = nil
		if err := t.pause(ctx, spec, x.route.Retry.Backoff, errors.New(response.Status)); ctx.Err() != nil {
			return nil, false, err
		}
		return nil, true, errors.New(response.Status)
	}
	response.Body = t.counted(response, e)
	return response, false, nil
}

// counted ends the endpoint's count with the answer's body.
func (t *tries) counted(response *http.Response, e *endpoint) io.ReadCloser {
	body := &countedBody{ReadCloser: response.Body, done: func() { e.active.Add(-1) }}
	if rw, ok := response.Body.(io.ReadWriteCloser); ok {
		return struct {
			io.Writer
			*countedBody
		}{rw, body}
	}
	return body
}

// pause waits between tries and returns err, or the context's.
func (t *tries) pause(ctx context.Context, spec *serviceSpec, d time.Duration, err error) error {
	if spec.Hold > 0 && time.Since(t.x.rec.start) > spec.Hold {
		return answerFor(ReasonHoldExpired, err.Error())
	}
	if d <= 0 {
		return err
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return err
	}
}

// endpoint chooses an endpoint, waiting for one where the service holds requests.
func (t *tries) endpoint(ctx context.Context) (*serviceSpec, *endpoint, error) {
	x := t.x
	service := x.rec.service
	for {
		spec := service.spec.Load()
		if e := t.choose(spec); e != nil {
			return spec, e, nil
		}
		switch {
		case t.last != nil && len(spec.ready) > 0 && spec.Hold == 0 && t.left < maxTries-1:
			return nil, nil, t.last
		case !spec.known:
			return nil, nil, answerFor(ReasonBadReference, "the service is not known: "+service.id)
		case spec.Hold == 0 && len(t.tried) > 0:
			t.tried = nil // all have failed once
			continue
		case spec.Hold == 0:
			return nil, nil, answerFor(ReasonNoEndpoint, "no endpoint of "+service.id+" is ready")
		}
		t.tried = nil
		if len(spec.ready) > 0 {
			if err := t.pause(ctx, spec, holdPoll, errors.New("no endpoint answers")); ctx.Err() != nil {
				return nil, nil, err
			} else if a, ok := errors.AsType[*answer](err); ok {
				return nil, nil, a
			}
			continue
		}
		if err := t.hold(ctx, service, spec); err != nil {
			return nil, nil, err
		}
	}
}

// choose applies affinity, then the balance.
func (t *tries) choose(spec *serviceSpec) *endpoint {
	now := time.Now().UnixNano()
	a := spec.Affinity
	if a == nil {
		return spec.pick(t.tried, now)
	}
	if a.Cookie == "" {
		if e := spec.bound(t.x.rec.client, t.tried, now); e != nil {
			return e
		}
		return spec.pick(t.tried, now)
	}
	t.x.cookie = ""
	if c, err := t.x.request.Cookie(a.Cookie); err == nil {
		if e := spec.byCookie(c.Value, t.tried, now); e != nil {
			return e
		}
	}
	e := spec.pick(t.tried, now)
	if e != nil {
		t.x.cookie = a.Cookie + "=" + affinityKey(e.address)
	}
	return e
}

// hold waits until the service changes.
func (t *tries) hold(ctx context.Context, service *service, spec *serviceSpec) error {
	g, x := t.s.g, t.x
	begun := time.Now()
	left := spec.Hold - begun.Sub(x.rec.start)
	if left <= 0 {
		return answerFor(ReasonHoldExpired, "no endpoint of "+service.id+" got ready in "+spec.Hold.String())
	}
	if g.held.Add(1) > int64(x.config.limits.HeldRequests) {
		g.held.Add(-1)
		g.refuse("heldRequests")
		return answerFor(ReasonLimit, "too many requests wait")
	}
	service.stats.held.Add(1)
	service.waiting.Add(1)
	defer func() {
		x.rec.held += time.Since(begun)
		service.waiting.Add(-1)
		service.stats.held.Add(-1)
		g.held.Add(-1)
	}()
	timer := time.NewTimer(left)
	defer timer.Stop()
	remind := time.NewTicker(wakeRepeat)
	defer remind.Stop()
	g.tellWaiting(service, begun)
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-spec.changed:
			return nil
		case now := <-remind.C:
			g.tellWaiting(service, now)
		case <-timer.C:
			return answerFor(ReasonHoldExpired, "no endpoint of "+service.id+" got ready in "+spec.Hold.String())
		}
	}
}

// send sends the request to one endpoint and reads a small answer whole.
func (t *tries) send(ctx context.Context, spec *serviceSpec, e *endpoint) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var timer *time.Timer
	if d := t.x.route.BackendTimeout; d > 0 {
		timer = time.AfterFunc(d, func() { cancel(answerFor(ReasonTimeout, "the route's backend timeout")) })
	}
	transport, scheme := t.s.transport(spec)
	out := t.request.Clone(ctx)
	out.URL.Scheme, out.URL.Host = scheme, e.address
	if t.x.body != nil && t.request.Body != nil { // HTTP/2 has a body even for GET, which the proxy takes away
		out.Body = keptBody{t.request.Body}
	}
	response, err := transport.RoundTrip(out)
	if timer != nil {
		timer.Stop()
	}
	if err == nil && t.safe && response.ContentLength > 0 && response.ContentLength <= smallReply && response.Body != nil && t.request.Method != http.MethodHead {
		var whole []byte
		if whole, err = io.ReadAll(response.Body); err == nil && int64(len(whole)) == response.ContentLength {
			_ = response.Body.Close()
			response.Body = io.NopCloser(bytes.NewReader(whole))
		} else {
			_ = response.Body.Close()
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
		}
	}
	if err != nil {
		if a, ok := errors.AsType[*answer](context.Cause(ctx)); ok {
			err = a
		}
		cancel(nil)
		return nil, err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		response.Body = &countedBody{ReadCloser: response.Body, done: func() { cancel(nil) }}
	} else {
		context.AfterFunc(t.x.request.Context(), func() { cancel(nil) })
	}
	return response, nil
}

// connectFailed reports whether an error says that nothing was sent.
func connectFailed(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// keptBody is not closed by a try that fails: another may come.
type keptBody struct{ io.Reader }

// Close leaves the client's body open; net/http's server closes it.
func (keptBody) Close() error { return nil }

// countedBody calls done once when it is closed.
type countedBody struct {
	io.ReadCloser
	closed atomic.Bool
	done   func()
}

// Close ends the count.
func (b *countedBody) Close() error {
	err := b.ReadCloser.Close()
	if !b.closed.Swap(true) {
		b.done()
	}
	return err
}

// watchedBody is a request's body that may not stall.
type watchedBody struct {
	io.ReadCloser
	control *http.ResponseController
	stall   time.Duration
	limit   int64
	known   bool // its end is near, unlike a stream's
	read    atomic.Int64
	failed  atomic.Bool
	large   atomic.Bool
	slow    atomic.Bool
	ended   atomic.Bool
	by      time.Time
}

// errTooLarge ends a body that is larger than the limit.
var errTooLarge = errors.New("the body is larger than the limit")

// Read waits for the next piece for the stall's time at most.
func (b *watchedBody) Read(p []byte) (int, error) {
	if now := time.Now(); b.known && b.by.Sub(now) < b.stall*3/4 {
		b.by = now.Add(b.stall)
		_ = b.control.SetReadDeadline(b.by)
	}
	n, err := b.ReadCloser.Read(p)
	if total := b.read.Add(int64(n)); b.limit > 0 && total > b.limit {
		b.large.Store(true)
		return 0, errTooLarge
	}
	if err != nil {
		b.ended.Store(true)
		if !errors.Is(err, io.EOF) {
			b.slow.Store(errors.Is(err, os.ErrDeadlineExceeded))
			b.failed.Store(true)
		} else if b.known {
			_ = b.control.SetReadDeadline(time.Time{}) // the server watches the connection from here on
		}
	}
	return n, err
}

// end bounds how long the server waits for the rest of a body that nobody reads.
func (b *watchedBody) end() {
	if b.failed.Load() {
		_ = b.control.SetReadDeadline(time.Unix(1, 0))
	} else if !b.ended.Load() && b.known {
		_ = b.control.SetReadDeadline(time.Now().Add(unreadPatience))
	}
}

// unreadPatience is how long a client may take to send what nobody reads.
const unreadPatience = 5 * time.Second

// countingWriter notes what is answered.
type countingWriter struct {
	http.ResponseWriter
	x     *exchange
	wrote bool
	sent  int64
	begun func() // called when the answer begins, by modify
}

// Unwrap lets net/http find what the writer can do.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader notes the status.
func (w *countingWriter) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		w.x.rec.status, w.wrote = status, true
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write counts.
func (w *countingWriter) Write(p []byte) (int, error) {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, err
}
