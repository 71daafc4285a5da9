// Package shim is the program that stays beside the containers of one pod: it is their
// parent, keeps their exit codes and writes their logs, so that none of that depends on
// the main process being there.
//
// The work on containers is containerd's own task service for runc, served over ttrpc as
// containerd defines it. Around it this package adds three things: a stdio scheme that
// makes the shim write the log itself (LogURI), a record of how each container ended in
// its bundle (ExitFile), and a second socket for what ttrpc's calls are no fit for: a
// stream of events, attach, and the deadline at which it kills the pod (Fence). Start at Main. It imports as little as it can,
// because every pod pays for it in memory.
package shim
