package server

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"gantry.dev/gantry/internal/lifecycle"
)

const (
	// bootstrapLimit is how long a slow disk may keep the cluster's own objects from being made.
	bootstrapLimit = time.Minute
	// persistPause is the time between two tries.
	persistPause = 200 * time.Millisecond
)

// persist calls f until it returns nil, or an error that is no time-out, ctx ends or limit has passed, and returns f's
// last error.
func persist(ctx context.Context, limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil || !apierrors.IsTimeout(err) || ctx.Err() != nil || !time.Now().Before(deadline) {
			return err
		}
		if !lifecycle.Pause(ctx, persistPause) {
			return err
		}
	}
}
