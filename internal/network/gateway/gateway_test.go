package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gantry.dev/gantry/internal/network/gateway"
)

// rig is a gateway on a free port of loopback.
type rig struct {
	t     *testing.T
	g     *gateway.Gateway
	at    string // http
	tlsAt string // https
	table gateway.Table
	stop  func() error
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// start runs a gateway whose table change makes of a simple one: all hosts go to service "a/web:80".
func start(t *testing.T, change func(*gateway.Table), endpoints ...string) *rig {
	t.Helper()
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	r := &rig{t: t}
	port, tlsPort := freePort(t), freePort(t)
	r.at, r.tlsAt = fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("127.0.0.1:%d", tlsPort)
	r.table = gateway.Table{
		Listeners:    []gateway.Listener{{Name: "http", Addresses: loopback, Port: port, Protocol: "http"}, {Name: "https", Addresses: loopback, Port: tlsPort, Protocol: "https"}},
		Certificates: map[string]gateway.Certificate{"a/cert": certificate(t, "a.example", "*.wild.example")},
		Services:     map[string]gateway.Service{"a/web:80": {Namespace: "a", Name: "web", Port: 80, Endpoints: ready(endpoints...), Labels: map[string]string{"app": "shop"}}},
		Routes:       map[string][]gateway.Route{"HTTPRoute/a/web": {{Backends: []gateway.Backend{{Service: "a/web:80", Weight: 1}}}}},
	}
	if change != nil {
		change(&r.table)
	}
	dir, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	if r.g, err = gateway.New(gateway.Options{LogDir: dir}); err != nil {
		t.Fatal(err)
	}
	if err := r.g.Apply(r.table); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.g.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	r.eventually("listening", func() bool {
		conn, err := net.Dial("tcp", r.tlsAt)
		if err != nil {
			return false
		}
		_ = conn.Close()
		conn, err = net.Dial("tcp", r.at)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return r
}

func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("never: %s", what)
		}
	}
}

// failures returns what was noted of a request that failed, which comes after its answer.
func (r *rig) failures(id string) (out []gateway.Entry) {
	r.t.Helper()
	r.eventually("the failure of "+id, func() bool {
		out = r.g.Ask(gateway.Query{What: gateway.QueryFailures, RequestID: id}).Failures
		return len(out) > 0
	})
	return out
}

func ready(addresses ...string) []gateway.Endpoint {
	var out []gateway.Endpoint
	for _, a := range addresses {
		out = append(out, gateway.Endpoint{Address: netip.MustParseAddrPort(a), Pod: "pod-" + a, Ready: true})
	}
	return out
}

func certificate(t *testing.T, names ...string) gateway.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return gateway.Certificate{Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})}
}

// backend serves on loopback and returns its address.
func backend(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// raw sends bytes on one connection and returns all answers until it ends.
func (r *rig) raw(input string) string {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.at)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, input); err != nil {
		r.t.Fatal(err)
	}
	out, err := io.ReadAll(conn)
	if err != nil {
		r.t.Fatalf("after %q: %v", out, err)
	}
	return string(out)
}

func (r *rig) get(path string) (*http.Response, string) {
	r.t.Helper()
	response, err := http.Get("http://" + r.at + path)
	if err != nil {
		r.t.Fatal(err)
	}
	return response, read(r.t, response)
}

func read(t *testing.T, r *http.Response) string {
	t.Helper()
	body, err := io.ReadAll(r.Body)
	if err := errors.Join(err, r.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// echo tells what arrived.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	w.Header().Set("X-Backend", "yes")
	_, _ = fmt.Fprintf(w, "%s %s %s %s host=%s for=%s proto=%s fhost=%s id=%t evil=%s body=%d %v", r.Proto, r.Method, r.RequestURI, r.Header.Get("X-Test"), r.Host,
		r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Proto"), r.Header.Get("X-Forwarded-Host"), r.Header.Get("X-Request-Id") != "",
		r.Header.Get("Forwarded")+r.Header.Get("X-Real-Ip")+r.Header.Get("X_Forwarded_For"), len(body), err)
}

func TestPlainRequests(t *testing.T) {
	r := start(t, nil, backend(t, echo))
	common := " host=a.example for=127.0.0.1 proto=http fhost=a.example id=true evil= body="
	for name, tc := range map[string]struct{ in, want string }{
		"get":           {"GET /x?y=%20 HTTP/1.1\r\nHost: a.example\r\nX-Test: 1\r\nX-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6\r\nForwarded: for=6\r\n", "HTTP/1.1 GET /x?y=%20 1" + common + "0"},
		"small body":    {"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 POST / " + common + "3"},
		"chunked":       {"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nX_Forwarded_For: 6\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "HTTP/1.1 POST / " + common + "3"},
		"continue":      {"POST / HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 POST / " + common + "3"},
		"upper-case":    {"GET / HTTP/1.1\r\nHost: A.example\r\n", "HTTP/1.1 GET /  host=A.example for=127.0.0.1"},
		"double slash":  {"GET //x/../y HTTP/1.1\r\nHost: a.example\r\n", "HTTP/1.1 GET //x/../y " + common + "0"},
		"long head":     {"GET / HTTP/1.1\r\nHost: a.example\r\nX-Long: " + strings.Repeat("x", 9000) + "\r\n", "HTTP/1.1 GET / " + common + "0"},
		"absolute form": {"GET http://a.example/z HTTP/1.1\r\nHost: other\r\n", "HTTP/1.1 GET /z " + common + "0"},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			in := tc.in
			if !strings.Contains(in, "\r\n\r\n") {
				in += "\r\n"
			}
			// The first request is on a fresh connection, the second shows that its body was framed.
			second := "GET /second HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"
			out := r.raw(in + second)
			if !strings.Contains(out, tc.want) || !strings.Contains(out, "GET /second "+common+"0") || !strings.Contains(out, "X-Request-Id: ") {
				t.Errorf("%q\ngave %q\nwant %q", in, out, tc.want)
			}
		})
	}
}

func TestRefusedFraming(t *testing.T) {
	var reached atomic.Int64
	r := start(t, nil, backend(t, func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	const h = "Host: a.example\r\nConnection: close\r\n"
	for _, in := range []string{
		"POST / HTTP/1.1\r\n" + h + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
		"POST / HTTP/1.1\r\n" + h + "Content-Length: -3\r\n\r\nabc",
		"POST / HTTP/1.1\r\n" + h + "Content-Length: 3, 3\r\n\r\nabc",
		"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: gzip\r\n\r\n",
		"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\n" + h + "\r\n",
		"GET / HTTP/1.1\r\n" + h + "A\x00: b\r\n\r\n",
		"GET / HTTP/1.1\r\n" + h + "A: b\x01\r\n\r\n",
		"GET /%zz HTTP/1.1\r\n" + h + "\r\n",
		"NONSENSE\r\n\r\n",
	} {
		if out := r.raw(in); !strings.HasPrefix(out, "HTTP/1.1 400") && !strings.HasPrefix(out, "HTTP/1.1 501") {
			t.Errorf("%q was answered %q, want 400 or 501", in, out)
		}
	}
	if reached.Load() > 0 {
		t.Errorf("%d bad requests reached the backend", reached.Load())
	}
}

func TestAnswerForms(t *testing.T) {
	big := strings.Repeat("0123456789", 20000)
	r := start(t, nil, backend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/big":
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			_, _ = io.WriteString(w, big)
		case "/chunked":
			for i := 0; i < len(big); i += 1000 {
				_, _ = io.WriteString(w, big[i:i+1000])
				_ = http.NewResponseController(w).Flush()
			}
		case "/none":
			w.WriteHeader(204)
		case "/not-modified":
			w.WriteHeader(304)
		case "/early":
			w.Header().Set("Link", "</x>")
			w.WriteHeader(103)
			_, _ = io.WriteString(w, "done")
		case "/long-head":
			w.Header().Set("X-Long", strings.Repeat("y", 9000))
			_, _ = io.WriteString(w, "done")
		case "/to-the-end", "/old":
			conn, buf, err := http.NewResponseController(w).Hijack()
			if err == nil {
				version := map[string]string{"/to-the-end": "1.1", "/old": "1.0"}[r.URL.Path]
				_, _ = buf.WriteString("HTTP/" + version + " 200 OK\r\n\r\n" + big)
				_ = errors.Join(buf.Flush(), conn.Close())
			}
		case "/trailer":
			w.Header().Set("Trailer", "X-Sum")
			_, _ = io.WriteString(w, "done")
			w.Header().Set("X-Sum", "4")
		}
	}))
	for i := range 2 { // kept connections, too
		for path, want := range map[string]string{"/big": big, "/chunked": big, "/none": "", "/not-modified": "", "/early": "done", "/long-head": "done", "/to-the-end": big, "/old": big, "/trailer": "done"} {
			response, body := r.get(path)
			if body != want || response.Header.Get("X-Request-Id") == "" {
				t.Errorf("%d: %s gave %d bytes with %v, want %d", i, path, len(body), response.Header, len(want))
			}
			head, err := http.Head("http://" + r.at + path)
			if err != nil || read(t, head) != "" {
				t.Errorf("HEAD %s: %v", path, err)
			}
		}
	}
}

func TestHTTP2AndTLS(t *testing.T) {
	r := start(t, func(t *gateway.Table) { s := t.Services["a/web:80"]; s.Protocol = "h2c"; t.Services["a/web:80"] = s },
		backend(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "Grpc-Status")
			_ = http.NewResponseController(w).EnableFullDuplex()
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
			lines := bufio.NewScanner(r.Body)
			for lines.Scan() {
				_, _ = fmt.Fprintf(w, "%s %s\n", r.Proto, lines.Text())
				_ = http.NewResponseController(w).Flush()
			}
			w.Header().Set("Grpc-Status", "0")
		}))
	for name, transport := range map[string]*http.Transport{
		"h2":  {TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "x.wild.example"}, ForceAttemptHTTP2: true},
		"h2c": {Protocols: func() *http.Protocols { p := new(http.Protocols); p.SetUnencryptedHTTP2(true); return p }()},
	} {
		t.Run(name, func(t *testing.T) {
			defer transport.CloseIdleConnections()
			url := map[string]string{"h2": "https://" + r.tlsAt, "h2c": "http://" + r.at}[name] + "/stream"
			reader, writer := io.Pipe()
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, reader)
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Content-Type", "application/grpc")
			response, err := transport.RoundTrip(request)
			if err != nil {
				t.Fatal(err)
			}
			answers := bufio.NewReader(response.Body)
			for _, word := range []string{"one", "two"} { // each is answered before the next is sent
				_, _ = io.WriteString(writer, word+"\n")
				if line, err := answers.ReadString('\n'); line != "HTTP/2.0 "+word+"\n" || err != nil {
					t.Fatalf("got %q, %v", line, err)
				}
			}
			_ = writer.Close()
			rest, err := io.ReadAll(answers)
			if err != nil || len(rest) > 0 || response.Trailer.Get("Grpc-Status") != "0" || response.ProtoMajor != 2 {
				t.Errorf("the end: %q, %v, trailer %v, %s", rest, err, response.Trailer, response.Proto)
			}
		})
	}
}

func TestCertificates(t *testing.T) {
	r := start(t, nil, backend(t, echo))
	dial := func(name string) (string, error) {
		conn, err := tls.Dial("tcp", r.tlsAt, &tls.Config{InsecureSkipVerify: true, ServerName: name, NextProtos: []string{"http/1.1"}})
		if err != nil {
			return "", err
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+name+"\r\n\r\nGET /2 HTTP/1.1\r\nHost: "+name+"\r\nConnection: close\r\n\r\n")
		out, err := io.ReadAll(conn)
		if !strings.Contains(string(out), "GET /2  host="+name+" for=127.0.0.1 proto=https") {
			return "", fmt.Errorf("answer %q, %w", out, err)
		}
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
	}
	for name, want := range map[string]string{"a.example": "a.example", "x.wild.example": "a.example", "y.x.wild.example": "", "b.example": ""} {
		got, err := dial(name)
		if got != want || want == "" && (err == nil || !strings.Contains(err.Error(), "unrecognized name")) {
			t.Errorf("%s: certificate %q, %v; want %q", name, got, err, want)
		}
	}
	added := certificate(t, "b.example")
	fallback := certificate(t, "default.example")
	fallback.Default = true
	if err := r.g.Update(gateway.Delta{Certificates: map[string]*gateway.Certificate{"b": &added, "d": &fallback}}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"b.example": "b.example", "c.example": "default.example"} {
		if got, err := dial(name); got != want {
			t.Errorf("%s: certificate %q, %v; want %q", name, got, err, want)
		}
	}
	if err := r.g.Update(gateway.Delta{Certificates: map[string]*gateway.Certificate{"b": {Chain: []byte("x")}}}); err == nil {
		t.Error("a bad certificate was taken")
	}
}

func TestWebSocket(t *testing.T) {
	r := start(t, nil, backend(t, func(w http.ResponseWriter, r *http.Request) {
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = buf.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_ = buf.Flush()
		_, _ = io.Copy(conn, buf)
	}))
	conn, err := net.Dial("tcp", r.at)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != 101 {
		t.Fatalf("%+v, %v", response, err)
	}
	for _, word := range []string{"hello\n", "again\n"} {
		_, _ = io.WriteString(conn, word)
		if line, err := reader.ReadString('\n'); line != word || err != nil {
			t.Errorf("echo %q, %v", line, err)
		}
	}
}

func TestServerSentEvents(t *testing.T) {
	next, gone := make(chan string), make(chan struct{})
	r := start(t, nil, backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			select {
			case <-r.Context().Done():
				close(gone)
				return
			case text := <-next:
				_, _ = io.WriteString(w, "data: "+text+"\n\n")
				_ = http.NewResponseController(w).Flush()
			}
		}
	}))
	ctx, cancel := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.at+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() { next <- "0" }()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(response.Body)
	for i := range 5 {
		if i > 0 {
			next <- fmt.Sprint(i)
		}
		line, err := reader.ReadString('\n')
		if _, _ = reader.ReadString('\n'); line != fmt.Sprintf("data: %d\n", i) || err != nil {
			t.Fatalf("got %q, %v", line, err)
		}
	}
	cancel() // the backend hears of it
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Error("the backend was not told that the client has gone")
	}
}

func TestPods(t *testing.T) {
	t.Run("one that is killed costs nothing", func(t *testing.T) {
		slowly := func(w http.ResponseWriter, r *http.Request) {
			<-time.After(time.Millisecond) // so that some are under way at the kill
			echo(w, r)
		}
		good := backend(t, slowly)
		victim := httptest.NewServer(http.HandlerFunc(slowly))
		r := start(t, nil, good, victim.Listener.Addr().String())
		var load sync.WaitGroup
		var sent atomic.Int64
		stop := make(chan struct{})
		for range 16 {
			load.Go(func() {
				client := &http.Client{Transport: &http.Transport{}}
				defer client.CloseIdleConnections()
				for {
					select {
					case <-stop:
						return
					default:
					}
					response, err := client.Get("http://" + r.at + "/")
					if err != nil {
						t.Errorf("request: %v", err)
						return
					}
					if body, err := io.ReadAll(response.Body); response.StatusCode != 200 || err != nil {
						t.Errorf("status %d, %v: %s", response.StatusCode, err, body)
					}
					_ = response.Body.Close()
					sent.Add(1)
				}
			})
		}
		r.eventually("load", func() bool { return sent.Load() > 300 })
		_ = victim.Listener.Close()
		victim.CloseClientConnections()
		begun := sent.Load()
		r.eventually("load after the kill", func() bool { return sent.Load() > begun+1000 })
		close(stop)
		load.Wait()
		snapshot := func() gateway.ServiceStats {
			return r.g.Ask(gateway.Query{What: gateway.QuerySnapshot}).Snapshot.Services["a/web:80"]
		}
		r.eventually("the last count", func() bool { return snapshot().InFlight == 0 })
		stats := snapshot()
		if stats.Errors > 0 || stats.Ejections == 0 || stats.Requests < uint64(sent.Load()) || stats.InFlight != 0 {
			t.Errorf("stats %+v after %d requests", stats, sent.Load())
		}
	})
	t.Run("one that terminates finishes what it has", func(t *testing.T) {
		release, arrived := make(chan struct{}), make(chan struct{}, 1)
		old := backend(t, func(w http.ResponseWriter, _ *http.Request) {
			arrived <- struct{}{}
			<-release
			_, _ = io.WriteString(w, "old")
		})
		fresh := backend(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "new") })
		r := start(t, nil, old)
		answer := make(chan string, 1)
		go func() { _, body := r.get("/"); answer <- body }()
		<-arrived
		list := append(ready(fresh), gateway.Endpoint{Address: netip.MustParseAddrPort(old), Pod: "pod-" + old, Ready: true, Terminating: true})
		if err := r.g.Update(gateway.Delta{Endpoints: map[string][]gateway.Endpoint{"a/web:80": list}}); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if _, body := r.get("/"); body != "new" {
				t.Errorf("a new request went to %q", body)
			}
		}
		close(release)
		if body := <-answer; body != "old" {
			t.Errorf("the running request got %q", body)
		}
	})
}

func TestHold(t *testing.T) {
	hold := func(d time.Duration) func(*gateway.Table) {
		return func(t *gateway.Table) { s := t.Services["a/web:80"]; s.Hold = d; t.Services["a/web:80"] = s }
	}
	t.Run("released", func(t *testing.T) {
		r := start(t, hold(time.Minute))
		events := make(chan gateway.Event, 100)
		go func() { _ = r.g.Subscribe(t.Context(), func(e gateway.Event) error { events <- e; return nil }) }()
		answers := make(chan string, 10)
		for i := range 10 {
			go func() {
				response, err := http.Post("http://"+r.at+"/", "text/plain", strings.NewReader(strings.Repeat("x", i*10000)))
				if err != nil {
					answers <- err.Error()
					return
				}
				body, _ := io.ReadAll(response.Body)
				answers <- string(body)
			}()
		}
		for e := range events {
			if e.Kind == gateway.EventWake && e.Service == "a/web:80" && e.Waiting == 10 {
				break
			}
		}
		at := backend(t, echo)
		begun := time.Now()
		if err := r.g.Update(gateway.Delta{Endpoints: map[string][]gateway.Endpoint{"a/web:80": ready(at)}}); err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			if body := <-answers; !strings.Contains(body, "POST / ") {
				t.Errorf("answer %q", body)
			}
			if i == 0 {
				t.Logf("first answer after %v", time.Since(begun))
			}
		}
	})
	t.Run("ready before it listens", func(t *testing.T) {
		port := freePort(t)
		at := fmt.Sprintf("127.0.0.1:%d", port)
		r := start(t, hold(time.Minute), at)
		answer := make(chan string, 1)
		go func() { _, body := r.get("/"); answer <- body }()
		r.eventually("held", func() bool {
			s := r.g.Ask(gateway.Query{What: gateway.QuerySnapshot}).Snapshot.Services["a/web:80"]
			return s.Retries > 3
		})
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Skipf("another took the port: %v", err)
		}
		server := &http.Server{Handler: http.HandlerFunc(echo)}
		go func() { _ = server.Serve(l) }()
		defer func() { _ = server.Close() }()
		if body := <-answer; !strings.Contains(body, "GET / ") {
			t.Errorf("answer %q", body)
		}
	})
	t.Run("expired", func(t *testing.T) {
		r := start(t, hold(50*time.Millisecond))
		response, body := r.get("/")
		if response.StatusCode != 503 || response.Header.Get("Retry-After") == "" || !strings.Contains(body, "asleep") || !strings.Contains(body, response.Header.Get("X-Request-Id")) {
			t.Errorf("%d %v %q", response.StatusCode, response.Header, body)
		}
		failures := r.failures(response.Header.Get("X-Request-Id"))
		if len(failures) != 1 || failures[0].Reason != gateway.ReasonHoldExpired || failures[0].Labels["app"] != "shop" {
			t.Errorf("failures %+v", failures)
		}
	})
}

func TestFailuresAndLog(t *testing.T) {
	dead := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	reset := backend(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		}
	})
	stall := backend(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body); <-r.Context().Done() })
	broken := backend(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	r := start(t, func(t *gateway.Table) {
		t.Routes = map[string][]gateway.Route{}
		for path, at := range map[string]string{"dead": dead, "reset": reset, "stall": stall, "broken": broken, "empty": ""} {
			s := gateway.Service{Namespace: "a", Name: path, Labels: map[string]string{"app": path}}
			if at != "" {
				s.Endpoints = ready(at)
			}
			t.Services["a/"+path+":80"] = s
			t.Routes["R/a/"+path] = []gateway.Route{{Path: gateway.PathMatch{Value: "/" + path}, Backends: []gateway.Backend{{Service: "a/" + path + ":80", Weight: 1}},
				BackendTimeout: map[bool]time.Duration{true: 30 * time.Millisecond}[path == "stall"]}}
		}
		t.Routes["R/a/gone"] = []gateway.Route{{Path: gateway.PathMatch{Value: "/gone"}, Backends: []gateway.Backend{{Service: "a/gone:80", Weight: 1}}}}
	})
	for path, want := range map[string]struct {
		status int
		reason string
	}{"dead": {502, "ConnectFailed"}, "reset": {502, "UpstreamReset"}, "stall": {504, "Timeout"}, "broken": {500, "UpstreamError"}, "empty": {503, "NoEndpoint"}, "gone": {500, "BadReference"}, "none": {404, "NoRoute"}} {
		for _, method := range []string{"GET", "POST"} {
			request, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.at+"/"+path, strings.NewReader(map[string]string{"POST": "abc"}[method]))
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Accept", "text/html")
			request.Header.Set("X-Request-Id", method+"-"+path)
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			body := read(t, response)
			id := response.Header.Get("X-Request-Id")
			if response.StatusCode != want.status || id == "" || id == method+"-"+path {
				t.Errorf("%s %s: %d %v, want %d", method, path, response.StatusCode, response.Header, want.status)
			}
			if want.reason != "UpstreamError" && (!strings.Contains(body, "<!doctype html>") || strings.Contains(body, "127.0.0.1")) {
				t.Errorf("%s %s: page %q", method, path, body)
			}
			f := r.failures(id)
			if len(f) != 1 || f[0].Reason != want.reason || f[0].Status != want.status {
				t.Errorf("%s %s: failures %+v, want %s", method, path, f, want.reason)
			}
		}
	}
	log := r.g.Ask(gateway.Query{What: gateway.QueryLog, Labels: map[string]string{"app": "dead"}, Namespace: "a"}).Log
	if len(log) != 2 || log[0].Path != "/dead" || log[0].Sequence >= log[1].Sequence || log[0].Service != "a/dead:80" || log[0].Client != "127.0.0.1" {
		t.Errorf("log of dead: %+v", log)
	}
	if later := r.g.Ask(gateway.Query{What: gateway.QueryLog, After: log[0].Sequence, Labels: map[string]string{"app": "dead"}}).Log; len(later) != 1 {
		t.Errorf("after the first: %+v", later)
	}
	r.eventually("the counts of broken", func() bool {
		return r.g.Ask(gateway.Query{What: gateway.QuerySnapshot}).Snapshot.Services["a/broken:80"].Requests == 2
	})
	stats := r.g.Ask(gateway.Query{What: gateway.QuerySnapshot}).Snapshot
	if s := stats.Services["a/broken:80"]; s.Requests != 2 || s.Errors != 2 || s.Codes["5xx"] != 2 || s.Busy <= 0 {
		t.Errorf("stats of broken %+v", s)
	}
}

func TestLimits(t *testing.T) {
	release := make(chan struct{})
	r := start(t, func(t *gateway.Table) {
		t.Settings.Limits = gateway.Limits{HeaderTimeout: 100 * time.Millisecond, HeaderBytes: 16 << 10, HeaderCount: 20, BodyStall: 100 * time.Millisecond, Idle: 200 * time.Millisecond, ConnectionsByClient: 6, BodyBytes: 100000}
	}, backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			<-release
		}
		echo(w, r)
	}))
	defer close(release)
	for name, tc := range map[string]struct{ in, want string }{
		"slow head":      {"GET / HTTP/1.1\r\nHost: a", ""},
		"idle":           {"", ""},
		"idle after one": {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200"},
		"slow body":      {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\nabc", "HTTP/1.1 408"},
		"many fields":    {"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + strings.Repeat("A: b\r\n", 30) + "\r\n", "HTTP/1.1 431"},
		"no request":     {"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", "HTTP/1.1 400"},
		"large head":     {"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nA: " + strings.Repeat("b", 40<<10) + "\r\n\r\n", "HTTP/1.1 431"},
		"large body":     {"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 200000\r\n\r\n", "HTTP/1.1 413"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", r.at)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = io.WriteString(conn, tc.in)
			out, err := io.ReadAll(conn) // to the end: the gateway hangs up
			if err != nil && !strings.Contains(err.Error(), "reset") {
				t.Error(err)
			}
			if tc.want != "" && !strings.Contains(string(out), "\r\nX-Request-Id: ") {
				t.Errorf("an answer without an id: %q", out)
			}
			if !strings.HasPrefix(string(out), tc.want) || tc.want == "" && len(out) > 0 && !bytes.HasPrefix(out, []byte("HTTP/1.1 408")) {
				t.Errorf("got %q, want %s", out, tc.want)
			}
		})
	}
	t.Run("connections of a client", func(t *testing.T) {
		for range 10 {
			conn, err := net.Dial("tcp", r.at)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_, _ = io.WriteString(conn, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
		}
		r.eventually("refusals", func() bool {
			return r.g.Ask(gateway.Query{What: gateway.QuerySnapshot}).Snapshot.Refused["connectionsByClient"] >= 4
		})
	})
}

func TestTakenPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	r := start(t, nil, backend(t, echo))
	listeners := append(r.table.Listeners, gateway.Listener{Name: "taken", Addresses: []netip.Addr{at.Addr()}, Port: at.Port(), Protocol: "http"})
	if err := r.g.Update(gateway.Delta{Listeners: &listeners}); err != nil {
		t.Fatal(err)
	}
	status := func() (s gateway.ListenerStatus) {
		for _, one := range r.g.Ask(gateway.Query{What: gateway.QuerySnapshot}).Snapshot.Listeners {
			if one.Address == at {
				s = one
			}
		}
		return s
	}
	r.eventually("said to be taken", func() bool { return status().InUse })
	if p, ok := gateway.Holder("/proc", at); !ok || p.PID != os.Getpid() {
		t.Errorf("Holder = %+v, %t; want us", p, ok)
	}
	_ = l.Close()
	r.eventually("listening", func() bool { s := status(); return s.Error == "" && len(s.Names) == 1 })
}
