// Package conformance holds Gantry against upstream's own end-to-end suite and against real
// clients. Here are the lists of the suite's tests, how the suite is run on a cluster, and how its
// results are read.
//
// The program in run is what "make conformance" starts; the programs of upstream are pinned in
// programs and kubectl132, modules of their own. The tests in clients hold kubectl, Helm,
// controller-runtime and client-go to it, and those in wayout start upstream's kube-apiserver on
// Gantry's data. Start at RunSuite.
package conformance
