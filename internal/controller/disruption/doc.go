// Package disruption keeps the status of PodDisruptionBudgets, by which the API decides about
// evictions and the scheduler about preemption, and takes back a pod's DisruptionTarget
// condition when the disruption did not come.
//
// planStatus and what it calls are pure; Controller is the shell. How many pods a budget
// should cover is the scale of the pods' owners, custom resources included. Reasons,
// conditions and event texts are those of Kubernetes 1.36. Start at Controller.Run.
package disruption
