// Package cli is the command line: arguments in, text and an exit code out.
//
// It decides nothing about clusters. What a command does to this machine is a function in Backend,
// which package server fills; what it asks a cluster goes through the Kubernetes API with the
// kubeconfig. Results go to stdout, progress and warnings to stderr. Start at Main.
package cli
