// Package agent plays the kubelet's role on one node: it registers the node, runs the pods
// that are bound to it and reports what became of them.
//
// Each pod has a worker that compares the pod's spec with what the runtime has (Agent.sync)
// and acts; events from the API, the runtime, probes and timers only wake the worker. What to
// do and what to report is decided by the pure packages podstatus and podconfig. Nothing is
// kept that could not be rebuilt from the runtime and the API, so an agent that was killed
// goes on where it was, and one that cannot reach the API keeps its pods running.
//
// Start at Agent.Run, then worker.sync.
package agent
