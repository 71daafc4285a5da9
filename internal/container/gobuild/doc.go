// Package gobuild turns a Go main package into a container image, with the go command
// alone: compiled static for Linux and packed as an archive that the runtime's Import
// takes. The same source and Go version give the same image. Start at Build.
package gobuild
