package conformance

import "gantry.dev/gantry/test/upstream"

// SuitePrograms are what RunSuite runs, as the module in programs pins them.
func SuitePrograms() []upstream.Program {
	return []upstream.Program{
		{Name: "ginkgo", Package: "github.com/onsi/ginkgo/v2/ginkgo"},
		{Name: "e2e.test", Package: "k8s.io/kubernetes/test/e2e", Test: true},
	}
}

// SuiteImages are the programs in the stand-ins for upstream's test images.
func SuiteImages() []upstream.Program {
	return []upstream.Program{
		{Name: "agnhost", Package: "k8s.io/kubernetes/test/images/agnhost"},
		{Name: "nnp", Package: "k8s.io/kubernetes/test/images/nonewprivs"},
		{Name: "sample-apiserver", Package: "k8s.io/sample-apiserver"},
	}
}

// Etcd is upstream's, as the module of package upstream pins it; a test runs it in a pod.
func Etcd() []upstream.Program {
	return []upstream.Program{{Name: "etcd", Package: "go.etcd.io/etcd/server/v3"}}
}

// OldKubectl is the oldest kubectl that Gantry is tested with.
const OldKubectl = "v1.32.2"

// KubectlPrograms is kubectl, as the module in kubectl132 pins it.
func KubectlPrograms() []upstream.Program {
	return []upstream.Program{{Name: "kubectl", Package: "k8s.io/kubernetes/cmd/kubectl"}}
}

// HelmPrograms is a program around Helm's library, as the module in helm has it.
func HelmPrograms() []upstream.Program {
	return []upstream.Program{{Name: "helm", Package: "."}}
}

// OperatorPrograms is a controller-runtime manager, as the module in operator has it.
func OperatorPrograms() []upstream.Program {
	return []upstream.Program{{Name: "operator", Package: "."}}
}

// GatewayPrograms are the Gateway API's conformance suite and the program behind its Services, as the module in gatewayapi
// pins them.
func GatewayPrograms() []upstream.Program {
	return []upstream.Program{
		{Name: "suite.test", Package: ".", Test: true},
		{Name: "echo-basic", Package: "sigs.k8s.io/gateway-api/conformance/echo-basic"},
	}
}
