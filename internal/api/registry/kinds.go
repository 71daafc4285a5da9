package registry

import (
	"slices"
	"time"
)

// eventTTL is how long events are kept (kube-apiserver --event-ttl).
const eventTTL = time.Hour

// builtins is every kind that is served, a function a group of groups. To add one: its Go type,
// its plural name, upstream's strategy, and what it has beside them.
func (r *Registry) builtins() []*definition {
	return slices.Concat(
		r.coreKinds(),
		workloadKinds(),
		networkKinds(),
		r.accessKinds(),
		r.admissionKinds(),
		r.storageKinds(),
		systemKinds(),
		extensionKinds(),
		r.metricsKinds(),
	)
}
