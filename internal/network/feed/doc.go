// Package feed is the language that gantry and gantry-edge speak over the edge's unix socket:
// frames of a length, a kind and JSON. The edge greets first; then the client sends requests
// and gets one answer to each, in order.
//
// It holds only the wire's types and their coding, so that neither side imports the other.
package feed
