package gateway

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/net/http/httpguts"
)

// fastBuffer bounds a request, head and body, on the fast path.
const fastBuffer = 4 << 10

// bodyPatience is how long the fast path waits for a small body that has not come with its head.
const bodyPatience = 20 * time.Millisecond

// maxTries bounds how often a request is sent when endpoints fail.
const maxTries = 4

// fast serves one connection's plain requests.
type fast struct {
	g      *Gateway
	c      *conn
	client net.Conn // c, or TLS over it
	reader *bufio.Reader
	head   requestHead
	answer responseHead
	rec    record
	tried  []*endpoint
}

// outcome is how a request on the fast path ended.
type outcome byte

const (
	served   outcome = iota // the connection goes on
	finished                // the connection has to be closed
	handOver                // nothing was sent to the client: net/http serves the request
)

// scratch is memory for one request.
type scratch struct {
	request, response []byte
	copy              []byte
}

// buffers lends scratches.
type buffers struct{ pool sync.Pool }

func (b *buffers) get() *scratch {
	if s, ok := b.pool.Get().(*scratch); ok {
		return s
	}
	return &scratch{}
}

func (b *buffers) put(s *scratch) { b.pool.Put(s) }

// text views bytes as a string, for as long as they do not change.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// header and queryValue make a requestHead a request.
func (h *requestHead) header(name string) (string, bool) {
	for i := range h.fields {
		if len(h.fields[i].name) == len(name) && strings.EqualFold(text(h.fields[i].name), name) {
			return text(h.fields[i].value), true
		}
	}
	return "", false
}

func (h *requestHead) queryValue(name string) (string, bool) {
	if len(h.query) == 0 {
		return "", false
	}
	values, err := url.ParseQuery(text(h.query))
	if err != nil || values[name] == nil {
		return "", false
	}
	return values[name][0], true
}

// serveFast serves a connection until it ends or net/http takes it.
func (g *Gateway) serveFast(c *conn, client net.Conn) {
	f := &fast{g: g, c: c, client: client, reader: bufio.NewReaderSize(client, fastBuffer)}
	for {
		config := g.config.Load()
		verdict, ok := f.readHead(config)
		if !ok {
			_ = client.Close()
			return
		}
		result := handOver
		if verdict == plain {
			result = f.serve(config)
		}
		switch result {
		case handOver:
			if !c.readBy.IsZero() {
				c.readBy = time.Time{}
				_ = client.SetReadDeadline(time.Time{})
			}
			g.slow.hand(&handed{Conn: client, reader: f.reader, c: c})
			return
		case finished:
			_ = client.Close()
			return
		case served:
			if _, err := f.reader.Discard(f.head.size + int(f.head.length)); err != nil {
				_ = client.Close()
				return
			}
		}
	}
}

// readHead waits for a request. A plain one is in the buffer whole, with its body.
func (f *fast) readHead(config *config) (verdict, bool) {
	for waited := false; ; {
		n := f.reader.Buffered()
		if n > 0 {
			b, err := f.reader.Peek(n)
			if err != nil {
				return unusual, false
			}
			if v := parseRequest(b, &f.head, config.limits.HeaderCount); v == unusual {
				return unusual, true
			} else if v == plain {
				return f.readBody(n), true
			}
		}
		if n >= fastBuffer {
			return unusual, true
		}
		now := time.Now()
		if n == 0 {
			f.c.idle.Store(true)
			if f.g.draining.Load() && f.g.expired.Err() != nil {
				return unusual, false
			}
			if left := f.c.readBy.Sub(now); left < config.limits.Idle*3/4 || left > config.limits.Idle {
				f.setReadBy(now.Add(config.limits.Idle))
			}
		} else if !waited {
			waited = true
			f.setReadBy(now.Add(config.limits.HeaderTimeout))
		}
		_, err := f.reader.Peek(n + 1)
		f.c.idle.Store(false)
		if err != nil {
			if n > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
				f.g.refuse("headerTimeout")
			}
			return unusual, false
		}
	}
}

// readBody waits a little for a small body; what is larger or slower is streamed by net/http.
func (f *fast) readBody(buffered int) verdict {
	total := int64(f.head.size) + f.head.length
	if total <= int64(buffered) {
		return plain
	}
	if total > fastBuffer {
		return unusual
	}
	f.setReadBy(time.Now().Add(bodyPatience))
	b, err := f.reader.Peek(int(total))
	if err != nil || parseRequest(b, &f.head, len(f.head.fields)) != plain { // the buffer may have moved
		return unusual
	}
	return plain
}

func (f *fast) setReadBy(by time.Time) {
	f.c.readBy = by
	_ = f.client.SetReadDeadline(by)
}

// serve finds the route of a plain request and serves it if nothing about it is unusual.
func (f *fast) serve(config *config) outcome {
	h := &f.head
	port := config.router.ports[f.c.port]
	if port == nil || port.redirect != 0 || len(config.challenges) > 0 && strings.HasPrefix(text(h.path), challengePath) ||
		len(config.settings.TrustedProxies) > 0 && config.trusted(f.c.peer) || config.settings.Forwarded {
		return handOver
	}
	r := port.find(text(h.hostname), text(h.method), text(h.path), h)
	if r == nil || !r.plain {
		return handOver
	}
	to := r.choose()
	if to == nil || to.Status != 0 || to.service == nil {
		return handOver
	}
	spec := to.service.spec.Load()
	if len(spec.ready) == 0 || spec.Protocol != "" && spec.Protocol != BackendHTTP || spec.Affinity != nil {
		return handOver
	}
	if limit := config.limits.BodyBytes; limit > 0 && h.length > limit {
		return handOver
	}
	now := time.Now()
	id := newID() // a trusted proxy's own would be kept, but its requests are net/http's
	f.rec = record{start: now, id: id, client: f.c.client, scheme: f.c.scheme, protocol: "HTTP/1.1", method: h.method, host: h.hostname, path: h.path,
		agent: h.agent, in: int64(h.size) + h.length, route: r, service: to.service, labels: spec.Labels}
	to.service.stats.begin(now.Sub(f.g.started))
	s := f.g.slow.buffers.get()
	defer f.g.slow.buffers.put(s)
	s.request = f.appendRequest(s.request[:0], id)
	result := f.try(to.service, spec, s)
	if result == handOver {
		to.service.stats.inFlight.Add(-1)
		to.service.stats.busy.Add(int64(now.Sub(f.g.started)))
		return handOver
	}
	f.g.finish(&f.rec)
	return result
}

// appendRequest writes the request as a backend gets it.
func (f *fast) appendRequest(b []byte, id string) []byte {
	h := &f.head
	b = append(append(append(append(b, h.method...), ' '), h.target...), " HTTP/1.1\r\n"...)
	for i := range h.fields {
		switch field := &h.fields[i]; field.kind {
		case fieldConnection, fieldForwarded, fieldRequestID:
		default:
			b = append(append(append(append(b, field.name...), ": "...), field.value...), "\r\n"...)
		}
	}
	b = append(append(b, "X-Forwarded-For: "...), f.c.client...)
	b = append(append(b, "\r\nX-Forwarded-Proto: "...), f.c.scheme...)
	b = append(append(b, "\r\nX-Forwarded-Host: "...), h.host...)
	b = append(append(append(b, "\r\nX-Request-Id: "...), id...), "\r\n\r\n"...)
	if h.length > 0 {
		body, err := f.reader.Peek(h.size + int(h.length))
		if err == nil {
			b = append(b, body[h.size:]...)
		}
	}
	return b
}

// try sends the request to endpoints until one answers.
func (f *fast) try(s *service, spec *serviceSpec, buf *scratch) outcome {
	safe := idempotent(f.head.method)
	f.tried = f.tried[:0]
	for f.rec.tries < maxTries {
		now := time.Now()
		e := spec.pick(f.tried, now.UnixNano())
		if e == nil {
			break
		}
		f.rec.endpoint = e
		f.rec.tries++
		b := e.pool.take(now, !safe)
		if b == nil {
			var err error
			if b, err = e.dial(f.g.dialer); err != nil {
				s.failed(e, time.Now())
				f.tried = append(f.tried, e)
				continue
			}
		}
		b.source.client = f.c
		e.active.Add(1)
		result, err := f.exchange(b, e, buf)
		e.active.Add(-1)
		if err == nil {
			return result
		}
		_ = b.Close()
		if errors.Is(err, errClientGone) {
			f.rec.reason, f.rec.status = ReasonClientGone, 0
			return finished
		}
		f.rec.detail = err.Error()
		if b.reused {
			e.pool.flush() // the others are as old
		} else {
			s.failed(e, time.Now())
			f.tried = append(f.tried, e)
		}
		if !safe {
			return f.fail(answerFor(ReasonUpstreamReset, err.Error()))
		}
		s.stats.retries.Add(1)
	}
	return handOver // it may wait for others, or says what is wrong
}

// fail answers with a page of the gateway.
func (f *fast) fail(a *answer) outcome {
	contentType, page := a.body(string(f.head.accept), f.rec.id)
	b := make([]byte, 0, 512+len(page))
	b = append(append(b, "HTTP/1.1 "...), strconv.Itoa(a.status)+" "+http.StatusText(a.status)...)
	b = append(b, "\r\nContent-Type: "+contentType+"\r\nCache-Control: no-store\r\nX-Request-Id: "+f.rec.id+"\r\nContent-Length: "+strconv.Itoa(len(page))...)
	b = append(b, "\r\nConnection: close\r\n\r\n"...)
	if string(f.head.method) != http.MethodHead {
		b = append(b, page...)
	}
	n, _ := f.client.Write(b)
	f.rec.status, f.rec.reason, f.rec.detail, f.rec.out = a.status, a.reason, a.detail, int64(n)
	return finished
}

// errClientGone says that there is nobody left to answer.
var errClientGone = errors.New("the client has gone")

// patient reads from a backend for as long as the client is there.
type patient struct {
	b      *backend
	client *conn
}

// lookInterval is how often a waiting request looks whether its client is still there.
const lookInterval = 2 * time.Second

// Read waits without limit, but for the client.
func (p *patient) Read(to []byte) (int, error) {
	for {
		now := time.Now()
		if p.b.deadline.Sub(now) < lookInterval/2 {
			p.b.deadline = now.Add(lookInterval)
			if err := p.b.SetReadDeadline(p.b.deadline); err != nil {
				return 0, err
			}
		}
		n, err := p.b.TCPConn.Read(to)
		if n > 0 || err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if hungUp(p.client.raw) || p.client.g.expired.Err() != nil {
			return 0, errClientGone
		}
	}
}

// exchange sends the request on a connection and the answer to the client. With an error
// nothing was sent to the client, unless it is errClientGone.
func (f *fast) exchange(b *backend, e *endpoint, buf *scratch) (outcome, error) {
	if _, err := b.Write(buf.request); err != nil {
		return 0, err
	}
	head := string(f.head.method) == http.MethodHead
	v := incomplete
	for {
		n := b.reader.Buffered()
		if n > 0 {
			have, err := b.reader.Peek(n)
			if err != nil {
				return 0, err
			}
			if v = parseResponse(have, &f.answer, head); v != incomplete {
				break
			}
		}
		if n >= backendBuffer {
			v = unusual
			break
		}
		if _, err := b.reader.Peek(n + 1); err != nil {
			return 0, err
		}
	}
	e.succeeded()
	if v == unusual {
		return f.answerUnusual(b, buf)
	}
	h := &f.answer
	inline := 0 // of the body, sent with the head
	if h.hasBody && h.length > 0 {
		whole := int64(h.size) + h.length
		if whole <= backendBuffer && whole > int64(b.reader.Buffered()) {
			have, err := b.reader.Peek(int(whole)) // all of it, so that another endpoint can be tried
			if err != nil {
				return 0, err
			}
			parseResponse(have, h, head) // the buffer may have moved
		}
		inline = int(min(h.length, int64(b.reader.Buffered()-h.size)))
	}
	end := f.head.close || f.g.draining.Load()
	have, err := b.reader.Peek(h.size + inline)
	if err != nil {
		return 0, err
	}
	buf.response = append(f.appendResponse(buf.response[:0], end), have[h.size:]...)
	f.rec.status = h.status
	n, err := f.client.Write(buf.response)
	f.rec.out += int64(n)
	if err != nil {
		return 0, errClientGone
	}
	chunked, left := h.length < 0, h.length-int64(inline)
	keep := !h.close
	if _, err := b.reader.Discard(h.size + inline); err != nil {
		return 0, errClientGone
	}
	if h.hasBody {
		if chunked {
			err = f.copyChunked(httputil.NewChunkedReader(b.reader), buf)
			if err == nil {
				err = skipTrailers(b.reader)
			}
		} else if left > 0 {
			err = f.copyBody(io.LimitReader(b.reader, left), left, buf)
		}
		if err != nil {
			return f.broken(b, err)
		}
	}
	f.giveBack(b, e, keep)
	if end {
		return finished, nil
	}
	return served, nil
}

// broken ends an answer of which a part was sent: the client has to see that it is not whole.
func (f *fast) broken(b *backend, err error) (outcome, error) {
	_ = b.Close()
	f.rec.reason, f.rec.detail = ReasonUpstreamReset, err.Error()
	if errors.Is(err, errClientGone) {
		f.rec.reason = ReasonClientGone
	}
	return finished, nil
}

func (f *fast) giveBack(b *backend, e *endpoint, keep bool) {
	if !keep || b.reader.Buffered() > 0 {
		_ = b.Close()
		return
	}
	e.pool.give(b, time.Now())
}

// appendResponse writes the head of the answer as the client gets it.
func (f *fast) appendResponse(b []byte, end bool) []byte {
	b = append(append(append(b, "HTTP/1.1 "...), f.answer.reason...), "\r\n"...)
	for i := range f.answer.fields {
		switch field := &f.answer.fields[i]; field.kind {
		case fieldConnection, fieldRequestID:
		default:
			b = append(append(append(append(b, field.name...), ": "...), field.value...), "\r\n"...)
		}
	}
	b = append(append(append(b, "X-Request-Id: "...), f.rec.id...), "\r\n"...)
	if end {
		b = append(b, "Connection: close\r\n"...)
	}
	return append(b, "\r\n"...)
}

// room returns memory for copying.
func (s *scratch) room() []byte {
	if s.copy == nil {
		s.copy = make([]byte, 32<<10)
	}
	return s.copy
}

// copyBody passes on a body of known length.
func (f *fast) copyBody(from io.Reader, left int64, buf *scratch) error {
	room := buf.room()
	for left > 0 {
		n, err := from.Read(room)
		if n > 0 {
			if _, err := f.client.Write(room[:n]); err != nil {
				return errClientGone
			}
			f.rec.out += int64(n)
			left -= int64(n)
		}
		if err != nil && left > 0 {
			if errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// copyChunked passes on a body of unknown length, each piece as it comes.
func (f *fast) copyChunked(from io.Reader, buf *scratch) error {
	const size, end = 8, 2 // room for "7fff\r\n" before and "\r\n" after
	room := buf.room()
	for {
		n, err := from.Read(room[size : len(room)-end])
		if n > 0 {
			begin := room[:0:size]
			begin = append(strconv.AppendInt(begin, int64(n), 16), "\r\n"...)
			at := size - len(begin)
			copy(room[at:], begin)
			copy(room[size+n:], "\r\n")
			sent, err := f.client.Write(room[at : size+n+end])
			f.rec.out += int64(sent)
			if err != nil {
				return errClientGone
			}
		}
		if errors.Is(err, io.EOF) {
			sent, err := f.client.Write([]byte("0\r\n\r\n"))
			f.rec.out += int64(sent)
			if err != nil {
				return errClientGone
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// skipTrailers reads what follows the last chunk. Nobody was told of trailers, so they are dropped.
func skipTrailers(r *bufio.Reader) error {
	for total := 0; total < backendBuffer; {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if total += len(line); len(line) <= 2 {
			return nil
		}
	}
	return errors.New("too many trailers")
}

// answerUnusual passes on an answer that net/http has to read. The connection is not used again.
func (f *fast) answerUnusual(b *backend, buf *scratch) (outcome, error) {
	request := &http.Request{Method: string(f.head.method)}
	response, err := http.ReadResponse(b.reader, request)
	for err == nil && response.StatusCode < 200 {
		if response.StatusCode == http.StatusSwitchingProtocols {
			return 0, errors.New("the backend switches to a protocol that was not asked for")
		}
		response, err = http.ReadResponse(b.reader, request)
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = b.Close() }()
	defer func() { _ = response.Body.Close() }()
	end := f.head.close || f.g.draining.Load()
	noBody := request.Method == http.MethodHead || response.StatusCode == 204 || response.StatusCode == 304
	head := append(buf.response[:0], "HTTP/1.1 "+strconv.Itoa(response.StatusCode)+" "+http.StatusText(response.StatusCode)+"\r\n"...)
	for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Trailer", "Upgrade", "Content-Length", "X-Request-Id"} {
		if name != "Content-Length" || response.StatusCode == 204 || !noBody {
			response.Header.Del(name)
		}
	}
	if !noBody && response.ContentLength >= 0 {
		head = append(head, "Content-Length: "+strconv.FormatInt(response.ContentLength, 10)+"\r\n"...)
	} else if !noBody {
		head = append(head, "Transfer-Encoding: chunked\r\n"...)
	}
	for name, values := range response.Header {
		for _, value := range values {
			if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
				continue
			}
			head = append(append(append(append(head, name...), ": "...), value...), "\r\n"...)
		}
	}
	head = append(head, "X-Request-Id: "+f.rec.id+"\r\n"...)
	if end {
		head = append(head, "Connection: close\r\n"...)
	}
	buf.response = append(head, "\r\n"...)
	f.rec.status = response.StatusCode
	n, err := f.client.Write(buf.response)
	f.rec.out += int64(n)
	if err != nil {
		return 0, errClientGone
	}
	if !noBody && response.ContentLength >= 0 {
		err = f.copyBody(response.Body, response.ContentLength, buf)
	} else if !noBody {
		err = f.copyChunked(response.Body, buf)
	}
	if err != nil {
		return f.broken(b, err)
	}
	if end {
		return finished, nil
	}
	return served, nil
}
