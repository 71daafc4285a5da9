//go:build !linux

package cli

// stopNode does nothing: nodes run on Linux.
func stopNode(string) {}
