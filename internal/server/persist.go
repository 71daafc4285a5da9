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
	// insistPause is the longest time between two tries of what has to be done in the end.
	insistPause = 10 * time.Second
	// rightPause is the time between two looks at a right that was just given.
	rightPause = 5 * time.Millisecond
)

// passing reports whether an error may be gone with the next try: etcd is slow or has no leader, or another server, which starts
// at the same time, was faster.
func passing(err error) bool {
	return apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsTooManyRequests(err) ||
		apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)
}

// persist calls f until it returns nil, or an error that does not pass, ctx ends or limit has passed, and returns f's
// last error.
func persist(ctx context.Context, limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil || !passing(err) || ctx.Err() != nil || !time.Now().Before(deadline) {
			return err
		}
		if !lifecycle.Pause(ctx, persistPause) {
			return err
		}
	}
}

// insist calls f until it returns nil or ctx ends, whatever keeps it from that: somebody's webhook or policy may refuse the
// cluster's own objects, and everything else goes on meanwhile. Each new reason is logged.
func (cp *ControlPlane) insist(ctx context.Context, what string, f func() error) error {
	last := ""
	for pause := persistPause; ; pause = min(2*pause, insistPause) {
		err := f()
		if err == nil || ctx.Err() != nil {
			return err
		}
		if err.Error() != last {
			last = err.Error()
			cp.opts.Logger.Warn("not done yet, and tried again", "what", what, "error", err)
		}
		if !lifecycle.Pause(ctx, pause) {
			return err
		}
	}
}

// awaitRight waits until a user may list a kind: the authorizer hears of a new role and its binding by events.
func (cp *ControlPlane) awaitRight(ctx context.Context, who user.Info, group, resource string) error {
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
