package server

import (
	"context"
	"log/slog"
	"runtime/debug"
	"time"

	"gantry.dev/gantry/internal/lifecycle"
)

// settleAfter is how long after the node is ready its start is over: definitions, certificates and images are there by then.
const settleAfter = 20 * time.Second

// settle gives back the memory that only the start needed, then waits for ctx.
func settle(ctx context.Context, ready <-chan struct{}, log *slog.Logger) error {
	select {
	case <-ctx.Done():
		return nil
	case <-ready:
	}
	if lifecycle.Pause(ctx, settleAfter) {
		debug.FreeOSMemory()
		if err := lifecycle.ForgetPages(); err != nil {
			log.Debug("what the start needed stays in memory", "error", err)
		}
		<-ctx.Done()
	}
	return nil
}
