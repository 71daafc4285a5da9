// Package crilog reads container logs in the CRI format, over the rotation of their files: a
// line is "time stream F|P text", P marking a part of a line that goes on.
package crilog
