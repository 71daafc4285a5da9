// Package podgc deletes pods that nobody else will: pods on nodes that no longer exist,
// terminating pods that never got a node or whose node is out of service, and the oldest
// finished pods when there are too many. plan is pure; Collector looks once every Interval.
// Start at Collector.Run.
package podgc
