// Package crilog writes a container's output to a file in the CRI log format, one line of
// output per line of the file:
//
//	2026-01-02T15:04:05.000000000Z stdout F the line
//
// The third field is F for a whole line and P for a piece of one that is longer than
// MaxLine. A file that has reached its limit is renamed with a time stamp and a few of
// those are kept. The package knows no containers: Writer.Copy takes any reader.
package crilog
