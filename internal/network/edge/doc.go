// Package edge is the program gantry-edge: the process of a node that holds the listening
// sockets of DNS and of the HTTP gateway, so that names resolve and requests are served while
// gantry is down or replaced.
//
// It is fed over a unix socket (package feed), keeps what it was fed last on disk, and starts
// from that. A newer edge that starts takes the sockets over from the older one: both answer
// until the older has finished what it began, so no question or request is lost.
//
// It knows no Kubernetes and imports little: it must stay small. Start at Run.
package edge
