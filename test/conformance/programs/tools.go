//go:build tools

// Package programs pins upstream's end-to-end test suite. Nothing is imported at run time: package
// conformance builds e2e.test and ginkgo from the versions in this module, which are those that
// Kubernetes 1.36.3 itself was released with.
package programs

import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	_ "k8s.io/kubernetes/test/e2e"
)
