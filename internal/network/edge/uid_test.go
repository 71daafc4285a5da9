//go:build linux && !cgo

package edge_test

// testUID is whom the edges under test become.
const testUID = 65053
