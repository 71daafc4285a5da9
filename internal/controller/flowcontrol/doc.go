// Package flowcontrol keeps the condition Dangling of FlowSchemas: whether the priority level that a schema names is
// there. What the schemas mean is internal/api/fairness's.
//
// Start at Controller.Run and Controller.reconcile.
package flowcontrol
