// Package join is how a machine becomes a part of a cluster, seen from that machine: what a token says, how a server is
// believed by the pin in it, what the cluster tells of itself, and how certificates are asked for, kept and renewed. Keys
// never leave the machine.
//
// It knows HTTP, TLS and the API's types, and nothing of servers or nodes. Start at Discover, then API and Keeper.
package join
