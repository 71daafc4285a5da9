//go:build tools

package gatewayapi

// The program behind the suite's Services, which package gateway puts into an image.
import _ "sigs.k8s.io/gateway-api/conformance/echo-basic"
