//go:build !linux || clientonly

package main

import "gantry.dev/gantry/internal/cli"

// backend is empty in a program for clients only.
func backend() cli.Backend { return cli.Backend{} }
