// Package gatewayapi is the Gateway API's conformance suite, of the release whose definitions Gantry serves. It is a module
// of its own, since it needs other versions of libraries than Gantry does; package gateway builds and runs it.
package gatewayapi

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

// TestGatewayAPI runs what the suite's own flags say.
func TestGatewayAPI(t *testing.T) { conformance.RunConformance(t) }
