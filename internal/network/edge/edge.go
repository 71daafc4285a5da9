package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/network/dns"
	"gantry.dev/gantry/internal/network/feed"
	"gantry.dev/gantry/internal/network/gateway"
)

// Options says where the edge listens and what it may do.
type Options struct {
	Socket     string           // the control socket's path, at most 107 bytes
	StateDir   string           // holds the last good table
	Listen     []netip.AddrPort // DNS by UDP and TCP; the addresses need not exist yet
	UID        int              // user and group to become; 0 stays
	Build      string           // told to clients; usually the file's hash
	ResolvConf string           // default /etc/resolv.conf
	Upstream   uint16           // port of the servers in ResolvConf; default 53
	Drain      gateway.Drain    // of the gateway's connections, once a newer edge has taken over
	Logger     *slog.Logger     `json:"-"` // default: discards
}

// saveDelay is how long changes are collected before the table is written to disk.
const saveDelay = 300 * time.Millisecond

// tableFile is the last good table, in StateDir.
const tableFile = "table.json"

// edge is one running process's state.
type edge struct {
	opts    Options
	log     *slog.Logger
	zone    *dns.Zone
	server  *dns.Server
	gateway *gateway.Gateway
	access  *os.Root // the gateway's access log
	sockets sockets
	state   *os.Root
	started time.Time
	leave   context.CancelFunc // ends serving

	save chan struct{} // holds one token when the table changed

	mu         sync.Mutex // guards the fields below
	generation uint64
	saved      uint64
}

// Run serves until ctx ends, a client asks it to stop, or a newer edge has taken over.
func Run(ctx context.Context, opts Options) error {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if !filepath.IsAbs(opts.Socket) || len(opts.Socket) > 107 || !filepath.IsAbs(opts.StateDir) || len(opts.Listen) == 0 {
		return fmt.Errorf("edge: Socket is %q, StateDir %q, Listen %v: want absolute paths, at most 107 bytes for the socket, and an address", opts.Socket, opts.StateDir, opts.Listen)
	}
	if err := os.MkdirAll(opts.StateDir, 0o700); err != nil {
		return fmt.Errorf("edge: %w", err)
	}
	state, err := os.OpenRoot(opts.StateDir)
	if err != nil {
		return fmt.Errorf("edge: opening the state directory: %w", err)
	}
	defer func() { _ = state.Close() }()
	unlock, err := lockStart(state)
	if err != nil {
		return err
	}
	defer unlock()
	socks, old, err := acquire(ctx, opts)
	if err != nil {
		return err
	}
	if old != nil {
		defer func() { _ = old.Close() }()
	}
	if err := becomeUser(opts, state); err != nil {
		socks.close()
		return err
	}
	access, err := openAccess(state)
	if err != nil {
		socks.close()
		return err
	}
	defer func() { _ = access.Close() }()
	way, err := gateway.New(gateway.Options{LogDir: access, Inherited: socks.http, Logger: opts.Logger, Drain: opts.Drain})
	if err != nil {
		socks.close()
		return fmt.Errorf("edge: %w", err)
	}
	socks.http = nil // the gateway's now
	self := make([]netip.Addr, 0, len(opts.Listen))
	for _, at := range opts.Listen {
		self = append(self, at.Addr())
	}
	e := &edge{opts: opts, log: opts.Logger, zone: dns.NewZone(), gateway: way, access: access, sockets: socks, state: state, started: time.Now(), save: make(chan struct{}, 1)}
	e.server = dns.NewServer(e.zone, dns.NewForwarder(dns.ForwarderOptions{ResolvConf: opts.ResolvConf, Self: self, Port: opts.Upstream}), opts.Logger)
	e.load()
	return e.serve(ctx, old, unlock)
}

// serve runs all loops. old is the connection to the edge that is being replaced.
func (e *edge) serve(ctx context.Context, old *net.UnixConn, unlock func()) error {
	ctx, e.leave = context.WithCancel(ctx)
	defer e.leave()
	group, groupCtx := errgroup.WithContext(ctx)
	for _, conn := range e.sockets.udp {
		group.Go(func() error { return e.server.ServeUDP(groupCtx, conn) })
	}
	for _, listener := range e.sockets.tcp {
		group.Go(func() error { return e.server.ServeTCP(groupCtx, listener) })
	}
	group.Go(func() error { return e.gateway.Run(groupCtx) })
	group.Go(func() error { return e.serveControl(groupCtx) })
	group.Go(func() error { return e.saveLoop(groupCtx) })
	if old != nil {
		if err := feed.Write(old, feed.KindReady, nil); err != nil {
			e.log.Warn("telling the older edge to leave", "error", err)
		}
	}
	unlock()
	e.log.Info("serving", "pid", os.Getpid(), "build", e.opts.Build, "takenOver", old != nil)
	err := group.Wait()
	e.sockets.close()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// load takes the last good table from disk; without one the edge waits to be fed.
func (e *edge) load() {
	data, err := e.state.ReadFile(tableFile)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	var table feed.Table
	if err == nil {
		err = feed.Decode(data, &table)
	}
	if err == nil {
		err = e.zone.Replace(table.DNS)
	}
	if err == nil && table.Gateway != nil {
		err = e.gateway.Apply(*table.Gateway)
	}
	if err != nil {
		e.log.Warn("the last table cannot be used; waiting for a new one", "error", err)
		return
	}
	e.generation, e.saved = table.Generation, table.Generation
}

// saveLoop writes the table to disk a little after each change, and at the end.
func (e *edge) saveLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			e.writeTable()
			return nil
		case <-e.save:
		}
		timer := time.NewTimer(saveDelay)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
		e.writeTable()
	}
}

// writeTable writes what is served to disk, whole or not at all.
func (e *edge) writeTable() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.saved == e.generation {
		return
	}
	routes := e.gateway.Table()
	frame, err := feed.Encode(feed.KindTable, feed.Table{Generation: e.generation, DNS: e.zone.Table(), Gateway: &routes})
	if err == nil {
		err = e.replaceFile(frame[5:])
	}
	if err != nil {
		e.log.Warn("keeping the table on disk", "error", err)
		return
	}
	e.saved = e.generation
}

func (e *edge) replaceFile(data []byte) error {
	temporary := tableFile + ".tmp"
	f, err := e.state.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return e.state.Rename(temporary, tableFile)
}

// accessDir holds the access log, in StateDir.
const accessDir = "access"

// openAccess returns the access log's directory.
func openAccess(state *os.Root) (*os.Root, error) {
	if err := state.Mkdir(accessDir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("edge: making the access log's directory: %w", err)
	}
	root, err := state.OpenRoot(accessDir)
	if err != nil {
		return nil, fmt.Errorf("edge: opening the access log: %w", err)
	}
	return root, nil
}

// lockStart lets one edge at a time look for the sockets and make or take them.
func lockStart(state *os.Root) (unlock func(), err error) {
	f, err := state.OpenFile("start.lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("edge: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("edge: waiting for another start: %w", err)
	}
	var once sync.Once
	return func() { once.Do(func() { _ = f.Close() }) }, nil
}
