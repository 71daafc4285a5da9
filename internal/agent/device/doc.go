// Package device gives the devices of the node to containers: those that device plugins offer
// through the kubelet's gRPC API (k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1).
//
// Manager keeps which plugin offers what and which pod holds which device. What a pod holds is
// on disk before its containers start, and is given back only by Release, so a device belongs
// to one pod at a time whatever crashes. The gRPC servers are made when somebody connects.
// Choosing (choose.go) is pure. Start at Manager.Run, then Manager.Allocate.
package device
