// Package dns answers a cluster's names from memory, by the Kubernetes DNS specification
// (github.com/kubernetes/dns, docs/specification.md, version 1.1.0), and forwards the rest to
// the node's own resolvers.
//
// It knows records, not Kubernetes: who feeds it decides which names exist. Zone holds the
// records and answers; Forwarder asks other servers; Server joins them behind sockets that
// its caller owns. Start at Server.Answer.
package dns
