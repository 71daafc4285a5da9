package gateway

import (
	"bufio"
	"context"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxIdleBackend  = 256 // connections kept for one endpoint
	backendIdle     = 30 * time.Second
	backendBuffer   = 4 << 10
	trustedIdle     = time.Second // a connection idle for longer is looked at before it is used
	backendLookLoop = 5 * time.Second
)

// pool holds idle HTTP/1.1 connections to one endpoint, for the fast path.
type pool struct {
	mu     sync.Mutex // guards the fields below
	closed bool
	idle   []*backend // the last is the newest
}

// backend is a connection to an endpoint.
type backend struct {
	*net.TCPConn
	reader   *bufio.Reader
	source   *patient // what reader reads from
	raw      syscall.RawConn
	since    time.Time // it is idle
	deadline time.Time // that is set for reading
	reused   bool
}

// setOpen lets connections be kept, or closes the idle ones and those that come back.
func (p *pool) setOpen(open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = !open
	if !open {
		closeAll(p.idle)
		p.idle = nil
	}
}

func closeAll(list []*backend) {
	for _, b := range list {
		_ = b.Close()
	}
}

// take returns an idle connection that still seems good, or nil. A careful caller has a
// request that cannot be sent twice.
func (p *pool) take(now time.Time, careful bool) *backend {
	for {
		p.mu.Lock()
		if len(p.idle) == 0 {
			p.mu.Unlock()
			return nil
		}
		b := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		p.mu.Unlock()
		if (careful || now.Sub(b.since) > trustedIdle) && b.ended() {
			_ = b.Close()
			continue
		}
		b.reused = true
		return b
	}
}

// give keeps a connection for later.
func (p *pool) give(b *backend, now time.Time) {
	b.since = now
	p.mu.Lock()
	if !p.closed && len(p.idle) < maxIdleBackend {
		p.idle = append(p.idle, b)
		b = nil
	}
	p.mu.Unlock()
	if b != nil {
		_ = b.Close()
	}
}

// flush closes all idle connections.
func (p *pool) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	closeAll(p.idle)
	p.idle = nil
}

// expire closes connections that were idle for too long.
func (p *pool) expire(now time.Time) {
	p.mu.Lock()
	n := 0
	for n < len(p.idle) && now.Sub(p.idle[n].since) > backendIdle {
		n++
	}
	old := p.idle[:n:n]
	p.idle = append([]*backend(nil), p.idle[n:]...)
	p.mu.Unlock()
	closeAll(old)
}

// ended reports whether the peer has closed or sent what nobody asked for.
func (b *backend) ended() bool { return b.reader.Buffered() > 0 || readable(b.raw) }

// readable reports whether a read would not wait: data, an end or an error.
func readable(raw syscall.RawConn) bool { return polls(raw, unix.POLLIN|unix.POLLRDHUP) }

// hungUp reports whether the peer has ended its side or the connection is broken.
func hungUp(raw syscall.RawConn) bool { return polls(raw, unix.POLLRDHUP) }

func polls(raw syscall.RawConn, events int16) bool {
	ready := false
	err := raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(fds, 0)
		ready = err != nil || n > 0
	})
	return ready || err != nil
}

// backendDialer connects to endpoints. A peer that vanished without a word is noticed by the
// kernel: by probes when idle, by the limit on unacknowledged data when not.
func backendDialer() *net.Dialer {
	return &net.Dialer{Timeout: dialTimeout, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3},
		Control: func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 10_000)
			})
		}}
}

// dial makes a connection for the fast path.
func (e *endpoint) dial(dialer *net.Dialer) (*backend, error) {
	conn, err := dialer.DialContext(context.Background(), "tcp", e.address)
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	b := &backend{TCPConn: tcp, raw: raw}
	b.source = &patient{b: b}
	b.reader = bufio.NewReaderSize(b.source, backendBuffer)
	return b, nil
}
