package site

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// drain is how long requests may take after a signal to stop.
const drain = 10 * time.Second

// Main runs the program with its arguments and returns its exit code.
func Main(args []string, port string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, args, port); err != nil {
		fmt.Fprintln(os.Stderr, "gantry-static:", err)
		return 1
	}
	return 0
}

func run(ctx context.Context, args []string, port string) error {
	flags := flag.NewFlagSet("gantry-static", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	dir := flags.String("dir", "/site", "folder")
	spa := flags.Bool("spa", false, "answer with /index.html where there is no file")
	listen := flags.String("listen", ":"+cmp.Or(port, "8080"), "address")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	root, err := os.OpenRoot(*dir)
	if err != nil {
		return fmt.Errorf("opening the site: %w", err)
	}
	defer root.Close()
	server := &http.Server{Addr: *listen, Handler: Handler(root.FS(), Options{SPA: *spa}), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	done := make(chan error, 1)
	go func() { done <- server.ListenAndServe() }()
	select {
	case err := <-done:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	err = server.Shutdown(ctx)
	if served := <-done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
