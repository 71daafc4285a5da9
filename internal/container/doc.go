// Package container says what a node asks of a container runtime: sandboxes, containers,
// processes inside them, and images.
//
// It holds words only, no behaviour: containerd/ is the real runtime, shim/ is the program
// that stays beside the containers of one pod. The agent declares the small interfaces it
// calls in terms of these types, so that tests can bring a runtime of their own.
package container
