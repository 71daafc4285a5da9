// Package gateway holds Gantry against the Gateway API's own conformance suite, which the module in ../gatewayapi pins. It
// builds the suite and the program behind its Services, starts a node, and runs the suite on the node's machine.
//
// lists/gateway.txt names the tests that may fail, and why. Start at TestGatewayAPI.
package gateway
