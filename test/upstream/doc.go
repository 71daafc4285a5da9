// Package upstream builds and starts the Kubernetes that Gantry is measured beside: etcd,
// kube-apiserver, kube-controller-manager and kube-scheduler of Kubernetes 1.36.3, pinned in
// programs/go.mod, with flags as kubeadm sets them and client limits raised.
//
// Everything listens on the loopback address and keeps its data in one temporary folder.
// Nothing here knows of Gantry. Start at Build, then Start.
package upstream
