// Package resize decides how a running pod gets other resources: what it was granted, which of
// its containers must change, and in which order cgroups are written.
//
// It is pure. What was granted and what containers really have is a Record, which is kept with
// the pod's sandbox, so that it survives the agent. Start at Record.
package resize
