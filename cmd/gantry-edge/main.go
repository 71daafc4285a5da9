// Command gantry-edge holds a node's listening sockets while gantry itself comes and goes. gantry
// starts it; see package edge.
package main

import (
	"os"

	"gantry.dev/gantry/internal/network/edge"
)

func main() { os.Exit(edge.Main(os.Args[1:])) }
