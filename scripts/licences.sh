#!/bin/sh
# Checks the licences of everything that is linked into gantry and the programs inside it. It needs no network: the modules are
# those that were built. GO names the go command.
set -eu
cd "$(dirname "$0")/.."
go=${GO:-go}
format='{{with .Module}}{{.Path}} {{.Version}} {{.Dir}}{{end}}'
{
	CGO_ENABLED=0 $go list -deps -f "$format" ./cmd/...
	(cd runtime && $go list -deps -tags seccomp,no_grpc -f "$format" github.com/opencontainers/runc github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2)
} | sort -u | (cd tools && CGO_ENABLED=0 $go run ./licences)
