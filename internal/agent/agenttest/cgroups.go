package agenttest

import (
	"context"
	"fmt"
	"slices"

	"gantry.dev/gantry/internal/container"
)

// EnsureCgroup implements the runtime's limits.
func (r *Runtime) EnsureCgroup(path string, res container.Resources) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failures["EnsureCgroup"]; err != nil {
		return err
	}
	r.limitLocked(path, res)
	return nil
}

func (r *Runtime) limitLocked(path string, res container.Resources) {
	if r.cgroups == nil {
		r.cgroups = map[string]container.Resources{}
	}
	has := r.cgroups[path]
	if res.CPUShares != 0 {
		has.CPUShares = res.CPUShares
	}
	if res.CPUQuotaMicros != 0 {
		has.CPUQuotaMicros, has.CPUPeriodMicros = res.CPUQuotaMicros, res.CPUPeriodMicros
	}
	if res.MemoryLimitBytes != 0 {
		has.MemoryLimitBytes = res.MemoryLimitBytes
	}
	if res.PidsLimit != 0 {
		has.PidsLimit = res.PidsLimit
	}
	r.cgroups[path] = has
	r.writes = append(r.writes, fmt.Sprintf("%s shares=%d quota=%d memory=%d", path, res.CPUShares, res.CPUQuotaMicros, res.MemoryLimitBytes))
}

// CgroupLimits implements the runtime's limits.
func (r *Runtime) CgroupLimits(path string) (container.Resources, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	res, ok := r.cgroups[path]
	if !ok {
		return container.Resources{}, fmt.Errorf("there is no cgroup %s", path)
	}
	return res, nil
}

// UpdateContainer implements the runtime's limits.
func (r *Runtime) UpdateContainer(_ context.Context, id string, res container.Resources) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failures["UpdateContainer"]; err != nil {
		return err
	}
	c, err := r.findLocked(id)
	if err != nil {
		return err
	}
	r.limitLocked(r.sandboxes[c.config.SandboxID].spec.CgroupPath+"/"+c.config.Name, res)
	return nil
}

// LimitWrites lists the limits that were written, in order; containers go by their names.
func (r *Runtime) LimitWrites() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.writes)
}
