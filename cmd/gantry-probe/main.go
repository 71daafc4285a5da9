// Command gantry-probe is the program in the pods of "gantry network check". See package probe.
package main

import (
	"os"

	"gantry.dev/gantry/internal/network/probe"
)

func main() { os.Exit(probe.Main(os.Args[1:], os.Stdout, os.Stderr)) }
