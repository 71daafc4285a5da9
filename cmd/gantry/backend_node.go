//go:build linux && !clientonly

package main

import (
	"gantry.dev/gantry/internal/cli"
	"gantry.dev/gantry/internal/plan"
	"gantry.dev/gantry/internal/server"
)

// backend is the node and server of this machine.
func backend() cli.Backend { return plan.Backend(server.Backend()) }
