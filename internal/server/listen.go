package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"gantry.dev/gantry/internal/pki"
)

// closeGrace is how long the last bytes of a connection that is closed may take.
const closeGrace = 5 * time.Second

// shutdownGrace is how long requests under way may take when the process stops.
const shutdownGrace = 5 * time.Second

// farewell is how long clients have, once they are told to go elsewhere, before their watches end. A client
// whose watch ends first watches again over the same connection, in vain, and then lists everything.
const farewell = 100 * time.Millisecond

// apiListener serves a handler over TLS on some addresses.
type apiListener struct {
	handler http.Handler
	tls     *tls.Config
	addrs   []netip.AddrPort
	logger  *slog.Logger

	once  sync.Once
	ready chan struct{}
}

func (l *apiListener) listening() chan struct{} {
	l.once.Do(func() { l.ready = make(chan struct{}) })
	return l.ready
}

// Ready blocks until all addresses are listened on.
func (l *apiListener) Ready(ctx context.Context) error { return waitFor(l.listening())(ctx) }

// Run serves until ctx ends. Watches end with it, other requests may finish.
func (l *apiListener) Run(ctx context.Context) error {
	var config net.ListenConfig
	listeners := make([]net.Listener, 0, len(l.addrs))
	for _, addr := range l.addrs {
		listener, err := config.Listen(ctx, "tcp", addr.String())
		if err != nil {
			for _, open := range listeners {
				_ = open.Close()
			}
			return fmt.Errorf("listening at %s: %w", addr, err)
		}
		listeners = append(listeners, listener)
	}
	close(l.listening())
	return serveAll(ctx, l.handler, l.tls, listeners, l.logger)
}

// serveAll serves handler on all listeners until ctx ends; tlsConfig nil is plain HTTP.
func serveAll(ctx context.Context, handler http.Handler, tlsConfig *tls.Config, listeners []net.Listener, logger *slog.Logger) error {
	requests, endRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer endRequests()
	srv := &http.Server{
		Handler: handler, TLSConfig: tlsConfig, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 3 * time.Minute,
		MaxHeaderBytes: 1 << 20, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return requests },
	}
	ended := make(chan error, len(listeners))
	for _, listener := range listeners {
		go func() {
			if tlsConfig != nil {
				ended <- srv.ServeTLS(newCoalescingListener(listener), "", "")
			} else {
				ended <- srv.Serve(listener)
			}
		}()
	}
	var err error
	waiting := len(listeners)
	select {
	case <-ctx.Done():
	case err = <-ended:
		waiting--
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	defer time.AfterFunc(farewell, endRequests).Stop()
	if srv.Shutdown(grace) != nil {
		_ = srv.Close() // who did not finish in time is cut off
	}
	for range waiting {
		if e := <-ended; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// listenAddrs are the configured address and the node's own, unless the first covers it.
func listenAddrs(listen, endpoint netip.AddrPort) []netip.AddrPort {
	if listen == endpoint || listen.Addr().IsUnspecified() {
		return []netip.AddrPort{listen}
	}
	return []netip.AddrPort{listen, endpoint}
}

// apiTLS is the API's side of TLS. Its answers are large or urgent, so records have their full
// size from the first byte on.
func apiTLS(authority *pki.Authority) *tls.Config {
	config := authority.ServerTLS(pki.APIServer, pki.ClusterCA)
	config.DynamicRecordSizingDisabled = true
	// Whose certificate it is, and whether to believe it, is for the authenticator to say: it may also be a front
	// proxy's, and a wrong one gets an answer.
	config.ClientAuth, config.ClientCAs = tls.RequestClientCert, config.ClientCAs.Clone()
	config.ClientCAs.AppendCertsFromPEM(authority.CertPEM(pki.FrontProxyCA))
	return config
}

func clientCAs(authority *pki.Authority) func() *x509.CertPool {
	pool := authority.Pool(pki.ClusterCA) // authorities are never replaced
	return func() *x509.CertPool { return pool }
}

// agentTransport speaks to agents as the API server.
func agentTransport(authority *pki.Authority) http.RoundTripper {
	return &http.Transport{
		TLSClientConfig:     authority.ClientTLS(pki.APIServerKubeletClient, pki.ClusterCA),
		MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second,
	}
}
