// Package applog keeps what applications wrote on one node when their pods are gone, and what the platform did
// with them, for a bounded time and size; it reads all of that merged by time.
//
// A pod's log folder is moved here when the pod is forgotten: nothing is copied. Start at Keeper.
package applog
