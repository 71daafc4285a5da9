// Package hosts makes machines out of network namespaces on one bridge, and runs Gantry on them: for benchmarks and simulations that
// start the built program and cut, kill and restart machines. Start at Inside, then New.
package hosts
