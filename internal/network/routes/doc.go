// Package routes keeps the node's gantry-edge running and fed.
//
// compile.go is the pure core: Services, EndpointSlices and Namespaces in, DNS records out.
// Feeder is the shell: it starts an edge when none answers, adopts one that runs, replaces
// one whose program differs, sends it the whole table and then what changes. The edge
// outlives the Feeder; only Stop ends it. Start at Feeder.Run.
package routes
