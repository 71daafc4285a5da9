// Package podstatus decides what a pod is and what it needs next, from its spec, what the
// runtime knows of it and what its probes found.
//
// The package is pure: no clock, no I/O, no goroutine. Words, reasons and messages are the
// kubelet's of Kubernetes 1.36, because users and controllers match on them. Start at Next
// (what to do) and Generate (what to report).
package podstatus
