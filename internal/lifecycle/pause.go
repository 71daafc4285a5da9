package lifecycle

import (
	"context"
	"time"
)

// Pause waits for d and reports whether ctx goes on: false means that it ended first.
func Pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
