// Package namespace empties namespaces that are being deleted.
//
// Pods go first, and everything else waits for them, so that a pod that is shutting down
// still finds its ConfigMaps and network policies. When nothing is left the finalizer
// "kubernetes" is removed and the API deletes the namespace. Conditions tell what remains.
// Start at Controller.Run.
package namespace
