package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Limits of a Server.
const (
	maxForwards = 512 // questions of UDP clients that wait for other servers
	maxTCP      = 128 // connections
	tcpIdle     = 10 * time.Second
)

// Counters are what a Server has done so far.
type Counters struct {
	Queries   uint64 `json:"queries"`
	Local     uint64 `json:"local"`     // answered from memory
	Forwarded uint64 `json:"forwarded"` // handed to other servers or their cached answers
	Failed    uint64 `json:"failed"`    // answered with a server failure
	Dropped   uint64 `json:"dropped"`   // given no answer
}

// Server answers on sockets from a Zone and a Forwarder.
type Server struct {
	zone    *Zone
	forward *Forwarder
	log     *slog.Logger

	queries, local, forwarded, failed, dropped atomic.Uint64
	turn                                       atomic.Uint32 // rotates addresses
	forwards                                   chan struct{} // one token a question under way
	conns                                      chan struct{} // one token a TCP connection
}

// NewServer joins a zone and a forwarder; it starts nothing.
func NewServer(zone *Zone, forward *Forwarder, log *slog.Logger) *Server {
	return &Server{zone: zone, forward: forward, log: log,
		forwards: make(chan struct{}, maxForwards), conns: make(chan struct{}, maxTCP)}
}

// Counters returns what was counted so far.
func (s *Server) Counters() Counters {
	return Counters{s.queries.Load(), s.local.Load(), s.forwarded.Load(), s.failed.Load(), s.dropped.Load()}
}

// Answer answers one message; nil means none is due. limit is the transport's: 0 takes what
// the client offers for UDP. Cost: a question about the cluster never waits.
func (s *Server) Answer(ctx context.Context, message []byte, limit int) []byte {
	answer, later := s.answerNow(message, limit)
	if later == nil {
		return answer
	}
	return later(ctx, message)
}

// waiter finishes an answer that may have to wait for other servers. It gets the message that
// the question came in.
type waiter func(ctx context.Context, message []byte) []byte

// answerNow answers from memory, or returns what finishes the answer.
func (s *Server) answerNow(message []byte, limit int) (answer []byte, later waiter) {
	s.queries.Add(1)
	q, answer, ok := parseQuery(message)
	if !ok {
		if answer == nil {
			s.dropped.Add(1)
		}
		return answer, nil
	}
	if limit == 0 {
		limit = q.size
	}
	r := s.zone.Lookup(q.lower, Type(q.question.Type))
	switch {
	case r.Forward:
		return nil, func(ctx context.Context, message []byte) []byte { return s.ask(ctx, q, message, limit) }
	case r.Outside != "" && (q.question.Type == dnsmessage.TypeA || q.question.Type == dnsmessage.TypeAAAA):
		return nil, func(ctx context.Context, _ []byte) []byte { return s.follow(ctx, q, r, limit) }
	}
	s.local.Add(1)
	return s.finish(q, r, nil, dnsmessage.RCodeSuccess, limit), nil
}

// finish builds the answer of a zone's result.
func (s *Server) finish(q query, r Result, more []dnsmessage.Resource, code dnsmessage.RCode, limit int) []byte {
	answer := localAnswer(q, s.zone.Config(), r, s.turn.Add(1), more, code)
	if answer == nil {
		s.failed.Add(1)
		return errorAnswer(q, dnsmessage.RCodeServerFailure)
	}
	return fit(q, answer, limit)
}

// Config returns the zone's configuration.
func (z *Zone) Config() Config {
	z.mu.RLock()
	defer z.mu.RUnlock()
	return z.config
}

// ask hands the question to other servers.
func (s *Server) ask(ctx context.Context, q query, message []byte, limit int) []byte {
	s.forwarded.Add(1)
	answer, err := s.forward.exchange(ctx, q, message)
	if err != nil || answer == nil {
		s.failed.Add(1)
		s.log.Debug("forwarding a question", "error", err)
		return errorAnswer(q, dnsmessage.RCodeServerFailure)
	}
	return fit(q, answer, limit)
}

// follow asks other servers where an alias leads to.
func (s *Server) follow(ctx context.Context, q query, r Result, limit int) []byte {
	s.forwarded.Add(1)
	name, err := dnsmessage.NewName(r.Outside + ".")
	if err != nil {
		return s.finish(q, r, nil, dnsmessage.RCodeServerFailure, limit)
	}
	next := query{header: dnsmessage.Header{RecursionDesired: true}, lower: r.Outside,
		question: dnsmessage.Question{Name: name, Type: q.question.Type, Class: dnsmessage.ClassINET}}
	message := build(next, next.header, func(*dnsmessage.Builder) error { return nil })
	answer, err := s.forward.exchange(ctx, next, message)
	var p dnsmessage.Parser
	if err == nil {
		_, err = p.Start(answer)
	}
	if err == nil {
		err = p.SkipAllQuestions()
	}
	var more []dnsmessage.Resource
	if err == nil {
		more, err = p.AllAnswers()
	}
	if err != nil {
		s.failed.Add(1)
		return s.finish(q, r, nil, dnsmessage.RCodeServerFailure, limit)
	}
	return s.finish(q, r, more, dnsmessage.RCodeSuccess, limit)
}

// ServeUDP answers on a socket until ctx ends or the socket fails. What it read by then it
// still answers. It does not close the socket.
func (s *Server) ServeUDP(ctx context.Context, conn *net.UDPConn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var waiting sync.WaitGroup
	defer waiting.Wait()
	buf := make([]byte, 65535)
	for {
		n, peer, err := conn.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil && err != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		answer, later := s.answerNow(buf[:n], 0)
		if later == nil {
			s.reply(conn, answer, peer)
			continue
		}
		select {
		case s.forwards <- struct{}{}:
		default:
			s.dropped.Add(1)
			continue
		}
		message := slices.Clone(buf[:n]) // buf is read into again
		waiting.Go(func() {
			defer func() { <-s.forwards }()
			s.reply(conn, later(context.WithoutCancel(ctx), message), peer)
		})
	}
}

func (s *Server) reply(conn *net.UDPConn, answer []byte, peer netip.AddrPort) {
	if answer == nil {
		return
	}
	if _, err := conn.WriteToUDPAddrPort(answer, peer); err != nil {
		s.log.Debug("answering", "peer", peer.String(), "error", err)
	}
}

// ServeTCP answers on a listener until ctx ends or it fails. It does not close the listener.
func (s *Server) ServeTCP(ctx context.Context, listener *net.TCPListener) error {
	stop := context.AfterFunc(ctx, func() { _ = listener.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var waiting sync.WaitGroup
	defer waiting.Wait()
	for {
		conn, err := listener.AcceptTCP() // what it took is served, whatever ctx says
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			continue
		}
		select {
		case s.conns <- struct{}{}:
		default:
			_ = conn.Close()
			s.dropped.Add(1)
			continue
		}
		waiting.Go(func() {
			defer func() { <-s.conns }()
			defer func() { _ = conn.Close() }()
			s.serveConn(ctx, conn)
		})
	}
}

// tcpLeave is how long a connection may still bring its question after ctx has ended.
const tcpLeave = time.Second

// serveConn answers the questions of one connection, one after the other. After ctx has ended
// it answers one more, which the client may have sent already.
func (s *Server) serveConn(ctx context.Context, conn *net.TCPConn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now().Add(tcpLeave)) })
	defer stop()
	for last := false; !last; {
		if conn.SetDeadline(time.Now().Add(tcpIdle)) != nil {
			return
		}
		if last = ctx.Err() != nil; last {
			_ = conn.SetReadDeadline(time.Now().Add(tcpLeave))
		}
		var length [2]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		message := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(conn, message); err != nil {
			return
		}
		answer := s.Answer(context.WithoutCancel(ctx), message, 65535)
		if answer == nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}
