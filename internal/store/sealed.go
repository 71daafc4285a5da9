package store

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

// Stale reports whether what etcd holds under key was sealed otherwise than a write would seal it
// now, so that an update with the same content still has something to do.
func (s *Store) Stale(ctx context.Context, kind, key string) (bool, error) {
	t, err := s.table(kind)
	if err != nil || t.kind.Sealer == nil {
		return false, err
	}
	if resting, ok := t.kind.Sealer.(interface{ Resting() bool }); ok && resting.Resting() {
		return false, nil // nothing of the kind is sealed now
	}
	etcdKey := t.kind.Prefix + key
	s.gate.RLock()
	defer s.gate.RUnlock()
	result, err := s.member.server.KV().Range(ctx, []byte(etcdKey), nil, mvcc.RangeOptions{})
	if err != nil {
		return false, fmt.Errorf("reading %s %s from etcd: %w", kind, key, err)
	}
	if len(result.KVs) == 0 {
		return false, nil
	}
	_, stale, err := t.kind.Sealer.Open(etcdKey, result.KVs[0].Value)
	return stale, err
}

// sealedPage is how many values CheckSealed reads at a time.
const sealedPage = 500

// CheckSealed opens every value of kind in etcd by another sealer and returns the first error:
// what is about to become the kind's sealer must be able to read all there is.
func (s *Store) CheckSealed(ctx context.Context, kind string, by Sealer) error {
	t, err := s.table(kind)
	if err != nil {
		return err
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	from, end := []byte(t.kind.Prefix), prefixEnd(t.kind.Prefix)
	for {
		result, err := s.member.server.KV().Range(ctx, from, end, mvcc.RangeOptions{Limit: sealedPage})
		if err != nil {
			return fmt.Errorf("reading %s from etcd: %w", kind, err)
		}
		for i := range result.KVs {
			if _, _, err := by.Open(string(result.KVs[i].Key), result.KVs[i].Value); err != nil {
				return fmt.Errorf("%s %s: %w", kind, result.KVs[i].Key[len(t.kind.Prefix):], err)
			}
		}
		if len(result.KVs) < sealedPage {
			return nil
		}
		from = append(result.KVs[len(result.KVs)-1].Key, 0)
	}
}

// isSealed reports whether err says that a value could not be opened.
func isSealed(err error) bool { return errors.Is(err, ErrSealed) }
