// Package events writes core/v1 Events for components of the cluster.
//
// A Writer takes events without blocking its callers, joins repeated ones the way
// client-go's event correlator does (same text: count goes up; many similar texts: one
// combined event; a noisy object: a token bucket) and writes them through an API client.
// When its queue is full the oldest waiting event is dropped and counted: an event is a
// hint to a person, never a reason to hold up work.
//
// Recorder gives a component its own view of a Writer. Start at Writer.Run.
package events
