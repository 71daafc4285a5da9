package containerd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/shim"
)

// Fence moves the time, since the machine's boot, at which the shim of a sandbox kills all of it, whatever becomes of this
// process; 0 takes the time away. fired says that it has done so: nothing starts in the sandbox any more. Where no shim
// runs nothing else does, and nothing needs to be done. A sandbox with the stock shim answers container.ErrNoFence.
func (r *Runtime) Fence(ctx context.Context, id string, at time.Duration) (fired bool, err error) {
	ctx, err = r.await(ctx)
	if err != nil {
		return false, err
	}
	r.mu.Lock()
	sb := r.sandboxes[id]
	r.mu.Unlock()
	if sb == nil {
		return false, nil
	}
	if spec, _ := sb.snapshot(); spec.Runtime != handlerShim {
		return false, fmt.Errorf("fence sandbox %s: %w", id, container.ErrNoFence)
	}
	conn := sb.conn()
	if conn == nil {
		return false, nil
	}
	fired, err = shim.Fence(ctx, conn.stream, at)
	switch {
	case errors.Is(err, shim.ErrNoFence) && conn.proc.alive():
		return false, fmt.Errorf("fence sandbox %s: %w", id, container.ErrNoFence)
	case err != nil && !conn.proc.alive():
		return false, nil
	case err != nil:
		return false, fmt.Errorf("fence sandbox %s: %w", id, err)
	}
	return fired, nil
}
