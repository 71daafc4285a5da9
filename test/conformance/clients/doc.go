// Package clients tests Gantry with the programs and libraries that people use: kubectl of two
// releases, Helm, a controller-runtime manager, and client-go's informers. All tests share one
// cluster and have namespaces of their own; what stops the server has a cluster to itself.
package clients
