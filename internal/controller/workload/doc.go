// Package workload runs what keeps pods for ever: Deployments, ReplicaSets,
// ReplicationControllers, StatefulSets and DaemonSets.
//
// A ReplicaSet or ReplicationController keeps a number of pods of one template; a
// Deployment moves pods from one ReplicaSet to the next within its limits. A StatefulSet
// keeps pods that have names and claims of their own, and starts and stops them in order.
// A DaemonSet keeps a pod on each node that it wants. The last two keep their earlier
// templates as ControllerRevisions. Names, hashes, annotations, conditions, reasons and
// event texts are those of Kubernetes 1.36, because tools read them.
//
// The functions called plan… are pure. The controllers are the shells that read, ask them,
// and write; claimed, route and podWriter are the steps that all of them share. Every
// write leaves a state from which the next pass converges, whatever was lost after it.
package workload
