// Package check proves that the network between nodes works: pods to pods, services, names,
// policies, and packets as large as the paths are said to carry, from each node to each other.
// It is a client of the API: it runs small pods (package probe) in a namespace of its own and
// reads what they say from their logs, so nothing of the answers travels by what is checked.
//
// judge is the pure core: what was asked and answered in, pairs and problems with cures out.
// Start at Run.
package check
