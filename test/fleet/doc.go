// Command fleet runs many nodes against three real servers: the node's own code (internal/agent over internal/remote, its
// heartbeats and its certificate) with a container runtime that exists only in memory. It kills machines at random and
// checks, several times a second, that every pod that was lost runs again within its bound, that the API stays linearizable and
// that no living machine is taken for dead. With -load it kills nothing and loads the servers instead.
//
// "make fleet" runs it; docs/fleet.md has what it found. Start at run.
package main
