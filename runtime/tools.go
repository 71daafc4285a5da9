//go:build tools

// Package runtime pins the programs that a node runs beside gantry. Nothing is imported at
// run time: scripts/build-programs.sh builds each program from the versions in this module.
package runtime

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/opencontainers/runc"
)
