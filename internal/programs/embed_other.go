//go:build !linux || !(amd64 || arm64)

package programs

import "embed"

// embedded is empty: this platform runs no containers.
var embedded embed.FS

const folder = "bin"
