// Package store keeps the cluster's objects: typed and immutable in memory, durable in etcd.
//
// Each kind has a table of entries ordered by key. An entry is one object at one revision
// together with its encoded bytes, made at most once. A write is one etcd transaction on the
// object's revision, proposed in process; the member's own watch fills the tables in
// revision order, and a writer waits until its table has reached its revision, so whoever
// wrote sees the write. Watchers are fed from the same stream, resume from a bounded
// history, and are cut off rather than waited for.
//
// The store knows no Kubernetes kind: a Kind says where objects live and how they are
// encoded. It is the only package that imports etcd. Start at Store.Run.
package store
