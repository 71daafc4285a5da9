package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/etcd/server/v3/features"
	"go.etcd.io/etcd/server/v3/storage"
	"go.uber.org/zap"
)

// maxRequestBytes is etcd's own default limit of one request (etcd documentation, "System limits").
const maxRequestBytes = 1536 * 1024

// catchUpEntries is how many entries of its log a member keeps in memory for followers that are behind. A lone
// member has none; etcd's default of 5,000 keeps the values of as many writes.
const catchUpEntries = 100

// member is the etcd member inside this process. It has no listener.
type member struct {
	server *etcdserver.EtcdServer
	quota  storage.Quota
}

// newMember opens or creates the member in opts.Dir and starts it.
func newMember(opts Options) (*member, error) {
	logger := zap.New(slogCore{opts.Logger})
	peers, err := types.NewURLs([]string{"http://127.0.0.1:2380"})
	if err != nil {
		return nil, fmt.Errorf("etcd peer address: %w", err)
	}
	server, err := etcdserver.NewServer(config.ServerConfig{
		Name:                    "default",
		ClientURLs:              peers,
		PeerURLs:                peers,
		DataDir:                 opts.Dir,
		InitialPeerURLsMap:      types.URLsMap{"default": peers},
		InitialClusterToken:     "gantry",
		NewCluster:              true,
		TickMs:                  uint(opts.Tick / time.Millisecond),
		ElectionTicks:           10,
		SnapshotCount:           etcdserver.DefaultSnapshotCount,
		SnapshotCatchUpEntries:  catchUpEntries,
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
		ServerFeatureGate:       features.NewDefaultServerFeatureGate("default", logger),
		// A lone member needs no time for others to be heard: it campaigns at once.
		InitialElectionTickAdvance: true,
	})
	if err != nil {
		return nil, fmt.Errorf("opening etcd in %s: %w", filepath.Clean(opts.Dir), err)
	}
	server.Start()
	return &member{
		server: server,
		quota:  storage.NewBackendQuota(logger, opts.QuotaBytes, server.Backend(), "store"),
	}, nil
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

// put writes value under key if the key's revision is rev (0: it does not exist). It returns
// the new revision; ok is false when the compare failed.
func (m *member) put(ctx context.Context, key string, value []byte, rev int64) (newRev int64, ok bool, err error) {
	txn := &pb.TxnRequest{
		Compare: []*pb.Compare{compareRev(key, rev)},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{
			RequestPut: &pb.PutRequest{Key: []byte(key), Value: value},
		}}},
	}
	if !m.quota.Available(txn) {
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
	case errors.Is(err, etcderrors.ErrTimeout), errors.Is(err, etcderrors.ErrTimeoutDueToLeaderFail),
		errors.Is(err, etcderrors.ErrTimeoutDueToConnectionLost):
		return 0, false, ErrTimeout
	case err != nil:
		return 0, false, fmt.Errorf("writing to etcd: %w", err)
	}
	return resp.Header.Revision, resp.Succeeded, nil
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
