// Package gc deletes objects whose owners are gone, and carries out the deletions that
// their owner asked to be done in the foreground or with its dependents orphaned.
//
// The graph in memory holds only objects that have owners or that wait for the collector.
// It says what to look at; what is done is always decided from a fresh read of the object
// and of each owner, by classify and decide, which are pure. Start at Collector.Run.
package gc
