package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// drain is how long requests in flight may take when the program is told to end.
const drain = 20 * time.Second

// serve answers requests until ctx ends, and then those that are in flight.
func serve(ctx context.Context, s *store, settings settingsOf, logger *slog.Logger) error {
	a, err := newApp(s, logger)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: a.logged(a.routes()), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
	listener, err := net.Listen("tcp", net.JoinHostPort("", settings.port))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	logger.Info("listening", "address", listener.Addr().String())
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	logger.Info("stopping", "inFlight", a.inFlight.Load())
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	err = server.Shutdown(ending)
	if serveErr := <-failed; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	if err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	logger.Info("stopped")
	return nil
}

// recorder keeps what was answered for the log.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// logged writes a line for each request that changes something or fails, and names the release in each answer.
func (a *app) logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.inFlight.Add(1)
		defer a.inFlight.Add(-1)
		begun := time.Now()
		rec := &recorder{ResponseWriter: w, status: http.StatusOK}
		rec.Header().Set("X-Tasks-Version", version)
		next.ServeHTTP(rec, r)
		if rec.status >= 500 || r.Method != http.MethodGet && r.Method != http.MethodHead {
			a.logger.Info("request", "method", r.Method, "path", r.URL.Path, "status", rec.status,
				"milliseconds", time.Since(begun).Milliseconds(), "request", r.Header.Get("X-Request-Id"))
		}
	})
}

// app is the page and the API.
type app struct {
	store    keeper
	logger   *slog.Logger
	pages    *pages
	inFlight atomic.Int64
}
