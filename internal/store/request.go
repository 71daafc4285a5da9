package store

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
)

// What is written while etcd has too much to apply waits for a while: it was not proposed.
const (
	busyWait = 2 * time.Second
	busyPoll = 10 * time.Millisecond
)

// epoch is the time of one leader. Its context ends when the next leader is known and this member has applied what
// the next one found in the log.
type epoch struct {
	ctx context.Context //nolint:containedctx // a time that ends is what a context is
	end context.CancelFunc
}

func newEpoch() *epoch {
	ctx, end := context.WithCancel(context.Background())
	return &epoch{ctx: ctx, end: end}
}

// request does a conditional write. With company it is proposed again under a new leader when the one it was sent to is
// gone: etcd would wait for its answer for seconds. again says that it was proposed more than once, so that a
// condition that does not hold may have been broken by the request itself.
//
// once says that it must not be proposed again: a leader that was cut off or paused may pass the first proposal on to its
// successor when it is back, long after the second. A condition on a revision can hold for one of them only, since revisions do
// not come back; that a key is not there can hold again, when somebody has deleted it in between.
func (s *Store) request(ctx context.Context, once bool, do func(context.Context, *member) (int64, bool, error)) (rev int64, ok, again bool, err error) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	var limit time.Time
	for {
		if !s.company.Load() {
			rev, ok, err = do(ctx, s.member)
		} else {
			var lost bool
			rev, ok, lost, err = s.underLeader(ctx, once, do)
			if lost && once {
				return 0, false, again, ErrTimeout
			}
			if lost {
				again = true
				continue
			}
		}
		if !errors.Is(err, ErrBusy) {
			return rev, ok, again, err
		}
		if now := time.Now(); limit.IsZero() {
			limit = now.Add(busyWait)
		} else if now.After(limit) {
			return 0, false, again, err
		}
		select {
		case <-time.After(busyPoll):
		case <-ctx.Done():
			return 0, false, again, err
		}
	}
}

// lateAnswer is how long what may be proposed once only is waited for after its leader is gone: one that handed over has passed
// it on.
const lateAnswer = time.Second

// underLeader does a request once. lost says that its leader is gone and that it was not among what its successor found.
func (s *Store) underLeader(ctx context.Context, once bool, do func(context.Context, *member) (int64, bool, error)) (rev int64, ok, lost bool, err error) {
	current := s.epoch.Load()
	attempt, cancel := context.WithCancel(ctx)
	defer cancel()
	over := cancel
	if once {
		over = func() {
			select {
			case <-time.After(lateAnswer):
				cancel()
			case <-attempt.Done():
			}
		}
	}
	defer context.AfterFunc(current.ctx, over)()
	rev, ok, err = do(attempt, s.member)
	if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		return 0, false, true, nil
	}
	return rev, ok, false, err
}

// elected begins a new epoch when there is a new leader.
func (s *Store) elected(ctx context.Context) {
	before := s.epoch.Swap(newEpoch())
	limit, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := s.Sync(limit); err != nil && ctx.Err() == nil {
		s.opts.Logger.LogAttrs(ctx, slog.LevelInfo, "hearing of the new leader", slog.Any("error", err))
	}
	before.end()
}

// etcdGap is how far etcd may be behind in applying before it refuses requests (etcdserver/v3_server.go).
const etcdGap = 5000

// nudge helps a member that was given a snapshot: etcd counts what it applied only with the next entry of the log, and
// refuses requests as if it were behind until there is one. Changes of members are not refused.
func (s *Store) nudge(ctx context.Context) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	server := s.member.server
	if server.CommittedIndex() <= server.AppliedIndex()+etcdGap {
		return
	}
	self := server.Cluster().Member(server.MemberID())
	if self == nil {
		return
	}
	limit, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := server.UpdateMember(limit, membership.Member{ID: self.ID, RaftAttributes: self.RaftAttributes})
	if err != nil && ctx.Err() == nil {
		s.opts.Logger.LogAttrs(ctx, slog.LevelInfo, "going on after a snapshot", slog.Any("error", err))
	}
}
