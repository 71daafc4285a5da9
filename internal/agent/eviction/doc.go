// Package eviction decides what a node that runs short of memory, disk or process numbers does:
// which conditions it reports, which pods it turns away and which pod it ends next.
//
// It is the pure part: observations and usages in, decisions out; no clock, no files. Words,
// thresholds, ranking and messages are those of the kubelet (Kubernetes documentation,
// "Node-pressure Eviction"). Start at Manager.Observe.
package eviction
