// Package probe asks a container once whether it is well: by HTTP, TCP, gRPC or a command.
// When to ask and what follows from the answers is the caller's.
package probe
