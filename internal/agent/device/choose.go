package device

import (
	"fmt"
	"maps"
	"slices"
)

// used are the devices of a resource that somebody holds.
func (h holdings) used(resource string) map[string]bool {
	set := map[string]bool{}
	for _, containers := range h {
		for _, resources := range containers {
			if held := resources[resource]; held != nil {
				for _, id := range held.IDs {
					set[id] = true
				}
			}
		}
	}
	return set
}

// choice is a request for devices of one resource for one container.
type choice struct {
	resource   string
	needed     int
	registered bool            // the resource is offered, or was until a moment ago
	healthy    map[string]bool // what its plugin offers
	used       map[string]bool // held by any container of the node
	reusable   map[string]bool // held by init containers of the pod that have run their course by then
}

// check says why the request cannot be met; the words are the kubelet's.
func (c choice) check() error {
	switch {
	case !c.registered:
		return fmt.Errorf("cannot allocate unregistered device %s", c.resource)
	case len(c.healthy) == 0:
		return fmt.Errorf("no healthy devices present; cannot allocate unhealthy devices %s", c.resource)
	}
	missing := c.needed - len(c.fromReusable())
	if available := len(c.available()); missing > available {
		return fmt.Errorf("requested number of devices unavailable for %s. Requested: %d, Available: %d", c.resource, missing, available)
	}
	return nil
}

// fromReusable are the devices that the pod has already and the container can take over.
func (c choice) fromReusable() []string {
	list := slices.Sorted(maps.Keys(c.reusable))
	list = slices.DeleteFunc(list, func(id string) bool { return !c.healthy[id] })
	return list[:min(len(list), c.needed)]
}

// available are the devices that nobody holds.
func (c choice) available() []string {
	var list []string
	for _, id := range slices.Sorted(maps.Keys(c.healthy)) {
		if !c.used[id] {
			list = append(list, id)
		}
	}
	return list
}

// choose picks the devices: those the pod has already, then those the plugin prefers, then any.
// check must hold.
func (c choice) choose(preferred []string) []string {
	chosen := c.fromReusable()
	available := c.available()
	take := func(id string) {
		if len(chosen) < c.needed && !slices.Contains(chosen, id) {
			chosen = append(chosen, id)
		}
	}
	for _, id := range preferred {
		if slices.Contains(available, id) {
			take(id)
		}
	}
	for _, id := range available {
		take(id)
	}
	slices.Sort(chosen)
	return chosen
}
