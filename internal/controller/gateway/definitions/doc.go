// Package definitions holds the CustomResourceDefinitions of the Gateway API, standard channel, as
// the project publishes them, and installs them in a cluster that lacks them.
//
// Only kinds that Gantry serves are here: GatewayClass, Gateway, HTTPRoute, GRPCRoute and
// ReferenceGrant. Each file is decompressed when it must be written, never otherwise.
// LICENSE is theirs. Start at Install.
package definitions

//go:generate go run generate.go
