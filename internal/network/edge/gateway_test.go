//go:build linux

package edge_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gantry.dev/gantry/internal/network/feed"
	"gantry.dev/gantry/internal/network/gateway"
	"gantry.dev/gantry/internal/network/nettest"
)

func selfSigned(t *testing.T) (chain, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"a.example"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

// withGateway adds a gateway to a table: ports 80 and 443, everything to the addresses.
func withGateway(t *testing.T, table feed.Table, addresses ...string) feed.Table {
	t.Helper()
	chain, key := selfSigned(t)
	service := gateway.Service{Namespace: "a", Name: "web", Port: 80}
	for _, a := range addresses {
		service.Endpoints = append(service.Endpoints, gateway.Endpoint{Address: netip.MustParseAddrPort(a), Ready: true})
	}
	table.Gateway = &gateway.Table{
		Listeners:    []gateway.Listener{{Name: "http", Port: 80, Protocol: "http"}, {Name: "https", Port: 443, Protocol: "https"}},
		Certificates: map[string]gateway.Certificate{"c": {Chain: chain, Key: key, Default: true}},
		Services:     map[string]gateway.Service{"a/web:80": service},
		Routes:       map[string][]gateway.Route{"R/a/web": {{Backends: []gateway.Backend{{Service: "a/web:80", Weight: 1}}}}},
	}
	return table
}

func fetch(client *http.Client, url string) error {
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 || string(body) != "hello" {
		return fmt.Errorf("%s: status %d, %q, %w", url, response.StatusCode, body, err)
	}
	return nil
}

// While edges replace each other, every request is answered, new connections and old ones,
// and a WebSocket stays.
func TestGatewayTakeover(t *testing.T) {
	nettest.Need(t)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/tunnel" {
			conn, buf, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			_, _ = buf.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_ = buf.Flush()
			_, _ = io.Copy(conn, buf)
			_ = conn.Close()
			return
		}
		_, _ = io.WriteString(w, "hello")
	}))
	defer backend.Close()
	opts := options(t, "one", testUID)
	opts.Drain = gateway.Drain{Idle: 500 * time.Millisecond}
	old := start(t, opts)
	conn, _ := connect(t, opts)
	request(t, conn, feed.KindTable, withGateway(t, table(1, "10.96.0.1"), backend.Listener.Addr().String()))
	insecure := &tls.Config{InsecureSkipVerify: true}
	waitFor(t, "the gateway", func() error {
		return fetch(&http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: insecure}}, "https://127.0.0.1/")
	})
	tunnel, err := net.Dial("tcp", "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(tunnel, "GET /tunnel HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	fromTunnel := bufio.NewReader(tunnel)
	if _, err := http.ReadResponse(fromTunnel, nil); err != nil {
		t.Fatal(err)
	}
	var load sync.WaitGroup
	var stop atomic.Bool
	var asked atomic.Int64
	for name, transport := range map[string]*http.Transport{
		"http://127.0.0.1/":       {},
		"http://localhost/fresh":  {DisableKeepAlives: true},
		"https://127.0.0.1/one":   {TLSClientConfig: insecure.Clone()},
		"https://127.0.0.1/two":   {TLSClientConfig: insecure.Clone(), ForceAttemptHTTP2: true},
		"https://127.0.0.1/fresh": {TLSClientConfig: insecure.Clone(), DisableKeepAlives: true},
	} {
		load.Go(func() {
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport}
			for !stop.Load() {
				// POST is never sent again by the client: nothing is hidden.
				response, err := client.Post(strings.Replace(name, "localhost", "127.0.0.1", 1), "text/plain", strings.NewReader("x"))
				if err != nil {
					t.Errorf("during the takeover: %v", err)
					return
				}
				_, _ = io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
				if response.StatusCode != 200 {
					t.Errorf("during the takeover: %s: %s", name, response.Status)
				}
				asked.Add(1)
			}
		})
	}
	olds := []*process{old}
	for i := range 3 {
		before := asked.Load()
		opts.Build = fmt.Sprintf("build-%d", i)
		olds = append(olds, start(t, opts))
		connect(t, opts)
		waitFor(t, "requests at the new one", func() error {
			if asked.Load() < before+200 && !t.Failed() {
				return fmt.Errorf("%d requests", asked.Load()-before)
			}
			return nil
		})
	}
	stop.Store(true)
	load.Wait()
	_, _ = io.WriteString(tunnel, "still here\n")
	if line, err := fromTunnel.ReadString('\n'); line != "still here\n" || err != nil {
		t.Errorf("the tunnel through the oldest edge: %q, %v", line, err)
	}
	_ = tunnel.Close()
	for _, p := range olds[:len(olds)-1] {
		p.waitEnd()
	}
	t.Logf("%d requests", asked.Load())
}

// An edge that starts alone serves what it was fed last; keys on disk are its own.
func TestGatewayFromDisk(t *testing.T) {
	nettest.Need(t)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	defer backend.Close()
	opts := options(t, "one", testUID)
	p := start(t, opts)
	conn, _ := connect(t, opts)
	request(t, conn, feed.KindTable, withGateway(t, table(1, "10.96.0.1")))
	request(t, conn, feed.KindDelta, feed.Delta{Generation: 2, Gateway: &gateway.Delta{Endpoints: map[string][]gateway.Endpoint{
		"a/web:80": {{Address: netip.MustParseAddrPort(backend.Listener.Addr().String()), Ready: true}}}}})
	waitSaved(t, opts, 2)
	info, err := os.Stat(filepath.Join(opts.StateDir, "table.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the table on disk: %v, %v", info.Mode(), err)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait()
	start(t, opts)
	conn, _ = connect(t, opts)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	waitFor(t, "the gateway", func() error { return fetch(client, "http://127.0.0.1/") })
	if err := feed.Write(conn, feed.KindQuery, gateway.Query{What: gateway.QuerySnapshot}); err != nil {
		t.Fatal(err)
	}
	var answer gateway.Answer
	if err := feed.Expect(conn, feed.KindAnswer, &answer); err != nil || answer.Snapshot == nil || answer.Snapshot.Services["a/web:80"].Requests == 0 {
		t.Errorf("snapshot %+v, %v", answer.Snapshot, err)
	}
	request(t, conn, feed.KindStop, nil)
}

// Requests wait for a sleeping service; the client of the events hears of it.
func TestGatewayWake(t *testing.T) {
	nettest.Need(t)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	defer backend.Close()
	opts := options(t, "one", testUID)
	start(t, opts)
	conn, _ := connect(t, opts)
	fed := withGateway(t, table(1, "10.96.0.1"))
	service := fed.Gateway.Services["a/web:80"]
	service.Hold = time.Minute
	fed.Gateway.Services["a/web:80"] = service
	request(t, conn, feed.KindTable, fed)
	events, _ := connect(t, opts)
	if err := feed.Write(events, feed.KindEvents, nil); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		for {
			if err := fetch(client, "http://127.0.0.1/"); err == nil || !strings.Contains(err.Error(), "refused") {
				done <- err
				return
			}
		}
	}()
	for {
		var event gateway.Event
		if err := feed.Expect(events, feed.KindEvent, &event); err != nil {
			t.Fatal(err)
		}
		if event.Kind == gateway.EventWake {
			break
		}
	}
	begun := time.Now()
	request(t, conn, feed.KindDelta, feed.Delta{Generation: 2, Gateway: &gateway.Delta{Endpoints: map[string][]gateway.Endpoint{
		"a/web:80": {{Address: netip.MustParseAddrPort(backend.Listener.Addr().String()), Ready: true}}}}})
	if err := <-done; err != nil {
		t.Error(err)
	}
	t.Logf("answered %v after the endpoint", time.Since(begun))
}

func waitFor(t *testing.T, what string, ok func() error) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}
