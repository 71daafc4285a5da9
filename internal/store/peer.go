package store

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.uber.org/zap"
)

// Peer says how other members reach this one and whom it believes. The files are read again for each
// connection, so certificates may be renewed while the store runs.
type Peer struct {
	URL      string // "https://192.0.2.1:2380": listened on, and told to the others
	CertFile string // for both directions
	KeyFile  string
	CAFile   string        // of all members
	Tick     time.Duration // etcd's heartbeat among members, the same for all; default 100ms. An election begins after ten
}

func (p *Peer) check() error {
	if p == nil {
		return nil
	}
	at, err := url.Parse(p.URL)
	switch {
	case err != nil:
		return fmt.Errorf("store: Peer.URL: %w", err)
	case at.Scheme != "https" || at.Port() == "":
		return fmt.Errorf("store: Peer.URL is %q, want https://ADDRESS:PORT", p.URL)
	case p.CertFile == "" || p.KeyFile == "" || p.CAFile == "":
		return errors.New("store: Peer needs CertFile, KeyFile and CAFile")
	case p.Tick < time.Millisecond:
		return fmt.Errorf("store: Peer.Tick is %v, want at least 1ms", p.Tick)
	}
	return nil
}

func (p *Peer) tlsInfo(logger *zap.Logger) transport.TLSInfo {
	return transport.TLSInfo{
		CertFile: p.CertFile, KeyFile: p.KeyFile, TrustedCAFile: p.CAFile, ClientCertAuth: true, Logger: logger,
		// Whoever has a certificate of the members' authority is one; which of its addresses it calls from is up to its routes.
		SkipClientSANVerify: true,
	}
}

// peerListener takes the other members' connections.
type peerListener struct {
	listener net.Listener
	server   *http.Server
	served   sync.WaitGroup
}

// listenPeers opens the listener. Connections wait until serve is called.
func listenPeers(p *Peer, logger *slog.Logger) (*peerListener, error) {
	at, err := url.Parse(p.URL)
	if err != nil {
		return nil, fmt.Errorf("address for other members: %w", err)
	}
	info := p.tlsInfo(zap.New(slogCore{logger}))
	listener, err := rafthttp.NewListener(*at, &info)
	if err != nil {
		return nil, fmt.Errorf("listening for other members on %s: %w", at.Host, err)
	}
	return &peerListener{listener: listener, server: &http.Server{
		ReadTimeout: 5 * time.Minute, // etcd's own: streams are renewed by it
		ErrorLog:    slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}}, nil
}

func (l *peerListener) serve(handler http.Handler) {
	l.server.Handler = handler
	l.served.Go(func() { _ = l.server.Serve(l.listener) }) // it ends when close is called
}

func (l *peerListener) close() {
	_ = l.server.Close() // closes what it serves, if it does
	_ = l.listener.Close()
	l.served.Wait()
}
