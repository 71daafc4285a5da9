// Package workload runs Deployments and ReplicaSets.
//
// A ReplicaSet keeps a number of pods of one template; a Deployment moves pods from one
// ReplicaSet to the next within its limits. Names, annotations, conditions, reasons and
// event texts are those of Kubernetes 1.36, because tools read them.
//
// planDeployment and the functions around planReplicas are pure; DeploymentController
// and ReplicaSetController are the shells that read, ask them, and write. Every
// write leaves a state from which the next pass converges, whatever was lost after it.
package workload
