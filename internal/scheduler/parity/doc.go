// Package parity holds the scheduler against kube-scheduler's own plugins, run beside it on
// the same random clusters. It has tests and benchmarks only.
package parity
