package containerd

import (
	"sync"
	"time"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/shim"
)

// How a container ended when nothing says how. Source: the kubelet's words for it.
const (
	exitUnknown   = 137
	reasonUnknown = "ContainerStatusUnknown"
)

// record is what containerd's container record holds of ours, in its extension.
type record struct {
	Config     container.Config `json:"config"`
	ImageID    string           `json:"imageID"`   // digest of the image's config
	ImageRef   string           `json:"imageRef"`  // repository digest, else ImageID
	StopSignal string           `json:"stop"`      // settled from pod, image and default
	PrivatePID bool             `json:"pid"`       // process 1 of a PID namespace of its own
	Cgroup     string           `json:"cgroup"`    // path of its cgroup
	Handler    string           `json:"handler"`   // runtime handler of the sandbox
	BootID     string           `json:"boot"`      // of the machine when it was made
	CreatedAt  time.Time        `json:"createdAt"` // containerd's own has no sub-second order
}

// ctr is one container in memory.
type ctr struct {
	id      string
	cfg     container.Config
	rec     record
	created time.Time
	user    *container.User // constant; nil when it is not known

	op   sync.Mutex    // one change at a time
	done chan struct{} // closed when the container has ended

	mu       sync.Mutex // guards the fields below
	current  container.State
	started  time.Time
	finished time.Time
	exitCode int
	oom      bool
	reason   string
	message  string
	pid      int
	stock    *shimConn // of a container with the stock shim
}

func newCtr(id string, rec record) *ctr {
	return &ctr{
		id:      id,
		cfg:     rec.Config,
		rec:     rec,
		created: rec.CreatedAt,
		done:    make(chan struct{}),
		current: container.StateCreated,
	}
}

func (c *ctr) state() container.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// setRunning records the start, unless the container has ended already.
func (c *ctr) setRunning(pid int, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == container.StateCreated {
		c.current, c.pid, c.started = container.StateRunning, pid, at
	}
}

// setOOM records that the kernel killed a process of the container; false if known.
func (c *ctr) setOOM() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.oom
	c.oom = true
	return !known
}

// setExited records the end; false if it was known. reason "" is worked out.
func (c *ctr) setExited(exit shim.Exit, reason string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == container.StateExited {
		return false
	}
	c.current, c.pid = container.StateExited, 0
	c.finished, c.exitCode = exit.At, exit.Code
	if c.started.IsZero() || c.finished.Before(c.started) {
		c.started = c.finished
	}
	c.oom = c.oom || exit.OOM
	switch {
	case reason != "":
		c.reason = reason
		c.message = "the container's end was not seen: its shim or the machine went away"
	case exit.Fenced:
		c.reason = container.ReasonFenced
		c.message = "the node was cut off from the cluster for longer than the pod may run without it"
	case c.oom && exit.Code != 0:
		c.reason = "OOMKilled"
	case exit.Code == 0:
		c.reason = "Completed"
	default:
		c.reason = "Error"
	}
	close(c.done)
	return true
}

// status returns what is known, as the agent sees it.
func (c *ctr) status() container.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return container.Status{
		ID:          c.id,
		SandboxID:   c.cfg.SandboxID,
		Name:        c.cfg.Name,
		Attempt:     c.cfg.Attempt,
		State:       c.current,
		CreatedAt:   c.created,
		StartedAt:   c.started,
		FinishedAt:  c.finished,
		ExitCode:    c.exitCode,
		OOMKilled:   c.reason == "OOMKilled",
		Reason:      c.reason,
		Message:     c.message,
		PID:         c.pid,
		User:        c.user,
		Image:       c.cfg.Image,
		ImageRef:    c.cfg.ImageRef,
		ImageID:     c.rec.ImageRef,
		LogPath:     c.cfg.LogPath,
		Labels:      c.cfg.Labels,
		Annotations: c.cfg.Annotations,
	}
}
