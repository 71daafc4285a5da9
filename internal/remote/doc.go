// Package remote is the cluster as a node on another machine than the servers' sees it: a client and informers over TLS.
//
// A feed follows one kind, or one object, by list and watch; it connects again at once when a server goes, keeps what it
// knows meanwhile, and writes it down, so that a node that starts while no server answers knows its pods. Services,
// EndpointSlices, Namespaces and Nodes are read from the feeds; everything else is asked of a server. ConfigMaps and Secrets
// are followed one by one, those that the node's pods name: a node may not read others. Objects of feeds are shared:
// read-only. Start at New.
package remote
