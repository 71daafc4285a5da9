// Package controllertest is an API in memory for tests of controllers: a client.Client
// with the rules that controllers rely on (resource versions, generations, finalizers,
// grace, the subresources binding, finalize and status), and informers fed by its writes.
//
// Live runs a controller over any API with Faults: it crashes after its writes, events come late, twice or
// not at all, and what it reads lags behind what others have written. What is tested thus, and what a controller may
// count on wherever it runs: its reads have its own writes, they are not older than the events it was told, and
// objects of one kind appear in the order in which they were written. Our process gives that and more (reads
// lag behind nobody). A client for a controller on another machine has to wait after each write until its cache has it:
// without that, controllers that count what they have made would make more.
//
// Like the real in-process client it hands out shallow copies: what they point to is
// shared and read-only. Cluster checks at the end of a test that nobody changed it.
// Start at New.
package controllertest
