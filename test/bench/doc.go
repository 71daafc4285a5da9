// Command bench measures Gantry beside upstream Kubernetes and prints one table.
//
// Both run at the same time in a network and mount namespace that the benchmark makes, so the host
// is not touched and only loopback is used. For each operation the rounds alternate between the two,
// with the same client code. "make bench" runs it; docs/benchmarks.md explains what the figures
// mean. Start at main, then run.
package main
