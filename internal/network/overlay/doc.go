// Package overlay is the network between machines: it keeps this machine's ways to the pods of
// all others.
//
// Machines on one link get a route to each other's pods, all others are reached through
// VXLAN. A tunnel learns nothing and announces nothing: the hardware address of its far end
// follows from the pod range, so whatever a machine must know of another is in its Node, and
// the order in which Nodes come and go does not matter.
//
// planPaths is the pure core: machines in, one path a machine out. Overlay is the shell: it
// reads Nodes, keeps the kernel equal to the plan, and writes on the own Node what others need
// to know. What is in the kernel stays when the process ends. Start at Overlay.Run.
package overlay
