//go:build tools

// Package kubectl132 pins kubectl 1.32, the oldest client that Gantry is tested with. Nothing is
// imported at run time: package conformance builds the program from the versions in this module.
package kubectl132

import _ "k8s.io/kubernetes/cmd/kubectl"
