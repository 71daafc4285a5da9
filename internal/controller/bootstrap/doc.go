// Package bootstrap looks after bootstrap tokens: Secrets of type bootstrap.kubernetes.io/token in
// kube-system, with which machines join. Cleaner removes those that have expired; Signer signs the
// ConfigMap kube-public/cluster-info with those that may, so that a machine that knows only a token
// can trust what it reads there. What they hold and mean is as in upstream's kube-controller-manager.
package bootstrap
