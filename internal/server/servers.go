package server

import (
	"context"
	"fmt"

	"gantry.dev/gantry/internal/store"
)

// Servers lists the servers that keep the cluster's data, sorted by name.
func (cp *ControlPlane) Servers(ctx context.Context) ([]store.Member, error) {
	return cp.store.Members(ctx)
}

// AddServer lets a further server join, whose store is reached at peerURL: its ControlPlaneOptions.Join is what AddServer
// returns. A server of the same address that began to join and did not come is replaced.
func (cp *ControlPlane) AddServer(ctx context.Context, peerURL string) (added store.Member, all []store.Member, err error) {
	return cp.store.AddLearner(ctx, peerURL)
}

// RemoveServer takes the server of that name, or of that member ID, out of those that keep the data.
func (cp *ControlPlane) RemoveServer(ctx context.Context, name string) error {
	members, err := cp.store.Members(ctx)
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.Name == name || m.ID == name {
			return cp.store.Remove(ctx, m.ID)
		}
	}
	return fmt.Errorf("%w: %s", store.ErrNoMember, name)
}
