package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// conn is a client's connection.
type conn struct {
	*net.TCPConn
	g       *Gateway
	port    uint16
	scheme  string
	peer    netip.Addr
	client  string // peer as text
	raw     syscall.RawConn
	idle    atomic.Bool  // it waits for the next request on the fast path
	writeBy atomic.Int64 // Unix nanoseconds: the deadline that is set
	readBy  time.Time    // the deadline that is set; only the fast path uses it
	closed  atomic.Bool
}

// Write bounds how long the client may take none of it.
func (c *conn) Write(p []byte) (int, error) {
	now := time.Now()
	stall := c.g.config.Load().limits.BodyStall
	if time.Duration(c.writeBy.Load()-now.UnixNano()) < stall/2 {
		by := now.Add(stall)
		if err := c.SetWriteDeadline(by); err != nil {
			return 0, err
		}
		c.writeBy.Store(by.UnixNano())
	}
	return c.TCPConn.Write(p)
}

// Close also ends the connection's count.
func (c *conn) Close() error {
	if !c.closed.Swap(true) {
		c.g.forget(c)
	}
	return c.TCPConn.Close()
}

// admit counts a new connection, or says which limit refuses it.
func (g *Gateway) admit(c *conn) string {
	config := g.config.Load()
	g.connMu.Lock()
	defer g.connMu.Unlock()
	if len(g.conns) >= config.limits.Connections {
		return "connections"
	}
	if g.byClient[c.peer] >= config.limits.ConnectionsByClient && !config.trusted(c.peer) {
		return "connectionsByClient"
	}
	g.conns[c] = struct{}{}
	g.byClient[c.peer]++
	return ""
}

func (g *Gateway) forget(c *conn) {
	g.connMu.Lock()
	defer g.connMu.Unlock()
	if _, ok := g.conns[c]; !ok {
		return
	}
	delete(g.conns, c)
	if g.byClient[c.peer]--; g.byClient[c.peer] <= 0 {
		delete(g.byClient, c.peer)
	}
}

// listening is one address that is, or should be, listened on.
type listening struct {
	listener *net.TCPListener // nil: see status
	status   ListenerStatus
	stop     context.CancelFunc
	done     chan struct{} // closed when accepting has ended
}

// listenKey is an address as ListenerStatus shows it: 0.0.0.0 for any unspecified one.
func listenKey(at netip.AddrPort) netip.AddrPort {
	addr := at.Addr().Unmap()
	if addr.IsUnspecified() {
		addr = netip.IPv4Unspecified()
	}
	return netip.AddrPortFrom(addr, at.Port())
}

// wanted returns the addresses of listeners with their names.
func wanted(listeners []Listener) map[netip.AddrPort][]string {
	out := map[netip.AddrPort][]string{}
	for _, l := range listeners {
		addresses := l.Addresses
		if len(addresses) == 0 {
			addresses = []netip.Addr{netip.IPv4Unspecified()}
		}
		for _, a := range addresses {
			key := listenKey(netip.AddrPortFrom(a, l.Port))
			out[key] = append(out[key], l.Name)
		}
	}
	return out
}

// relistenDelay is how often an address that is taken is tried again.
const relistenDelay = time.Second

// listenLoop keeps listening on what the table says until ctx ends, and then stops accepting.
func (g *Gateway) listenLoop(ctx context.Context) error {
	timer := time.NewTicker(relistenDelay)
	defer timer.Stop()
	for {
		g.relisten(ctx)
		select {
		case <-ctx.Done():
			g.listenMu.Lock()
			defer g.listenMu.Unlock()
			for key, l := range g.listens {
				g.stopListeningLocked(key, l)
			}
			return nil
		case <-timer.C:
		case <-g.listenWake:
		}
	}
}

// relisten opens and closes listeners until they are as wanted, or an address is taken.
func (g *Gateway) relisten(ctx context.Context) {
	g.listenMu.Lock()
	defer g.listenMu.Unlock()
	if ctx.Err() != nil {
		return
	}
	g.mu.Lock()
	want := wanted(g.table.Listeners)
	g.mu.Unlock()
	for key, l := range g.listens {
		if want[key] == nil {
			g.stopListeningLocked(key, l)
		}
	}
	for key, names := range want {
		l := g.listens[key]
		if l == nil {
			l = &listening{}
			g.listens[key] = l
		}
		before := l.status
		l.status.Address, l.status.Names = key, names
		if l.listener == nil {
			g.openLocked(ctx, key, l)
		}
		if l.status.Error != before.Error || !slices.Equal(l.status.Names, before.Names) {
			status := l.status
			g.tell(Event{Kind: EventListener, Listener: &status})
		}
	}
	for _, l := range g.inherited { // the table does not want them any more
		_ = l.Close()
	}
	g.inherited = nil
}

// openLocked listens on one address or notes why it cannot.
func (g *Gateway) openLocked(ctx context.Context, key netip.AddrPort, l *listening) {
	i := slices.IndexFunc(g.inherited, func(have *net.TCPListener) bool { return listenKey(addrPort(have.Addr())) == key })
	var err error
	if i >= 0 {
		l.listener = g.inherited[i]
		g.inherited = slices.Delete(g.inherited, i, i+1)
	} else {
		l.listener, err = listenTCP(ctx, key)
	}
	if err != nil {
		l.status.Error, l.status.InUse = err.Error(), errors.Is(err, syscall.EADDRINUSE)
		return
	}
	l.status.Error, l.status.InUse = "", false
	acceptCtx, stop := context.WithCancel(ctx)
	l.stop, l.done = stop, make(chan struct{})
	go func(listener *net.TCPListener, done chan struct{}) {
		defer close(done)
		g.accept(acceptCtx, listener, key.Port())
	}(l.listener, l.done)
}

func (g *Gateway) stopListeningLocked(key netip.AddrPort, l *listening) {
	if l.listener != nil {
		l.stop()
		<-l.done
		_ = l.listener.Close()
	}
	delete(g.listens, key)
}

func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort()
	}
	return netip.AddrPort{}
}

func listenTCP(ctx context.Context, at netip.AddrPort) (*net.TCPListener, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var setErr error
		err := raw.Control(func(fd uintptr) { setErr = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(err, setErr)
	}}
	config.SetMultipathTCP(false)
	text := at.String()
	if at.Addr().IsUnspecified() {
		text = ":" + strconv.Itoa(int(at.Port())) // both families
	}
	listener, err := config.Listen(ctx, "tcp", text)
	if err != nil {
		return nil, err
	}
	tcp, ok := listener.(*net.TCPListener)
	if !ok {
		return nil, fmt.Errorf("listening on %s gave a %T", text, listener)
	}
	return tcp, nil
}

// accept serves connections of one listener until ctx ends. The listener stays open: a
// successor may share it.
func (g *Gateway) accept(ctx context.Context, listener *net.TCPListener, port uint16) {
	stop := context.AfterFunc(ctx, func() { _ = listener.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		tcp, err := listener.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			select { // out of descriptors, most likely
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
			continue
		}
		g.connWait.Go(func() { g.serveConn(tcp, port) })
	}
}

// serveConn serves a new connection.
func (g *Gateway) serveConn(tcp *net.TCPConn, port uint16) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		_ = tcp.Close()
		return
	}
	peer := addrPort(tcp.RemoteAddr()).Addr().Unmap().WithZone("")
	config := g.config.Load()
	c := &conn{TCPConn: tcp, g: g, port: port, scheme: cmp.Or(config.protocols[port], ProtocolHTTP), peer: peer, client: peer.String(), raw: raw}
	if limit := g.admit(c); limit != "" {
		g.refuse(limit)
		_ = tcp.Close()
		return
	}
	if c.scheme == ProtocolHTTPS {
		g.serveTLS(c)
		return
	}
	g.serveFast(c, c)
}

// refuse counts what a limit kept out.
func (g *Gateway) refuse(limit string) {
	g.connMu.Lock()
	defer g.connMu.Unlock()
	g.refused[limit]++
}
