package heartbeat

import (
	"fmt"
	"time"
)

// Path is where servers take beats, by PUT, from the node itself (user system:node:NAME).
const Path = "/gantry/v1/heartbeat"

// Every is how often a node sends a beat to each server.
const Every = 300 * time.Millisecond

// NodeAnnotation on a Node says that its agent sends beats: a server that has heard none yet waits for them instead of
// for Leases. Its value is the time between two.
const NodeAnnotation = "gantry.dev/heartbeat"

// LeavingRestart says that the node's main process is about to start anew. Its pods run on meanwhile.
const LeavingRestart = "restart"

// RestartGrace is how long a node that has announced a restart may be silent.
const RestartGrace = 60 * time.Second

// DefaultDeadline is how long fenced pods of a node go on after the last beat that the leading server answered.
const DefaultDeadline = 10 * time.Second

// ConditionFenced of a pod says that its node kills it when no leading server hears the node, before its identity is
// given away. With ReasonSharedStorage the pod writes to storage that another node can reach too: a machine that was
// paused as a whole would go on writing for a moment, so its identity is never given away by time alone. False with
// ReasonLocalVolume says that only this node can run the pod: it waits for the node.
const (
	ConditionFenced     = "gantry.dev/fenced"
	ReasonSharedStorage = "SharedStorage"
	ReasonIdentity      = "Identity"
	ReasonLocalVolume   = "LocalVolume"
)

// maxDeadline bounds what a node may say of its deadline; maxText bounds its names.
const (
	maxDeadline = 10 * time.Minute
	maxText     = 253
)

// Beat is what a node says.
type Beat struct {
	Name    string `json:"name"`
	BootID  string `json:"bootID"`            // of the machine's kernel: another one after a reboot
	Leaving string `json:"leaving,omitempty"` // LeavingRestart, or nothing
	// FenceMillis says that every fenced pod of the node is killed so long after the last beat that the leading server
	// answered, whatever becomes of the agent. 0: it may be that none is.
	FenceMillis int64 `json:"fenceMillis,omitempty"`
}

// Check says what is wrong with a beat that came from outside.
func (b Beat) Check() error {
	switch {
	case b.Name == "" || len(b.Name) > maxText || len(b.BootID) > maxText:
		return fmt.Errorf("a heartbeat needs a name, and no text over %d bytes", maxText)
	case b.Leaving != "" && b.Leaving != LeavingRestart:
		return fmt.Errorf("a heartbeat's leaving is %q, want %q or nothing", b.Leaving, LeavingRestart)
	case b.FenceMillis < 0 || b.Fence() > maxDeadline:
		return fmt.Errorf("a heartbeat's fenceMillis is %d, want 0 to %d", b.FenceMillis, maxDeadline.Milliseconds())
	}
	return nil
}

// Fence is FenceMillis as a duration.
func (b Beat) Fence() time.Duration { return time.Duration(b.FenceMillis) * time.Millisecond }

// Answer is what a server says.
type Answer struct {
	// Leads says that this server decides about nodes. Only its answers keep fenced pods alive: another server's
	// memory does not count when their identities are given away.
	Leads bool `json:"leads,omitempty"`
	// Takeover says that another node could run the node's stateful pods. Without one nothing needs to be fenced.
	Takeover bool `json:"takeover,omitempty"`
	// Report asks the agent to report its status: the API does not know that the node is well.
	Report bool `json:"report,omitempty"`
}
