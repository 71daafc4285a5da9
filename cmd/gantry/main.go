// Command gantry is a whole Kubernetes-compatible cluster in one program, and its command line.
package main

import (
	"context"
	"os"

	"golang.org/x/term"

	"gantry.dev/gantry/internal/cli"
)

// Stamped by the linker; see the Makefile.
var (
	version = "v0.0.0-dev"
	commit  = ""
)

func main() {
	os.Exit(cli.Main(context.Background(), cli.Env{
		Args:       os.Args[1:],
		Environ:    os.Environ(),
		Stdin:      os.Stdin,
		Stdout:     os.Stdout,
		Stderr:     os.Stderr,
		IsTerminal: term.IsTerminal(int(os.Stdin.Fd())),
		Version:    version,
		Commit:     commit,
	}, backend()))
}
