// Command gantry-shim stays beside the containers of one pod; gantry starts it.
package main

import (
	"os"

	"gantry.dev/gantry/internal/container/shim"
)

func main() { os.Exit(shim.Main(os.Args[1:], os.Stderr)) }
