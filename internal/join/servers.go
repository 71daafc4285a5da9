package join

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"gantry.dev/gantry/internal/durable"
)

// ServerName is in the certificate of each server's API, whatever its addresses.
const ServerName = "kubernetes"

// How soon a server that does not answer is given up for another.
const (
	dialAnother = 200 * time.Millisecond // a server that takes longer is tried beside the next
	dialLimit   = time.Second
	pingAfter   = 500 * time.Millisecond // of silence on a connection
	pingLimit   = 500 * time.Millisecond // within which it must answer
)

// DefaultPort is a server's port where none is given.
const DefaultPort = 6443

// WithPort gives an address the default port if it has none.
func WithPort(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = address, strconv.Itoa(DefaultPort)
	}
	if n, err := strconv.Atoi(port); host == "" || err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("%q is not the address of a server, such as 192.0.2.1 or 192.0.2.1:6443", address)
	}
	return net.JoinHostPort(host, port), nil
}

// Servers are the addresses at which a cluster's API is served. Any will do: connections go to one that answers, the one that
// answered last first. It is safe for use by many goroutines.
type Servers struct {
	mu    sync.Mutex // guards the fields below
	addrs []string
	last  string
	conns map[*serverConn]bool
}

// NewServers returns the servers at these addresses.
func NewServers(addrs ...string) *Servers {
	return &Servers{addrs: slices.Clone(addrs), conns: map[*serverConn]bool{}}
}

// List is the addresses.
func (s *Servers) List() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.addrs)
}

// Set replaces the addresses and closes connections to those that went. It reports whether they changed.
func (s *Servers) Set(addrs []string) bool {
	if len(addrs) == 0 {
		return false
	}
	addrs = slices.Compact(slices.Sorted(slices.Values(addrs)))
	s.mu.Lock()
	same := slices.Equal(slices.Sorted(slices.Values(s.addrs)), addrs)
	var gone []*serverConn
	for c := range s.conns {
		if !slices.Contains(addrs, c.addr) {
			gone = append(gone, c)
		}
	}
	s.addrs = addrs
	s.mu.Unlock()
	closeAll(gone)
	return !same
}

// Reconnect closes all connections, so that the next requests make new ones: with another certificate.
func (s *Servers) Reconnect() {
	s.mu.Lock()
	var all []*serverConn
	for c := range s.conns {
		all = append(all, c)
	}
	s.mu.Unlock()
	closeAll(all)
}

func closeAll(conns []*serverConn) {
	for _, c := range conns {
		_ = c.Close()
	}
}

// serverConn takes itself off the list when it is closed.
type serverConn struct {
	net.Conn
	servers *Servers
	addr    string
}

// Close implements net.Conn.
func (c *serverConn) Close() error {
	c.servers.mu.Lock()
	delete(c.servers.conns, c)
	c.servers.mu.Unlock()
	return c.Conn.Close()
}

// Transport makes requests to any of the servers, whatever host they name. A connection that is silent is asked whether it
// lives, so that one to a machine that died is noticed within a second.
func (s *Servers) Transport(config *tls.Config) *http.Transport {
	config = config.Clone()
	config.NextProtos = []string{"h2", "http/1.1"}
	if config.ServerName == "" {
		config.ServerName = ServerName
	}
	return &http.Transport{
		DialTLSContext:    func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dial(ctx, config) },
		ForceAttemptHTTP2: true, IdleConnTimeout: 90 * time.Second, MaxIdleConnsPerHost: 4,
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingLimit},
	}
}

// order is the addresses, the one that answered last first.
func (s *Servers) order() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := slices.Clone(s.addrs)
	if i := slices.Index(out, s.last); i > 0 {
		out[0], out[i] = out[i], out[0]
	}
	return out
}

// dialed is how one attempt ended.
type dialed struct {
	addr string
	conn *tls.Conn
	err  error
}

// dial connects to the first server that completes a handshake.
func (s *Servers) dial(ctx context.Context, config *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	left := s.order()
	if len(left) == 0 {
		return nil, errors.New("no server is known")
	}
	ended := make(chan dialed, len(left))
	running := 0
	next := func() {
		addr := left[0]
		left = left[1:]
		running++
		go func() {
			d := dialed{addr: addr}
			d.conn, d.err = s.handshake(ctx, addr, config)
			ended <- d
		}()
	}
	next()
	timer := time.NewTimer(dialAnother)
	defer timer.Stop()
	var errs []error
	for running > 0 {
		select {
		case <-timer.C:
			if len(left) > 0 {
				next()
				timer.Reset(dialAnother)
			}
		case d := <-ended:
			running--
			if d.err == nil {
				go discard(ended, running)
				s.mu.Lock()
				s.last = d.addr
				s.mu.Unlock()
				return d.conn, nil
			}
			errs = append(errs, d.err)
			if len(left) > 0 {
				next()
			}
		}
	}
	return nil, errors.Join(errs...)
}

// discard closes connections that came too late.
func discard(ended <-chan dialed, n int) {
	for range n {
		if d := <-ended; d.err == nil {
			_ = d.conn.Close()
		}
	}
}

// handshake connects to one server.
func (s *Servers) handshake(ctx context.Context, addr string, config *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	plain, err := (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connecting to server %s: %w", addr, err)
	}
	tracked := &serverConn{Conn: plain, servers: s, addr: addr}
	s.mu.Lock()
	s.conns[tracked] = true
	s.mu.Unlock()
	conn := tls.Client(tracked, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = tracked.Close()
		return nil, fmt.Errorf("connecting to server %s: %w", addr, err)
	}
	return conn, nil
}

// ServersFile is the name, in a server's data dir, of the list of servers, for commands on that machine.
const ServersFile = "servers.json"

// WriteServers replaces the list in one step, if it is another one.
func WriteServers(path string, addrs []string) error {
	if len(addrs) == 0 || slices.Equal(ReadServers(path), addrs) {
		return nil
	}
	text, err := json.Marshal(addrs)
	if err != nil {
		return fmt.Errorf("encoding the list of servers: %w", err)
	}
	return durable.WriteFile(path, append(text, '\n'), 0o600)
}

// ReadServers reads the list. One that cannot be read is empty: it only helps to find servers.
func ReadServers(path string) []string {
	var addrs []string
	if text, err := os.ReadFile(path); err != nil || json.Unmarshal(text, &addrs) != nil {
		return nil
	}
	return addrs
}

// DialTCP connects to the server at own, or, where that does not answer, to another one. It is for clients that do TLS themselves,
// with ServerName.
func (s *Servers) DialTCP(ctx context.Context, network, own string) (net.Conn, error) {
	var errs []error
	order := append([]string{own}, s.order()...)
	s.mu.Lock()
	if s.last != "" {
		order = append([]string{s.last}, order...)
	}
	s.mu.Unlock()
	tried := map[string]bool{}
	for _, addr := range order {
		if tried[addr] {
			continue
		}
		tried[addr] = true
		conn, err := (&net.Dialer{Timeout: dialLimit, KeepAlive: 15 * time.Second}).DialContext(ctx, network, addr)
		if err == nil {
			s.mu.Lock()
			s.last = addr
			s.mu.Unlock()
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
