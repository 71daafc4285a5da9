// Package view shows the cluster to admission code that is written against client-go.
//
// Upstream's plugins read through shared informers and a clientset. Here both are thin
// covers of the registry: an informer's index is the store's table, so nothing is copied,
// nothing has to be synced, and a write is seen by the next read. Handlers of informers are
// called when Refresh finds the table changed. Start at New.
package view
