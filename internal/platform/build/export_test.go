//go:build linux

package build

// CgroupName is exported for tests.
var CgroupName = cgroupName
