package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/etcdhttp"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/etcd/server/v3/features"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// maxRequestBytes is etcd's own default limit of one request (etcd documentation, "System limits").
const maxRequestBytes = 1536 * 1024

// catchUpEntries is how many entries of its log a member keeps in memory for followers that are behind. A lone
// member has none; etcd's default of 5,000 keeps the values of as many writes.
const catchUpEntries = 100

// catchUpWithCompany is the same for a member that has followers: one that lags behind further is sent the whole
// database. It is etcd's default.
const catchUpWithCompany = 5000

// clusterToken goes into the identity of a cluster's first member.
const clusterToken = "gantry"

// lonePeer is the address of a member that nobody reaches.
const lonePeer = "http://127.0.0.1:2380"

// member is the etcd member inside this process. It listens only where other members reach it, and only
// when it has any.
type member struct {
	server *etcdserver.EtcdServer
	peers  *peerListener // nil for a lone member
	quota  int64
}

// newMember opens or creates the member in opts.Dir and starts it. With company it listens for the others
// and its clock is the one that all members have.
func newMember(opts Options, company bool) (m *member, err error) {
	logger := zap.New(slogCore{opts.Logger})
	cfg, err := memberConfig(opts, company, logger)
	if err != nil {
		return nil, err
	}
	m = &member{quota: opts.QuotaBytes}
	if company {
		if m.peers, err = listenPeers(opts.Peer, opts.Logger); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				m.peers.close()
			}
		}()
	}
	if m.server, err = etcdserver.NewServer(cfg); err != nil {
		return nil, fmt.Errorf("opening etcd in %s: %w", filepath.Clean(opts.Dir), err)
	}
	m.server.Start()
	if company {
		m.peers.serve(etcdhttp.NewPeerHandler(logger, m.server))
	}
	return m, nil
}

func memberConfig(opts Options, company bool, logger *zap.Logger) (config.ServerConfig, error) {
	name, self, tick, catchUp := opts.Name, lonePeer, opts.Tick, uint64(catchUpEntries)
	if company {
		self, tick, catchUp = opts.Peer.URL, opts.Peer.Tick, catchUpWithCompany
	}
	own, err := types.NewURLs([]string{self})
	if err != nil {
		return config.ServerConfig{}, fmt.Errorf("etcd peer address %s: %w", self, err)
	}
	initial := types.URLsMap{name: own}
	for _, other := range opts.Join {
		urls, err := types.NewURLs(other.PeerURLs)
		if err != nil {
			return config.ServerConfig{}, fmt.Errorf("peer address of member %s: %w", other.ID, err)
		}
		if !slices.Equal(urls.StringSlice(), own.StringSlice()) {
			initial["other-"+other.ID] = urls // what a name is here concerns nobody else
		}
	}
	cfg := config.ServerConfig{
		Name:                    name,
		ClientURLs:              own,
		PeerURLs:                own,
		DataDir:                 opts.Dir,
		InitialPeerURLsMap:      initial,
		InitialClusterToken:     clusterToken,
		NewCluster:              len(opts.Join) == 0,
		TickMs:                  uint(tick / time.Millisecond),
		ElectionTicks:           10,
		SnapshotCount:           etcdserver.DefaultSnapshotCount,
		SnapshotCatchUpEntries:  catchUp,
		MaxSnapFiles:            5,
		MaxWALFiles:             5,
		MaxTxnOps:               128,
		MaxRequestBytes:         maxRequestBytes,
		QuotaBackendBytes:       opts.QuotaBytes,
		BackendBatchInterval:    0,
		PreVote:                 true,
		StrictReconfigCheck:     true,
		AuthToken:               "",
		BcryptCost:              10, // of etcd's own users, of which there are none
		WarningApplyDuration:    time.Second,
		CompactionBatchLimit:    1000,
		CompactionSleepInterval: 10 * time.Millisecond,
		DowngradeCheckTime:      5 * time.Second,
		UnsafeNoFsync:           opts.NoFsync,
		Logger:                  logger,
		LocalAddress:            "127.0.0.1",
		MaxLearners:             1,
		Metrics:                 "basic",
		ServerFeatureGate:       features.NewDefaultServerFeatureGate(name, logger),
		// A lone member needs no time for others to be heard: it campaigns at once.
		InitialElectionTickAdvance: true,
	}
	if company {
		cfg.PeerTLSInfo = opts.Peer.tlsInfo(logger)
		cfg.LocalAddress = own[0].Hostname()
	}
	return cfg, nil
}

// ready waits until the member takes writes.
func (m *member) ready(ctx context.Context) error {
	select {
	case <-m.server.ReadyNotify():
		return nil
	case <-m.server.StopNotify():
		return errors.New("etcd stopped while starting")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// What kick waits for: nothing was applied for so long.
const (
	quietPoll = 5 * time.Millisecond
	quietFor  = 6 // polls
)

// kick lets a member that is alone, and knows it, become leader as soon as it has applied its log. Waiting for the
// election time-out is for hearing of other leaders, of which there can be none. It returns when there is a leader.
func (m *member) kick(ctx context.Context) {
	id := uint64(m.server.MemberID())
	poll := time.NewTicker(quietPoll)
	defer poll.Stop()
	applied, quiet := uint64(0), 0
	for m.server.Lead() != id {
		select {
		case <-poll.C:
		case <-m.server.StopNotify():
			return
		case <-ctx.Done():
			return
		}
		now := m.server.AppliedIndex()
		if now != applied || now != m.server.CommittedIndex() {
			applied, quiet = now, 0 // raft must not look at its log while etcd cuts it off behind what it applies
			continue
		}
		if quiet++; quiet < quietFor {
			continue
		}
		quiet = 0
		// The message is what a leader sends to its successor.
		err := m.server.Process(ctx, &raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), To: &id, From: &id})
		if err != nil {
			return // it stops
		}
	}
}

// stop ends the member; as a leader it hands over first, unless hard.
func (m *member) stop(hard bool) {
	if hard {
		m.server.HardStop()
	} else {
		m.server.Stop()
	}
	if m.peers != nil {
		m.peers.close()
	}
}

// available reports whether the database has room for the value. It counts as etcd's own quota does
// (etcd, storage/quota.go), for the backend that is in use now: a snapshot from the leader replaces it.
func (m *member) available(key string, value []byte) bool {
	const overhead = 256
	return m.server.Backend().Size()+int64(len(key)+len(value)+overhead) < m.quota
}

// put writes value under key if the key's revision is rev (0: it does not exist). It returns
// the new revision; ok is false when the compare failed.
func (m *member) put(ctx context.Context, key string, value []byte, rev int64) (newRev int64, ok bool, err error) {
	txn := &pb.TxnRequest{
		Compare: []*pb.Compare{compareRev(key, rev)},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{
			RequestPut: &pb.PutRequest{Key: []byte(key), Value: value},
		}}},
	}
	if !m.available(key, value) {
		return 0, false, ErrFull
	}
	return m.txn(ctx, txn)
}

// remove deletes key if its revision is rev.
func (m *member) remove(ctx context.Context, key string, rev int64) (newRev int64, ok bool, err error) {
	return m.txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{compareRev(key, rev)},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{
			RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key)},
		}}},
	})
}

func (m *member) txn(ctx context.Context, txn *pb.TxnRequest) (int64, bool, error) {
	resp, err := m.server.Txn(ctx, txn)
	switch {
	case errors.Is(err, etcderrors.ErrRequestTooLarge):
		return 0, false, ErrTooLarge
	case errors.Is(err, etcderrors.ErrNoSpace):
		return 0, false, ErrFull
	case errors.Is(err, etcderrors.ErrStopped):
		return 0, false, ErrClosed
	case isTimeout(err):
		return 0, false, ErrTimeout
	case errors.Is(err, etcderrors.ErrTooManyRequests):
		return 0, false, ErrBusy
	case errors.Is(err, etcderrors.ErrCanceled), errors.Is(err, context.Canceled):
		return 0, false, context.Canceled
	case err != nil:
		return 0, false, fmt.Errorf("writing to etcd: %w", err)
	}
	return resp.Header.Revision, resp.Succeeded, nil
}

func isTimeout(err error) bool {
	return errors.Is(err, etcderrors.ErrTimeout) || errors.Is(err, etcderrors.ErrTimeoutDueToLeaderFail) ||
		errors.Is(err, etcderrors.ErrTimeoutDueToConnectionLost)
}

func compareRev(key string, rev int64) *pb.Compare {
	return &pb.Compare{
		Key:         []byte(key),
		Target:      pb.Compare_MOD,
		Result:      pb.Compare_EQUAL,
		TargetUnion: &pb.Compare_ModRevision{ModRevision: rev},
	}
}

// compact drops history up to rev.
func (m *member) compact(ctx context.Context, rev int64) error {
	if _, err := m.server.Compact(ctx, &pb.CompactionRequest{Revision: rev}); err != nil {
		return fmt.Errorf("compacting etcd to %d: %w", rev, err)
	}
	return nil
}

// prefixEnd is the first key after all keys with the prefix.
func prefixEnd(prefix string) []byte {
	end := []byte(prefix)
	end[len(end)-1]++ // prefixes end in "/"
	return end
}

// slogLevel maps etcd's levels to ours; etcd is chatty, so its Info is our Debug.
func slogLevel(level zapLevel) slog.Level {
	switch {
	case level >= zap.ErrorLevel:
		return slog.LevelError
	case level >= zap.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}
