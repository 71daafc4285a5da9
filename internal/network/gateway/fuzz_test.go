package gateway

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// seen is a request as one of the parsers understood it.
type seen struct {
	method, target, host string
	fields               []string // "name: value", sorted, without Host
	body                 string
}

// fastSees runs our parser over a connection's bytes as the fast path does: up to the first
// message that is not plain.
func fastSees(input []byte) (out []seen) {
	var h requestHead
	for parseRequest(input, &h, 1000) == plain {
		if int64(len(input)-h.size) < h.length {
			return out // the fast path waits or hands over
		}
		one := seen{method: string(h.method), target: string(h.target), host: string(h.host)}
		for _, f := range h.fields {
			if f.kind != fieldHost && f.kind != fieldConnection {
				one.fields = append(one.fields, http.CanonicalHeaderKey(string(f.name))+": "+string(f.value))
			}
		}
		slices.Sort(one.fields)
		one.body = string(input[h.size : h.size+int(h.length)])
		out = append(out, one)
		input = input[h.size+int(h.length):]
		if h.close {
			return out
		}
	}
	return out
}

// byteConn is a connection whose peer sends input and reads nothing.
type byteConn struct {
	io.Reader
	closed chan struct{}
}

func (c *byteConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *byteConn) Close() error                     { defer func() { _ = recover() }(); close(c.closed); return nil }
func (c *byteConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *byteConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *byteConn) SetDeadline(time.Time) error      { return nil }
func (c *byteConn) SetReadDeadline(time.Time) error  { return nil }
func (c *byteConn) SetWriteDeadline(time.Time) error { return nil }

// oneListener accepts one connection, then waits for the test's end.
type oneListener struct {
	conns chan net.Conn
}

func (l *oneListener) Accept() (net.Conn, error) {
	conn, open := <-l.conns
	if !open {
		return nil, net.ErrClosed
	}
	return conn, nil
}
func (l *oneListener) Close() error   { return nil }
func (l *oneListener) Addr() net.Addr { return &net.TCPAddr{} }

// serverSees runs net/http's server over a connection's bytes.
func serverSees(input []byte) (out []seen) {
	listener := &oneListener{make(chan net.Conn, 1)}
	conn := &byteConn{bytes.NewReader(input), make(chan struct{})}
	server := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		one := seen{method: r.Method, target: r.RequestURI, host: r.Host}
		for name, values := range r.Header {
			for _, value := range values {
				if name != "Connection" {
					one.fields = append(one.fields, name+": "+value)
				}
			}
		}
		slices.Sort(one.fields)
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		one.body = string(body)
		out = append(out, one)
	})}
	listener.conns <- conn
	close(listener.conns)
	_ = server.Serve(listener)
	<-conn.closed
	return out
}

// Every request that the fast path takes is one that net/http's server sees the same at the
// same place. What the fast path does not take it gives to net/http whole, so that there is
// nothing left on which the two could disagree.
func FuzzRequest(f *testing.F) {
	for _, seed := range requestSeeds() {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		fast := fastSees(input)
		if len(fast) == 0 {
			return
		}
		server := serverSees(input)
		for i, ours := range fast {
			if i >= len(server) {
				t.Fatalf("request %d of %q is plain to us; net/http's server saw %d", i, input, len(server))
			}
			// net/http adds Cache-Control to a Pragma and hides no field else.
			theirs := server[i]
			if slices.Contains(ours.fields, "Pragma: no-cache") {
				theirs.fields, ours.fields = nil, nil
			}
			if fmt.Sprint(ours) != fmt.Sprint(theirs) {
				t.Fatalf("request %d of %q\nours   %+v\ntheirs %+v", i, input, ours, theirs)
			}
		}
	})
}

func requestSeeds() []string {
	const h = "Host: a.example\r\n"
	return []string{
		"GET / HTTP/1.1\r\n" + h + "\r\n",
		"GET /a?b=%20 HTTP/1.1\r\n" + h + "User-Agent: x\r\nAccept: */*\r\n\r\nGET /b HTTP/1.1\r\n" + h + "\r\n",
		"POST / HTTP/1.1\r\n" + h + "Content-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n" + h + "\r\n",
		"POST / HTTP/1.1\r\n" + h + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
		"POST / HTTP/1.1\r\n" + h + "Content-Length: 3, 3\r\n\r\nabc",
		"POST / HTTP/1.1\r\n" + h + "Content-Length: +3\r\n\r\nabc",
		"POST / HTTP/1.1\r\n" + h + "Content-Length: 03\r\n\r\nabc",
		"POST / HTTP/1.1\r\n" + h + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: xchunked\r\n\r\n",
		"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding:\vchunked\r\n\r\n",
		"POST / HTTP/1.1\r\n" + h + "Transfer_Encoding: chunked\r\nContent-Length: 1\r\n\r\nx",
		"GET / HTTP/1.1\n" + h + "\n",
		"GET / HTTP/1.1\r\n" + h + "A: b\nContent-Length: 4\r\n\r\nabcd",
		"GET / HTTP/1.1\r\n" + h + "A: b\rContent-Length: 4\r\n\r\nabcd",
		"GET / HTTP/1.1\r\n" + h + "A: b\r\n c\r\n\r\n",
		"GET / HTTP/1.1\r\n" + h + h + "\r\n",
		"GET / HTTP/1.1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost:\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a.example:80\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\n" + h + "\r\n",
		"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
		"GET / HTTP/1.0\r\n" + h + "\r\n",
		"GET / HTTP/1.1 \r\n" + h + "\r\n",
		"GET  / HTTP/1.1\r\n" + h + "\r\n",
		"GET http://b.example/ HTTP/1.1\r\n" + h + "\r\n",
		"GET //x HTTP/1.1\r\n" + h + "\r\n",
		"GET /%zz HTTP/1.1\r\n" + h + "\r\n",
		"GET /\x80 HTTP/1.1\r\n" + h + "\r\n",
		"OPTIONS * HTTP/1.1\r\n" + h + "\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET / HTTP/1.1\r\n" + h + "X: \x80\xff\r\nB@d: x\r\n\r\n",
		"GET / HTTP/1.1\r\n" + h + "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n",
		"GET / HTTP/1.1\r\n" + h + "Connection: close, content-length\r\nContent-Length: 3\r\n\r\nabc",
		"\r\nGET / HTTP/1.1\r\n" + h + "\r\n",
		"GET / HTTP/1.1\r\n: x\r\n" + h + "\r\n",
		"GET / HTTP/1.1\r\n" + h + "X:\t y \t\r\n\r\n",
		"GET / HTTP/1.1\r\n" + h + "\x00: y\r\n\r\n",
		"HEAD / HTTP/1.1\r\n" + h + "Content-Length: 0\r\n\r\nDELETE /x HTTP/1.1\r\n" + h + "\r\n",
	}
}

// Every response that the fast path takes is one that net/http's client frames the same.
func FuzzResponse(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200 \r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
		"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
		"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
		"HTTP/1.1 200 OK\r\n\r\nto the end",
		"HTTP/1.0 200 OK\r\n\r\nto the end",
		"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nContent-Length: 1\r\n\r\nx",
		"HTTP/1.1 +20 OK\r\nContent-Length: 0\r\n\r\n",
	} {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	f.Fuzz(func(t *testing.T, input []byte, head bool) {
		var h responseHead
		if parseResponse(input, &h, head) != plain {
			return
		}
		method := map[bool]string{false: "GET", true: "HEAD"}[head]
		reader := bufio.NewReaderSize(bytes.NewReader(input), len(input)+16)
		response, err := http.ReadResponse(reader, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%q is plain to us; net/http says %v", input, err)
		}
		if consumed := len(input) - reader.Buffered(); consumed != h.size {
			t.Fatalf("%q: the head has %d bytes to us, %d to net/http", input, h.size, consumed)
		}
		if response.StatusCode != h.status {
			t.Fatalf("%q: status %d, net/http %d", input, h.status, response.StatusCode)
		}
		length := response.ContentLength
		if head || h.status == 304 || h.status == 204 {
			if h.hasBody {
				t.Fatalf("%q: a body where there is none", input)
			}
		} else if length != h.length || (length < 0) != slices.Equal(response.TransferEncoding, []string{"chunked"}) {
			t.Fatalf("%q: length %d, net/http %d %v", input, h.length, length, response.TransferEncoding)
		}
		for _, f := range h.fields {
			name := http.CanonicalHeaderKey(string(f.name))
			if f.kind == fieldTransferEncoding || f.kind == fieldConnection || strings.EqualFold(name, "pragma") {
				continue
			}
			if !slices.Contains(response.Header[name], string(f.value)) {
				t.Fatalf("%q: field %s: %q, net/http %q", input, name, f.value, response.Header[name])
			}
		}
	})
}
