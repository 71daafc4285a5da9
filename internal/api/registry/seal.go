package registry

import (
	"k8s.io/apimachinery/pkg/runtime/schema"

	"gantry.dev/gantry/internal/store"
)

// Sealers says how the objects of a resource are encrypted at rest; nil if they never are.
type Sealers func(schema.GroupResource) store.Sealer

// seal gives kinds their encryption. Every kind that the store keeps needs it before the store does.
func (r *Registry) seal(defs ...*definition) {
	if r.opts.Sealers == nil {
		return
	}
	for _, d := range defs {
		if !d.info.Primary || d.computed != nil {
			continue // kept with its other version, or not at all
		}
		d.stored.Sealer = r.opts.Sealers(d.info.Resource.GroupResource())
	}
}

// sealedRanges is rangeKind with its encryption; upstream counts it as a resource.
func (r *Registry) sealedRanges() *store.Kind {
	kind := rangeKind()
	if r.opts.Sealers != nil {
		kind.Sealer = r.opts.Sealers(schema.GroupResource{Resource: "servicenodeportallocations"})
	}
	return kind
}

// StoredIn is the name of the resource's table in the store, "" if nothing is stored.
func (r *Resource) StoredIn() string {
	if r.def.computed != nil {
		return ""
	}
	return r.def.stored.Name
}
