// Package audit makes what a server needs to write an audit log: the policy that says what is
// recorded, and the places that the records go to.
//
// Policy, events and places are upstream's (audit.k8s.io/v1), called as libraries: a log file of
// JSON lines that is rotated, and a webhook that gets batches. The API's HTTP layer asks the policy
// and fills the events. Start at New and Log.Run.
package audit
