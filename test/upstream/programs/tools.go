//go:build tools

// Package programs pins the upstream programs that Gantry is measured beside. Nothing is
// imported at run time: package upstream builds each program from the versions in this
// module, which are those that Kubernetes 1.36.3 itself was released with.
package programs

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kube-proxy"
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
	_ "k8s.io/kubernetes/cmd/kubelet"
)
