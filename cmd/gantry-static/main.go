// Command gantry-static serves the files of a static site; it is the program in the images of such.
// See package site.
package main

import (
	"os"

	"gantry.dev/gantry/internal/platform/build/site"
)

func main() { os.Exit(site.Main(os.Args[1:], os.Getenv("PORT"))) }
