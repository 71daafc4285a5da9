//go:build linux

package edge_test

import (
	"context"
	"os/signal"
	"syscall"
)

// signalContext ends by SIGTERM. The process ends right after, so the stop function is not needed.
func signalContext() context.Context {
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	return ctx
}
