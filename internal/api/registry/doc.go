// Package registry implements the verbs of the Kubernetes API on objects.
//
// A Resource is one kind as it is served: its names, its strategy (what a create or update
// resets, generates and validates; upstream's own), its subresources and its place in the
// store. Every change passes the same steps: defaults, managed fields, admission, strategy,
// validation, one compare-and-swap in the store. Authentication and authorization come
// before: nothing here asks who may.
//
// The registry is the only writer of the store. It never speaks HTTP. A kind is added by a
// few lines in kinds.go; start reading there.
package registry
