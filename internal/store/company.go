package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"

	"gantry.dev/gantry/internal/durable"
)

// memberPoll is how often a member with company looks whether it still leads, and whom it has.
const memberPoll = 100 * time.Millisecond

// Member is one of the etcd members that keep the data together.
type Member struct {
	ID       string   `json:"id"`
	Name     string   `json:"name,omitempty"` // empty until it has started once
	PeerURLs []string `json:"peerURLs"`
	Learner  bool     `json:"learner,omitempty"` // gets the data, has no vote yet
	Leader   bool     `json:"leader,omitempty"`
	Self     bool     `json:"-"` // the one in this process
}

// restart asks the applier to open the member another way.
type restart struct {
	company bool
	done    chan error
}

// companyFile marks a data dir whose member has, or is about to get, others: it must not be opened as one that is alone.
func (o *Options) companyFile() string { return filepath.Join(o.Dir, "company") }

func (o *Options) hadCompany() (bool, error) {
	switch _, err := os.Stat(o.companyFile()); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("opening the store: %w", err)
	}
}

func (o *Options) markCompany(company bool) error {
	if company {
		return durable.WriteFile(o.companyFile(), nil, 0o600)
	}
	if err := os.Remove(o.companyFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("leaving the company of others: %w", err)
	}
	return nil
}

// openMember opens the member as it was when it was closed, or as one that joins others, and waits until
// it takes writes.
func (s *Store) openMember(ctx context.Context) (*member, error) {
	company, err := s.opts.hadCompany()
	if err != nil {
		return nil, err
	}
	if company = company || len(s.opts.Join) > 0; company {
		if s.opts.Peer == nil {
			return nil, ErrNoPeer
		}
		if err := s.opts.markCompany(true); err != nil {
			return nil, err
		}
	}
	m, err := newMember(s.opts, company)
	if err != nil {
		return nil, err
	}
	if err = m.ready(ctx); err == nil && company {
		err = s.becomeVoter(ctx, m)
	}
	if err != nil {
		m.stop(true)
		return nil, err
	}
	s.company.Store(company)
	return m, nil
}

// becomeVoter waits until a learner has what the others have and gives it a vote. A voter has one.
func (s *Store) becomeVoter(ctx context.Context, m *member) error {
	retry := time.NewTicker(memberPoll)
	defer retry.Stop()
	for m.server.IsLearner() {
		_, err := m.consistentRev(ctx) // it has applied all that the leader had when asked
		if err == nil {
			_, err = m.server.PromoteMember(ctx, uint64(m.server.MemberID()))
		}
		if err != nil && ctx.Err() == nil {
			s.opts.Logger.LogAttrs(ctx, slog.LevelInfo, "not a voter yet", slog.Any("error", err))
		}
		select {
		case <-retry.C:
		case <-m.server.StopNotify():
			return ErrRemoved
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// reopen is run by the applier: it opens the member as one of several, or as one that is alone. Requests wait
// meanwhile. fatal says that there is no member any more.
func (s *Store) reopen(ctx context.Context, company bool) (fatal bool, err error) {
	s.gate.Lock()
	defer s.gate.Unlock()
	if (s.member.peers != nil) == company {
		return false, nil
	}
	if company {
		if err := s.opts.markCompany(true); err != nil {
			return false, err
		}
	}
	s.stream.Close()
	s.member.stop(true)
	next, err := newMember(s.opts, company)
	if err != nil && company { // its address may be taken: it goes on alone
		var again error
		if next, again = newMember(s.opts, false); again != nil {
			return true, errors.Join(err, again)
		}
		company = false
	}
	if err != nil && next == nil {
		return true, err
	}
	s.member = next
	s.epoch.Swap(newEpoch()).end()
	next.kick(ctx)
	if readyErr := next.ready(ctx); readyErr != nil {
		return true, errors.Join(err, readyErr)
	}
	s.company.Store(company)
	if watchErr := s.follow(ctx, s.applied.Load()+1); watchErr != nil {
		return true, errors.Join(err, watchErr)
	}
	if !company {
		err = errors.Join(err, s.opts.markCompany(false))
	}
	select {
	case s.reopened <- struct{}{}:
	default:
	}
	return false, err
}

// askReopen has the applier reopen the member.
func (s *Store) askReopen(ctx context.Context, company bool) error {
	r := restart{company: company, done: make(chan error, 1)}
	select {
	case s.restarts <- r:
	case <-s.stopped:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-r.done:
		return err
	case <-s.stopped:
		return ErrClosed
	}
}

// Members lists who keeps the data, sorted by name. It may be called when Ready is closed.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.company.Load() {
		if _, err := s.member.server.MemberList(ctx, &pb.MemberListRequest{Linearizable: true}); err != nil {
			return nil, memberError("listing the members", err)
		}
	}
	return s.member.members(), nil
}

// Known is Members as this store remembers them, without asking the others: also while nobody leads.
func (s *Store) Known() []Member {
	s.gate.RLock()
	defer s.gate.RUnlock()
	return s.member.members()
}

func (m *member) members() []Member {
	var out []Member
	lead, self := types.ID(m.server.Lead()), m.server.MemberID()
	for _, one := range m.server.Cluster().Members() {
		out = append(out, Member{
			ID: one.ID.String(), Name: one.Name, PeerURLs: one.PeerURLs, Learner: one.IsLearner, Leader: one.ID == lead, Self: one.ID == self,
		})
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Name+a.ID, b.Name+b.ID) })
	return out
}

// AddLearner lets another store join, which is reached at peerURL: its Options.Join is what AddLearner returns. A learner
// of the same address that is there from a join that failed is replaced. When the call fails nothing was changed, or
// the learner can be removed and added again.
func (s *Store) AddLearner(ctx context.Context, peerURL string) (added Member, all []Member, err error) {
	if s.opts.Peer == nil {
		return Member{}, nil, ErrNoPeer
	}
	urls, err := types.NewURLs([]string{peerURL})
	if err != nil {
		return Member{}, nil, fmt.Errorf("%w: peer address %q: %w", ErrMember, peerURL, err)
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	there, err := s.Members(ctx)
	if err != nil {
		return Member{}, nil, err
	}
	for _, m := range there {
		if !slices.Contains(m.PeerURLs, peerURL) {
			continue
		}
		if !m.Learner {
			return Member{}, nil, fmt.Errorf("%w: %s has the address %s", ErrMember, m.Name, peerURL)
		}
		if err := s.remove(ctx, m.ID); err != nil {
			return Member{}, nil, err
		}
	}
	if err := s.askReopen(ctx, true); err != nil {
		return Member{}, nil, err
	}
	if err := s.publishAddress(ctx); err != nil {
		return Member{}, nil, err
	}
	at := time.Now()
	learner := membership.NewMemberAsLearner("", urls, clusterToken, &at)
	err = s.whileUnhealthy(ctx, func(ctx context.Context, m *member) error {
		for {
			_, err := m.server.AddMember(ctx, *learner)
			if !errors.Is(err, membership.ErrIDRemoved) && !errors.Is(err, membership.ErrIDExists) {
				return err
			}
			at = at.Add(time.Second) // IDs are made of the address and the second: one was removed in this second
			learner = membership.NewMemberAsLearner("", urls, clusterToken, &at)
		}
	})
	if err != nil {
		return Member{}, nil, memberError("adding a member", err)
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	return Member{ID: learner.ID.String(), PeerURLs: learner.PeerURLs, Learner: true}, s.member.members(), nil
}

// whileUnhealthy repeats a change of the members while etcd refuses it because some were connected for less than
// five seconds: a third member may well come right after the second.
func (s *Store) whileUnhealthy(ctx context.Context, change func(context.Context, *member) error) error {
	limit := time.Now().Add(healthyWait)
	for {
		s.gate.RLock()
		attempt, cancel := context.WithTimeout(ctx, s.readTimeout())
		err := change(attempt, s.member)
		cancel()
		s.gate.RUnlock()
		if !errors.Is(err, etcderrors.ErrUnhealthy) || time.Now().After(limit) {
			return err
		}
		select {
		case <-time.After(memberPoll):
		case <-ctx.Done():
			return err
		}
	}
}

// healthyWait is a little longer than etcd wants its members connected (etcdserver.HealthInterval).
const healthyWait = 8 * time.Second

// publishAddress tells the other members where this one is reached, if they know it by another address.
func (s *Store) publishAddress(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.readTimeout())
	defer cancel()
	s.gate.RLock()
	defer s.gate.RUnlock()
	self := s.member.server.Cluster().Member(s.member.server.MemberID())
	if self == nil || slices.Equal(self.PeerURLs, []string{s.opts.Peer.URL}) {
		return nil
	}
	_, err := s.member.server.UpdateMember(ctx, membership.Member{
		ID: self.ID, RaftAttributes: membership.RaftAttributes{PeerURLs: []string{s.opts.Peer.URL}, IsLearner: self.IsLearner},
	})
	return memberError("publishing this member's address", err)
}

// Remove takes a member away, which may be this one: its Run ends with ErrRemoved then. ErrQuorum if those that would be
// left are not up, ErrLast for the only one.
func (s *Store) Remove(ctx context.Context, id string) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	return s.remove(ctx, id)
}

func (s *Store) remove(ctx context.Context, id string) error {
	parsed, err := types.IDFromString(id)
	if err != nil {
		return fmt.Errorf("%w: no ID: %q", ErrNoMember, id)
	}
	members, err := s.Members(ctx)
	if err != nil {
		return err
	}
	var target *Member
	voters, successor := 0, types.ID(0)
	for i := range members {
		if members[i].ID == id {
			target = &members[i]
		}
		if !members[i].Learner {
			voters++
		}
		if other, err := types.IDFromString(members[i].ID); err == nil && members[i].ID != id && !members[i].Learner {
			successor = other
		}
	}
	switch {
	case target == nil:
		return fmt.Errorf("%w: %s", ErrNoMember, id)
	case !target.Learner && voters == 1:
		return ErrLast
	}
	err = s.whileUnhealthy(ctx, func(ctx context.Context, m *member) error {
		if target.Leader && target.Self { // an election would stop writes for longer
			if err := m.server.MoveLeader(ctx, m.server.Lead(), uint64(successor)); err != nil {
				s.opts.Logger.LogAttrs(ctx, slog.LevelWarn, "handing over before leaving", slog.Any("error", err))
			}
		}
		_, err := m.server.RemoveMember(ctx, uint64(parsed))
		return err
	})
	return memberError("removing a member", err)
}

// memberError turns etcd's answers to changes of the members into ours.
func memberError(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, etcderrors.ErrUnhealthy), errors.Is(err, etcderrors.ErrNotEnoughStartedMembers):
		return fmt.Errorf("%s: %w", doing, ErrQuorum)
	case errors.Is(err, membership.ErrTooManyLearners):
		return fmt.Errorf("%s: %w", doing, ErrJoining)
	case errors.Is(err, membership.ErrIDNotFound), errors.Is(err, membership.ErrIDRemoved):
		return fmt.Errorf("%s: %w", doing, ErrNoMember)
	case errors.Is(err, membership.ErrPeerURLexists), errors.Is(err, membership.ErrIDExists):
		return fmt.Errorf("%s: %w", doing, ErrMember)
	case isTimeout(err), errors.Is(err, etcderrors.ErrLeaderChanged), errors.Is(err, etcderrors.ErrCanceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", doing, ErrTimeout)
	case errors.Is(err, etcderrors.ErrStopped):
		return ErrClosed
	}
	return fmt.Errorf("%s: %w", doing, err)
}
