package cli

import (
	"context"
	"time"

	"gantry.dev/gantry/internal/lifecycle"
)

// stopNode ends a node that a failed script left in the background.
func stopNode(dataDir string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, _ = lifecycle.Terminate(ctx, dataDir)
}
