// Package job is the language between gantry and the program that builds: gantry-build is told
// once what it may use (Setup, on its standard input) and is then asked over a socket for one
// build at a time (Request), which it answers with a stream of Events, JSON lines.
//
// The package holds types alone, so that the server's process knows nothing of BuildKit.
package job
