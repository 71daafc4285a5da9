// Package cluster starts a Gantry node on a machine of its own, a network namespace with a data
// dir, and takes both away again. Programs and connections of the caller can be inside of it.
//
// It serves programs as well as tests, so it knows no testing.T. Start at Start.
package cluster
