// Package admission decides whether a pod that was bound to a node may run there, and which
// pods must go for one that the system needs.
//
// It is pure. Reasons and messages are the kubelet's. Start at Check.
package admission
