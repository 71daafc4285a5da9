// Package nodeapi serves the kubelet's HTTP API of one node: logs, exec, attach, port
// forwarding, pods and figures. It neither listens nor authenticates: the handler is served by
// whoever has the certificates and knows the callers.
package nodeapi
