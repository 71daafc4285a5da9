package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/etcd/server/v3/lease"
)

const (
	// turnLease is etcd's lease that a member holds while it makes its database file smaller. Leases have no revision, so that
	// holding one changes no object.
	turnLease = 0x67616e747279 // "gantry"
	// turnSeconds is when a member that was lost in its turn has lost it.
	turnSeconds = 120
	// turnLimit bounds asking for it.
	turnLimit = 5 * time.Second
)

// errNotOurTurn says that another member stops for a moment now.
var errNotOurTurn = errors.New("another member makes its database file smaller")

// takeTurn makes this member the one of all that may stop for a moment, until release is called. The members agree on
// it through raft, so that it depends on nobody's clock. s.gate is held.
func (s *Store) takeTurn(ctx context.Context) (release func(), err error) {
	if !s.company.Load() {
		return func() {}, nil
	}
	server := s.member.server
	limit, cancel := context.WithTimeout(ctx, turnLimit)
	defer cancel()
	switch _, err := server.LeaseGrant(limit, &pb.LeaseGrantRequest{ID: turnLease, TTL: turnSeconds}); {
	case errors.Is(err, lease.ErrLeaseExists):
		return nil, errNotOurTurn
	case errors.Is(err, etcderrors.ErrNoSpace):
		return func() {}, nil // all writes are refused, this one too: there is nothing to be held up, and room is wanted
	case err != nil:
		return nil, fmt.Errorf("asking for a turn: %w", err)
	}
	return func() {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), turnLimit)
		defer cancel()
		_, _ = server.LeaseRevoke(limit, &pb.LeaseRevokeRequest{ID: turnLease}) // it ends by itself otherwise
	}, nil
}

// handOver makes another member lead, so that this one may stop for a moment without all writes waiting. s.gate is held.
func (s *Store) handOver(ctx context.Context) error {
	server := s.member.server
	self := uint64(server.MemberID())
	if server.Lead() != self {
		return nil
	}
	err := ErrNoLeader
	for _, m := range server.Cluster().Members() {
		if uint64(m.ID) == self || m.IsLearner {
			continue
		}
		limit, cancel := context.WithTimeout(ctx, turnLimit)
		err = server.MoveLeader(limit, self, uint64(m.ID))
		cancel()
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("handing over: %w", err)
}
