package agent

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"gantry.dev/gantry/internal/agent/podconfig"
	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/lifecycle"
)

// Cgroups is what a runtime may have beside Runtime: limits that are set while containers run.
// Without it the classes of service have no cgroups of their own and pods are resized by
// restarts alone.
type Cgroups interface {
	// EnsureCgroup makes a cgroup with its parents, or sets the limits of one that is there.
	// Limits that are 0 stay as they are.
	EnsureCgroup(path string, res container.Resources) error
	// CgroupLimits reads limits of CPU and memory; where there is none it is 0.
	CgroupLimits(path string) (container.Resources, error)
	// UpdateContainer sets limits of a container that runs, as EnsureCgroup does.
	UpdateContainer(ctx context.Context, id string, res container.Resources) error
}

// classes keeps the cgroups above the pods: /kubepods with what all pods may have together, and
// one each for burstable and best-effort pods, whose share of the CPU is what they asked for.
type classes struct {
	agent   *Agent
	cgroups Cgroups
	changed chan struct{} // has an element when pods came or went

	mu     sync.Mutex // guards the field below
	shares uint64     // of burstable pods, as written last
}

// classesDelay is how long changes are gathered before the classes' shares are written.
const classesDelay = 50 * time.Millisecond

func newClasses(a *Agent) *classes {
	cgroups, ok := a.runtime.(Cgroups)
	if !ok {
		return nil
	}
	return &classes{agent: a, cgroups: cgroups, changed: make(chan struct{}, 1)}
}

// classesChanged says that pods came, went or were resized.
func (a *Agent) classesChanged() {
	if a.classes == nil {
		return
	}
	select {
	case a.classes.changed <- struct{}{}:
	default:
	}
}

// prepare makes the cgroups. That their limits cannot be set costs isolation, not the node.
func (c *classes) prepare() {
	a := c.agent
	failed := func(path string, err error) {
		if err != nil {
			message := "Failed to update Node Allocatable Limits \"" + path + "\": " + err.Error()
			a.events.node(corev1.EventTypeWarning, "FailedNodeAllocatableEnforcement", message)
			a.log.Warn("cannot set the limits of all pods together", "cgroup", path, "error", err)
		}
	}
	root := podconfig.PodsCgroup(a.opts.CgroupRoot)
	failed(root, c.cgroups.EnsureCgroup(root, nodeResources(a.podsTogether())))
	class := podconfig.ClassCgroup(a.opts.CgroupRoot, corev1.PodQOSBestEffort)
	failed(class, c.cgroups.EnsureCgroup(class, container.Resources{CPUShares: podconfig.CPUShares(0)}))
	c.update()
}

// podsTogether is what all pods may use together: the capacity without what is reserved. What
// eviction keeps free is not taken off, or it could never act.
func (a *Agent) podsTogether() corev1.ResourceList {
	list := a.capacity.DeepCopy()
	for name, q := range list {
		if reserved, ok := a.opts.Reserved[name]; ok {
			q.Sub(reserved)
			if q.Sign() < 0 {
				q = *resource.NewQuantity(0, q.Format)
			}
			list[name] = q
		}
	}
	return list
}

// nodeResources translates what pods may have together into limits.
func nodeResources(list corev1.ResourceList) container.Resources {
	return container.Resources{
		CPUShares:        podconfig.CPUShares(list.Cpu().MilliValue()),
		MemoryLimitBytes: list.Memory().Value(),
	}
}

// update writes the burstable class's share of the CPU: what its pods asked for together.
func (c *classes) update() {
	a := c.agent
	milli := int64(0)
	a.mu.Lock()
	for _, w := range a.workers {
		if !w.admitted || w.done() {
			continue
		}
		if pod := w.grantedLocked(); podconfig.Class(pod) == corev1.PodQOSBurstable {
			requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
			milli += requests.Cpu().MilliValue()
		}
	}
	a.mu.Unlock()
	shares := podconfig.CPUShares(milli)
	c.mu.Lock()
	defer c.mu.Unlock()
	if shares == c.shares {
		return
	}
	class := podconfig.ClassCgroup(a.opts.CgroupRoot, corev1.PodQOSBurstable)
	if err := c.cgroups.EnsureCgroup(class, container.Resources{CPUShares: shares}); err != nil {
		a.log.Warn("cannot set the CPU share of burstable pods", "cgroup", class, "error", err)
		return
	}
	c.shares = shares
}

// run writes the shares after each change, until ctx ends.
func (c *classes) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.changed:
		}
		if !lifecycle.Pause(ctx, classesDelay) {
			return
		}
		c.update()
	}
}
