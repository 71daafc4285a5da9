// Package wayout tests that a cluster can leave Gantry: upstream's kube-apiserver, with the etcd
// that it ships with, runs on what Gantry has left in its data dir, serves every object as Gantry
// did, and writes. docs/howto/leave-gantry.md is the same for people.
package wayout
