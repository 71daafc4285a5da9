// Package client lets components of this process use the API as any client does, without
// sockets or copies.
//
// Client is a controller-runtime client over the registry: writes pass authorization,
// admission and validation like any other; reads come from the store's tables and include
// every write that was acknowledged before. Cache gives the store's changes as informers.
//
// Objects that either hands out share their insides with the store: they are read-only.
// Pointed at a kubeconfig, the same components run over controller-runtime's own client.
package client
