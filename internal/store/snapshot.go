package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
)

// Snapshot is the whole database as it was at one revision. It must be closed: while it is open the database file
// cannot be made smaller. Its form is etcd's own: the database file, then its SHA-256.
type Snapshot struct {
	inner    backend.Snapshot
	size     int64 // of the database file
	revision int64
	cluster  string
	close    func() error
}

// Revision is that of the last change in the snapshot.
func (s *Snapshot) Revision() int64 { return s.revision }

// ClusterID is etcd's name of the cluster that the snapshot is of.
func (s *Snapshot) ClusterID() string { return s.cluster }

// SizeBytes is how much WriteTo writes.
func (s *Snapshot) SizeBytes() int64 { return s.size + sha256.Size }

// WriteTo writes the snapshot. It may be called once.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	sum := sha256.New()
	n, err := s.inner.WriteTo(io.MultiWriter(w, sum))
	if err != nil {
		return n, fmt.Errorf("writing the snapshot: %w", err)
	}
	if n != s.size {
		return n, fmt.Errorf("writing the snapshot: %d bytes came, not %d", n, s.size)
	}
	m, err := w.Write(sum.Sum(nil))
	if err != nil {
		err = fmt.Errorf("writing the snapshot's hash: %w", err)
	}
	return n + int64(m), err
}

// Close lets the database go on without the snapshot.
func (s *Snapshot) Close() error { return s.close() }

// Snapshot takes a consistent copy of everything that was written up to now. Reads and writes go on meanwhile.
func (s *Store) Snapshot(ctx context.Context) (*Snapshot, error) {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.shape.RLock() // else making the file smaller would wait for this reader, and everybody for that
	s.gate.RLock()
	server := s.member.server
	inner := server.Backend().Snapshot()
	s.gate.RUnlock()
	out := &Snapshot{inner: inner, size: inner.Size(), cluster: server.Cluster().ID().String()}
	out.close = sync.OnceValue(func() error {
		defer s.shape.RUnlock()
		return inner.Close()
	})
	var err error
	if out.revision, err = revisionOf(inner); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return out, nil
}

// buckets is what a read transaction of the database offers.
type buckets interface {
	Bucket(name []byte) *bolt.Bucket
}

// revisionOf reads the last revision from the database itself: what the store says may be newer or older.
func revisionOf(tx any) (int64, error) {
	reader, ok := tx.(buckets)
	if !ok {
		return 0, fmt.Errorf("store: a snapshot of type %T cannot be read", tx)
	}
	keys := reader.Bucket(schema.Key.Name())
	if keys == nil {
		return 0, errors.New("this is no database of etcd: it has no keys")
	}
	last, _ := keys.Cursor().Last()
	if len(last) < len(mvcc.NewRevBytes()) {
		return 1, nil // nothing was ever written
	}
	return mvcc.BytesToRev(last).Main, nil
}
