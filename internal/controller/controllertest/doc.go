// Package controllertest is an API in memory for tests of controllers: a client.Client
// with the rules that controllers rely on (resource versions, generations, finalizers,
// grace, the subresources binding, finalize and status), and informers fed by its writes.
//
// Live runs a controller over any API with Faults: it crashes after its writes, and events come late, twice or
// not at all. What it reads stays up to date, as in our process.
//
// Like the real in-process client it hands out shallow copies: what they point to is
// shared and read-only. Cluster checks at the end of a test that nobody changed it.
// Start at New.
package controllertest
