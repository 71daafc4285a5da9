package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/etcdserver/cindex"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"gantry.dev/gantry/internal/durable"
)

// RevisionGap is by how much a restore raises the revision. Whoever watched the lost cluster has seen fewer changes after the
// backup than that, so whatever revision it asks for lies in the part that counts as compacted, and it lists again
// (etcd documentation, "Disaster recovery", recommends a billion).
const RevisionGap = 1_000_000_000

// restoredName is the member's; etcd uses it to find itself among the first members.
const restoredName = "default"

// RestoreOptions say where a snapshot goes.
type RestoreOptions struct {
	Dir string // of etcd's data; it must not be there, or be empty
}

// Restored is what a restore made.
type Restored struct {
	Revision  int64  // of the last change in the snapshot
	Now       int64  // the revision that the restored store begins at; all before counts as compacted
	ClusterID string // the new one
}

// Restore makes a member of a new cluster from what Snapshot wrote: all objects as they were, with the revision raised by
// RevisionGap. What is not whole, or not what Snapshot wrote, is an error, and then nothing in Dir may be used.
func Restore(ctx context.Context, src io.Reader, opts RestoreOptions) (Restored, error) {
	if opts.Dir == "" {
		return Restored{}, errors.New("store: Dir is empty")
	}
	if entries, err := os.ReadDir(opts.Dir); err == nil && len(entries) > 0 {
		return Restored{}, fmt.Errorf("%s is not empty", opts.Dir)
	}
	snapDir, walDir := filepath.Join(opts.Dir, "member", "snap"), filepath.Join(opts.Dir, "member", "wal")
	if err := durable.MkdirAll(snapDir); err != nil {
		return Restored{}, err
	}
	path := filepath.Join(snapDir, "db")
	if err := copyDatabase(ctx, src, path); err != nil {
		return Restored{}, err
	}
	done, err := checkDatabase(path)
	if err != nil {
		return Restored{}, err
	}
	done.Now = done.Revision + RevisionGap
	logger := zap.NewNop()
	self, err := types.NewURLs([]string{"http://127.0.0.1:2380"})
	if err != nil {
		return Restored{}, fmt.Errorf("etcd peer address: %w", err)
	}
	// The token makes the identities of cluster and member new, so that nothing of the old cluster is taken for a member of this one.
	cluster, err := membership.NewClusterFromURLsMap(logger, "gantry-"+rand.Text(), types.URLsMap{restoredName: self})
	if err != nil {
		return Restored{}, fmt.Errorf("making a new cluster: %w", err)
	}
	done.ClusterID = cluster.ID().String()
	if err := rewriteDatabase(logger, path, cluster, done.Now); err != nil {
		return Restored{}, err
	}
	if err := writeLog(logger, walDir, snapDir, cluster); err != nil {
		return Restored{}, err
	}
	for _, dir := range []string{snapDir, filepath.Dir(snapDir), opts.Dir} {
		if err := durable.SyncDir(dir); err != nil {
			return Restored{}, err
		}
	}
	return done, nil
}

// copyDatabase writes what comes before the hash at the end of src, and checks it.
func copyDatabase(ctx context.Context, src io.Reader, path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("restoring the store: %w", err)
	}
	tail := &tailHash{to: file, sum: sha256.New()}
	_, err = io.Copy(tail, readerOf{ctx, src})
	if err == nil {
		err = tail.check()
	}
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("restoring the store: %w", err)
	}
	return nil
}

// readerOf ends with its context.
type readerOf struct {
	ctx context.Context //nolint:containedctx // lives as long as one copy
	r   io.Reader
}

// Read implements io.Reader.
func (r readerOf) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p) //nolint:wrapcheck // io.EOF must stay itself
}

// tailHash passes on all but the last 32 bytes, which are the hash of the others.
type tailHash struct {
	to   io.Writer
	sum  hash.Hash
	held []byte
}

// Write implements io.Writer.
func (t *tailHash) Write(p []byte) (int, error) {
	t.held = append(t.held, p...)
	if ready := len(t.held) - sha256.Size; ready > 0 {
		t.sum.Write(t.held[:ready])
		if _, err := t.to.Write(t.held[:ready]); err != nil {
			return 0, err //nolint:wrapcheck // copyDatabase does
		}
		t.held = append(t.held[:0], t.held[ready:]...)
	}
	return len(p), nil
}

func (t *tailHash) check() error {
	if len(t.held) != sha256.Size || string(t.held) != string(t.sum.Sum(nil)) {
		return errors.New("the snapshot is broken: its content is not what its hash says")
	}
	return nil
}

// checkDatabase walks all pages of the database file and reads its revision.
func checkDatabase(path string) (done Restored, err error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		return done, fmt.Errorf("opening the restored database: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.View(func(tx *bolt.Tx) error {
		var broken error
		for problem := range tx.Check() { // it must be read to its end
			broken = errors.Join(broken, problem)
		}
		if broken != nil {
			return broken
		}
		done.Revision, err = revisionOf(tx)
		return err
	})
	if err != nil {
		return done, fmt.Errorf("the restored database is broken: %w", err)
	}
	return done, nil
}

// rewriteDatabase gives the database its new cluster and revision.
func rewriteDatabase(logger *zap.Logger, path string, cluster *membership.RaftCluster, revision int64) (err error) {
	be := backend.NewDefaultBackend(logger, path)
	defer func() {
		be.ForceCommit()
		err = errors.Join(err, be.Close())
	}()
	members := schema.NewMembershipBackend(logger, be)
	if err := members.TrimMembershipFromBackend(); err != nil {
		return fmt.Errorf("taking the old members out of the store: %w", err)
	}
	tx := be.BatchTx()
	tx.LockOutsideApply()
	// An empty value at the new revision moves the counter; the mark makes etcd compact up to there when it starts.
	tx.UnsafePut(schema.Key, mvcc.RevToBytes(mvcc.Revision{Main: revision}, mvcc.NewRevBytes()), nil)
	mvcc.UnsafeSetScheduledCompact(tx, revision)
	tx.Unlock()
	cluster.SetBackend(members)
	for _, m := range cluster.Members() {
		cluster.AddMember(m, true)
	}
	// As if the one entry of the new log had been applied.
	cindex.UpdateConsistentIndexForce(tx, 1, 1)
	return nil
}

// writeLog makes a raft log whose only entry adds the member, and a raft snapshot after it.
func writeLog(logger *zap.Logger, walDir, snapDir string, cluster *membership.RaftCluster) (err error) {
	self := cluster.MemberByName(restoredName)
	id := uint64(self.ID)
	metadata, err := proto.Marshal(&pb.Metadata{NodeID: &id, ClusterID: new(uint64(cluster.ID()))})
	if err != nil {
		return fmt.Errorf("encoding the member's identity: %w", err)
	}
	described, err := json.Marshal(self)
	if err != nil {
		return fmt.Errorf("encoding the member: %w", err)
	}
	change, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: &id, Context: described})
	if err != nil {
		return fmt.Errorf("encoding the log's first entry: %w", err)
	}
	log, err := wal.Create(logger, walDir, metadata)
	if err != nil {
		return fmt.Errorf("making the log: %w", err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	one := uint64(1)
	entry := &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Term: &one, Index: &one, Data: change}
	if err := log.Save(&raftpb.HardState{Term: &one, Vote: &id, Commit: &one}, []*raftpb.Entry{entry}); err != nil {
		return fmt.Errorf("writing the log: %w", err)
	}
	voters := &raftpb.ConfState{Voters: []uint64{id}}
	err = snap.New(logger, snapDir).SaveSnap(&raftpb.Snapshot{
		Data:     etcdserver.GetMembershipInfoInV2Format(logger, cluster),
		Metadata: &raftpb.SnapshotMetadata{Index: &one, Term: &one, ConfState: voters},
	})
	if err != nil {
		return fmt.Errorf("writing the log's snapshot: %w", err)
	}
	if err := log.SaveSnapshot(&walpb.Snapshot{Index: &one, Term: &one, ConfState: voters}); err != nil {
		return fmt.Errorf("writing the log's snapshot: %w", err)
	}
	return nil
}
