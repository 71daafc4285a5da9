// Package crds has the CustomResourceDefinitions of gantry.dev as YAML, made from the Go types by `make generate`.
package crds

import "embed"

// Files holds a definition a file.
//
//go:embed *.yaml
var Files embed.FS
