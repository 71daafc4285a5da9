//go:build linux

// Command gantry-build makes images of source. gantry starts it; see package worker.
package main

import (
	"os"

	"gantry.dev/gantry/internal/platform/build/worker"
)

func main() { os.Exit(worker.Main(os.Stdin, os.Stdout)) }
