//go:build linux && cgo

package edge_test

// testUID stays root: with cgo (the race detector) not all threads can change their user.
const testUID = 0
