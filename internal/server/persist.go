package server

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"gantry.dev/gantry/internal/lifecycle"
)

const (
	// bootstrapLimit is how long a slow disk may keep the cluster's own objects from being made.
	bootstrapLimit = time.Minute
	// persistPause is the time between two tries.
	persistPause = 200 * time.Millisecond
	// rightPause is the time between two looks at a right that was just given.
	rightPause = 5 * time.Millisecond
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

// awaitRight waits until a user may list a kind: the authorizer hears of a new role and its binding by events.
func (cp *ControlPlane) awaitRight(ctx context.Context, who user.Info, group, resource string) error {
	ctx, cancel := context.WithTimeout(ctx, bootstrapLimit)
	defer cancel()
	for {
		decision, reason, err := cp.authorizer.Authorize(ctx, &authorizer.AttributesRecord{
			User: who, Verb: "list", APIGroup: group, APIVersion: "v1", Resource: resource, ResourceRequest: true,
		})
		if err == nil && decision == authorizer.DecisionAllow {
			return nil
		}
		if !lifecycle.Pause(ctx, rightPause) {
			return fmt.Errorf("%s may not list %s.%s: %s: %w", who.GetName(), resource, group, reason, context.Cause(ctx))
		}
	}
}
