// Package foreign has tests on somebody else's Kubernetes: upstream's own programs on a machine of the test's own, made by
// package upstream. `make conformance PARTS=foreign` runs them; the first time builds upstream, which takes minutes.
package foreign
