// Package remote runs the platform on somebody else's Kubernetes: Install makes the definitions, the account and a Deployment there,
// Uninstall takes them away again, and Platform is what the Deployment runs. What the cluster lacks (a gateway that holds and
// counts requests, a registry, builds) turns features off; the conditions of each App say which.
//
// Start at Install and at Platform.Run.
package remote
