// Package podconfig translates a pod's spec into what a runtime needs: environment,
// commands, security, cgroup settings, host names and resolver files.
//
// The package is pure; what must be looked up is handed in. Formulas and messages are the
// kubelet's of Kubernetes 1.36.
package podconfig
