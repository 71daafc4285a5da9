// Package node looks after nodes: Controller gives each one its part of the cluster's pod
// addresses, notices when its agent falls silent, and taints it by its conditions;
// Evictor deletes the pods that do not tolerate a node's NoExecute taints.
//
// What a node should say is decided by pure functions (planConditions, planTaints,
// planEviction). Which CIDRs are taken is read from the nodes themselves, so nothing is lost in a crash; a Controller that starts counts every node as just heard.
// Start at Controller.Run.
package node
