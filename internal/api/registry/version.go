package registry

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	upstream "k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// Version returns a function that tells how far the resource has changed: it grows with every
// create, update and delete, and is 0 while there never was an object. A call costs one
// atomic load, so that those who keep something computed from all objects of a kind can ask
// before each use whether it is still right.
func (r *Resource) Version() func() int64 { return r.store.Version(r.def.stored.Name) }

// TypeConverter knows the structure of the objects of a kind, for merging applied
// configurations.
func (r *Registry) TypeConverter(kind schema.GroupVersionKind) (upstream.TypeConverter, error) {
	if r.ResourceOf(kind) == nil {
		return nil, fmt.Errorf("%s is not served", kind)
	}
	converter, _, err := r.schemas.get(r.defs)
	return converter, err
}

// Default sets the defaults of an object of any served version.
func (r *Registry) Default(obj runtime.Object) { legacyscheme.Scheme.Default(obj) }
