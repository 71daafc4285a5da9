package edge

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gantry.dev/gantry/internal/network/feed"
	"gantry.dev/gantry/internal/network/gateway"
)

// maxClients bounds the connections of the control socket.
const maxClients = 16

// serveControl accepts clients until ctx ends.
func (e *edge) serveControl(ctx context.Context) error {
	listener := e.sockets.control
	stop := context.AfterFunc(ctx, func() { _ = listener.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var clients sync.WaitGroup
	defer clients.Wait()
	slots := make(chan struct{}, maxClients)
	for {
		conn, err := listener.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		clients.Go(func() {
			defer func() { <-slots }()
			defer func() { _ = conn.Close() }()
			e.serveClient(ctx, conn)
		})
	}
}

// serveClient answers one client's requests.
func (e *edge) serveClient(ctx context.Context, conn *net.UnixConn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	if !trusted(conn) {
		e.log.Warn("a client of another user was refused")
		return
	}
	if feed.Write(conn, feed.KindHello, e.hello()) != nil {
		return
	}
	for {
		kind, payload, err := feed.Read(conn)
		if err != nil {
			return
		}
		if kind == feed.KindTakeover {
			e.handOver(conn)
			return
		}
		if kind == feed.KindEvents {
			e.sendEvents(ctx, conn)
			return
		}
		answer, body := e.handle(kind, payload)
		if feed.Write(conn, answer, body) != nil {
			return
		}
		if kind == feed.KindStop {
			_ = os.Remove(e.opts.Socket)
			e.leave()
			return
		}
	}
}

// sendEvents tells a client of the gateway's events until it hangs up.
func (e *edge) sendEvents(ctx context.Context, conn *net.UnixConn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var reader sync.WaitGroup
	defer reader.Wait()
	defer func() { _ = conn.Close() }()
	reader.Go(func() { // whatever comes, the stream is over
		defer cancel()
		_, _, _ = feed.Read(conn)
	})
	_ = e.gateway.Subscribe(ctx, func(event gateway.Event) error {
		_ = conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
		return feed.Write(conn, feed.KindEvent, event)
	})
}

// handle does one request and returns the answer.
func (e *edge) handle(kind feed.Kind, payload []byte) (feed.Kind, any) {
	var err error
	switch kind {
	case feed.KindTable:
		var table feed.Table
		if err = feed.Decode(payload, &table); err == nil {
			err = e.change(table.Generation, func() error { return e.replace(&table) })
		}
	case feed.KindDelta:
		var delta feed.Delta
		if err = feed.Decode(payload, &delta); err == nil {
			err = e.change(delta.Generation, func() error { return e.update(&delta) })
		}
	case feed.KindQuery:
		var query gateway.Query
		if err = feed.Decode(payload, &query); err == nil {
			return feed.KindAnswer, e.gateway.Ask(query)
		}
	case feed.KindStats:
		return feed.KindStats, e.stats()
	case feed.KindStop:
	default:
		err = feed.ErrFrame
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	ack := feed.Ack{Generation: e.generation}
	if err != nil {
		ack.Error = err.Error()
	}
	return feed.KindAck, ack
}

// replace serves another table: all of it or nothing.
func (e *edge) replace(table *feed.Table) error {
	before := e.zone.Table()
	if err := e.zone.Replace(table.DNS); err != nil {
		return err
	}
	routes := gateway.Table{}
	if table.Gateway != nil {
		routes = *table.Gateway
	}
	if err := e.gateway.Apply(routes); err != nil {
		if before.Config.Domain != "" { // there was one
			err = errors.Join(err, e.zone.Replace(before))
		}
		return err
	}
	return nil
}

// update applies a delta. The gateway's part first: it alone can be refused for what it says.
func (e *edge) update(delta *feed.Delta) error {
	if delta.Gateway != nil {
		if err := e.gateway.Update(*delta.Gateway); err != nil {
			return err
		}
	}
	if len(delta.DNS) == 0 {
		return nil
	}
	return e.zone.Update(delta.DNS)
}

// change applies one request whole and notes that the disk is behind.
func (e *edge) change(generation uint64, apply func() error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := apply(); err != nil {
		return err
	}
	e.generation = generation
	select {
	case e.save <- struct{}{}:
	default:
	}
	return nil
}

func (e *edge) hello() feed.Hello {
	e.mu.Lock()
	defer e.mu.Unlock()
	return feed.Hello{Version: feed.Version, PID: os.Getpid(), Build: e.opts.Build, Generation: e.generation}
}

func (e *edge) stats() feed.Stats {
	s := feed.Stats{Hello: e.hello(), DNS: e.server.Counters(), Sets: len(e.zone.Table().Sets), RSSKiB: residentKiB(),
		Uptime: time.Since(e.started).Seconds()}
	s.Listens = append(s.Listens, e.sockets.names()[1:]...)
	return s
}

// residentKiB is this process's resident memory, 0 if unknown.
func residentKiB() int64 {
	data, err := os.ReadFile("/proc/self/statm")
	fields := strings.Fields(string(data))
	if err != nil || len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize()) / 1024
}

// handOver gives the sockets to a newer edge and leaves once it serves. If it never does, this
// one goes on.
func (e *edge) handOver(conn *net.UnixConn) {
	e.writeTable() // the newer one starts from the disk
	all := e.sockets
	all.http = e.gateway.Listeners()
	if err := all.send(conn); err != nil {
		e.log.Warn("handing the sockets over", "error", err)
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	kind, _, err := feed.Read(conn)
	if err != nil || kind != feed.KindReady {
		e.log.Warn("the newer edge did not get ready; serving on", "error", err)
		return
	}
	e.log.Info("a newer edge has taken over")
	e.gateway.Replaced()
	e.leave()
}

// trusted reports whether the peer is root or of our own user.
func trusted(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		ok = err == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid())
	})
	return err == nil && ok
}
