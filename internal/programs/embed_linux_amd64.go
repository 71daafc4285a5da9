package programs

import "embed"

// embedded holds the programs of this platform.
//
//go:embed all:bin/linux_amd64
var embedded embed.FS

const folder = "bin/linux_amd64"
