// Package e2e tests the program that "make build" makes, with real containers, a real network and
// kubectl. Each test plays a machine of its own: network namespaces and a data dir that are gone
// when it ends. It needs root, and GANTRY_TEST_BIN names the folder of gantry and kubectl.
//
// Start at machine_test.go and cluster_test.go: what a test can do with a machine and a cluster.
package e2e
