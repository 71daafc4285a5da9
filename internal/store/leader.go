package store

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
)

// leadership is whether this store's member leads the others.
type leadership struct {
	mu      sync.Mutex // guards the fields below
	leading bool
	changed chan struct{} // closed by the next change
}

// Leading tells whether this store's member leads, and when to ask again: the channel is closed by the next
// change. A member that is alone leads as soon as Ready is closed. When it begins to lead, its tables have all that
// was acknowledged under its predecessor; a leader that was cut off learns of it within etcd's election time-out, and what
// it writes until then is refused.
func (s *Store) Leading() (leading bool, changed <-chan struct{}) {
	s.lead.mu.Lock()
	defer s.lead.mu.Unlock()
	return s.lead.leading, s.lead.changed
}

// Leader is the name of the member that leads, as far as this one knows; "" while there is none.
func (s *Store) Leader() string {
	s.gate.RLock()
	defer s.gate.RUnlock()
	for _, m := range s.member.members() {
		if m.Leader {
			return m.Name
		}
	}
	return ""
}

// HasCompany reports whether there are other members, which may know more at this moment than the tables of this store.
func (s *Store) HasCompany() bool { return s.company.Load() }

func (l *leadership) set(leading bool) (news bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leading == leading {
		return false
	}
	l.leading = leading
	close(l.changed)
	l.changed = make(chan struct{})
	return true
}

// watchMembers keeps leadership up, and returns to a member that is alone when the others are gone.
func (s *Store) watchMembers(ctx context.Context) error {
	poll := time.NewTicker(memberPoll)
	defer poll.Stop()
	if !s.company.Load() {
		poll.Stop() // nothing changes by itself
	}
	for {
		s.look(ctx)
		s.gate.RLock()
		elected := s.member.server.LeaderChangedNotify()
		s.gate.RUnlock()
		select {
		case <-ctx.Done():
			s.lead.set(false)
			return nil
		case <-elected:
			s.elected(ctx)
		case <-poll.C:
		case <-s.reopened:
			if poll.Stop(); s.company.Load() {
				poll.Reset(memberPoll)
			}
		}
	}
}

// look compares what is with what was.
func (s *Store) look(ctx context.Context) {
	if !s.company.Load() {
		s.lead.set(true)
		return
	}
	s.gate.RLock()
	self := s.member.server.MemberID()
	leads := s.member.server.Lead() == uint64(self)
	members := s.member.server.Cluster().Members()
	s.gate.RUnlock()
	s.nudge(ctx)
	if !leads {
		if s.lead.set(false) {
			s.opts.Logger.LogAttrs(ctx, slog.LevelInfo, "another server leads, or none")
		}
		return
	}
	if was, _ := s.Leading(); !was {
		limit, cancel := context.WithTimeout(ctx, time.Second)
		err := s.Sync(limit) // what was written under its predecessor
		cancel()
		if err != nil {
			return // the next look tries again
		}
		s.lead.set(true)
		s.opts.Logger.LogAttrs(ctx, slog.LevelInfo, "this server leads")
	}
	if len(members) == 1 && members[0].ID == self && s.changing.TryLock() {
		defer s.changing.Unlock()
		if err := s.Sync(ctx); err != nil {
			return
		}
		if err := s.askReopen(ctx, false); err != nil && ctx.Err() == nil {
			s.opts.Logger.LogAttrs(ctx, slog.LevelWarn, "going on alone", slog.Any("error", err))
		}
	}
}

// consistentRev is a revision not older than any write that was acknowledged before the call. Calls at the same time
// share one question to the other members.
func (m *member) consistentRev(ctx context.Context) (int64, error) {
	resp, err := m.server.Range(ctx, &pb.RangeRequest{Key: []byte{0}, CountOnly: true})
	if err != nil {
		return 0, err
	}
	return resp.Header.Revision, nil
}

// Sync makes the following reads of this goroutine at least as new as any write that was
// acknowledged before the call, by whichever server. A lone member acknowledges a write
// only when its own tables have it, so there is nothing to wait for. ErrNoLeader when the members do not agree on a
// leader for as long as etcd waits.
func (s *Store) Sync(ctx context.Context) error {
	if !s.company.Load() {
		return ctx.Err()
	}
	return s.syncWithCompany(ctx)
}

func (s *Store) syncWithCompany(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, s.readTimeout())
	defer cancel()
	for {
		s.gate.RLock()
		rev, err := s.member.consistentRev(limit)
		s.gate.RUnlock()
		switch {
		case err == nil:
			return s.waitApplied(ctx, rev)
		case errors.Is(err, etcderrors.ErrLeaderChanged):
			continue // ask the new one
		case errors.Is(err, etcderrors.ErrStopped):
			return ErrClosed
		case ctx.Err() != nil:
			return ctx.Err()
		}
		return ErrNoLeader
	}
}

// readTimeout is etcd's own for a request: five seconds and two elections.
func (s *Store) readTimeout() time.Duration {
	tick := s.opts.Tick
	if s.opts.Peer != nil {
		tick = s.opts.Peer.Tick
	}
	return 5*time.Second + 20*tick
}
