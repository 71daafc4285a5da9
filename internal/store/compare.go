package store

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.uber.org/zap"
)

// Comparison says whether the members hold the same data.
type Comparison struct {
	Revision int64    // of the data that was compared
	Same     []string // names of the members that agree, this one among them if it does; sorted
	Differ   []string // of those that hold something else than most; sorted
	Unsure   bool     // no majority agrees: any of those that differ may be right
	Missed   []string // of those that could not be asked, or were too far behind or ahead
}

// How long a member that is behind is waited for.
const (
	compareWait = 5 * time.Second
	comparePoll = 100 * time.Millisecond
)

// sum is a member's checksum of all keys and values up to one revision, or none.
type sum struct {
	name string
	ok   bool
	hash uint32
	from int64 // what was compacted: sums are comparable only from the same one on
}

// Compare has every member make a checksum (etcd's HashKV) of the data at this member's revision, and compares. Writes wait
// while a member does so: about a second for each gigabyte. Call it on the leader.
func (s *Store) Compare(ctx context.Context) (Comparison, error) {
	if !s.company.Load() {
		return Comparison{Revision: s.Revision(), Same: []string{s.opts.Name}}, nil
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	server := s.member.server
	own, _, err := server.KV().HashStorage().HashByRev(0)
	if err != nil {
		return Comparison{}, fmt.Errorf("comparing the members: %w", err)
	}
	sums := []sum{{ok: true, hash: own.Hash, from: own.CompactRevision}}
	info := s.opts.Peer.tlsInfo(zap.New(slogCore{s.opts.Logger}))
	transport, err := rafthttp.NewRoundTripper(info, compareWait)
	if err != nil {
		return Comparison{}, fmt.Errorf("comparing the members: %w", err)
	}
	client := &http.Client{Transport: transport}
	defer client.CloseIdleConnections()
	for _, m := range server.Cluster().Members() {
		if m.ID == server.MemberID() {
			sums[0].name = m.Name
			continue
		}
		one := sum{name: m.Name}
		for _, url := range m.PeerURLs {
			if one = askSum(ctx, client, server.Cluster().ID(), m.Name, url, own.Revision); one.ok {
				break
			}
		}
		sums = append(sums, one)
	}
	out := judge(sums)
	out.Revision = own.Revision
	return out, nil
}

// askSum asks another member, and again while it is behind.
func askSum(ctx context.Context, client *http.Client, cluster types.ID, name, url string, revision int64) sum {
	ctx, cancel := context.WithTimeout(ctx, compareWait)
	defer cancel()
	for {
		got, err := etcdserver.HashByRev(ctx, cluster, client, url, revision)
		if err == nil {
			return sum{name: name, ok: true, hash: got.Hash, from: got.CompactRevision}
		}
		if !errors.Is(err, rpctypes.ErrFutureRev) {
			return sum{name: name}
		}
		select {
		case <-time.After(comparePoll):
		case <-ctx.Done():
			return sum{name: name}
		}
	}
}

// judge says who differs; the first sum is that of the member that asks. It is pure.
func judge(sums []sum) Comparison {
	var out Comparison
	votes := map[uint32]int{}
	for _, s := range sums {
		if s.ok && s.from == sums[0].from {
			votes[s.hash]++
		}
	}
	good, most := sums[0].hash, 0
	for hash, n := range votes {
		if n > most {
			good, most = hash, n
		}
	}
	out.Unsure = len(votes) > 1 && most <= len(sums)/2
	for _, s := range sums {
		switch {
		case !s.ok || s.from != sums[0].from:
			out.Missed = append(out.Missed, s.name)
		case s.hash == good && !out.Unsure:
			out.Same = append(out.Same, s.name)
		default:
			out.Differ = append(out.Differ, s.name)
		}
	}
	slices.Sort(out.Same)
	slices.Sort(out.Differ)
	slices.Sort(out.Missed)
	return out
}
