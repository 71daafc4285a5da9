// Command hello is a small web application for a first look at a cluster.
//
// Its page shows which pod answered, on which node, and a count of requests that all replicas share:
// the count is kept in a ConfigMap, which each replica changes through the Kubernetes API with its
// service account. It uses the standard library alone. Outside a cluster it counts in memory.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	// drainFor is how long requests are still answered after SIGTERM while the cluster takes this
	// pod out of its services.
	drainFor = 2 * time.Second
	// stopWithin bounds the wait for the last answers.
	stopWithin = 8 * time.Second
)

func main() {
	logger := slog.New(slog.NewJSONHandler(os.Stdout, nil))
	if err := run(logger); err != nil {
		logger.Error("hello ended", "err", err)
		os.Exit(1)
	}
}

func run(logger *slog.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	app, err := newApp(whoAmI(os.Getenv), counterFor(os.Getenv, logger), logger)
	if err != nil {
		return err
	}
	server := &http.Server{
		Addr: ":" + orElse(os.Getenv("PORT"), "8080"), Handler: app,
		ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 15 * time.Second,
	}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	logger.Info("listening", "addr", server.Addr)
	select {
	case err := <-ended:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	logger.Info("asked to stop")
	app.drain()
	select {
	case <-time.After(drainFor):
	case err := <-ended:
		return fmt.Errorf("serve: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}
