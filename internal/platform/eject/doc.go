// Package eject makes an application into plain Kubernetes objects, for a cluster that knows nothing of Gantry. It is pure: Render
// gets what was read of a cluster, and returns objects and what a reader has to know of them. Values of secrets are never in them.
package eject
