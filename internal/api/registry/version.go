package registry

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	upstream "k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"gantry.dev/gantry/internal/store"
)

// Version returns a function that tells how far the resource has changed: it grows with every
// create, update and delete, and is 0 while there never was an object. A call costs one
// atomic load, so that those who keep something computed from all objects of a kind can ask
// before each use whether it is still right.
func (r *Resource) Version() func() int64 { return r.store.Version(r.def.stored.Name) }

// TypeConverter knows the structure of the objects of a kind, for merging applied
// configurations.
func (r *Registry) TypeConverter(kind schema.GroupVersionKind) (upstream.TypeConverter, error) {
	res := r.ResourceOf(kind)
	if res == nil {
		return nil, fmt.Errorf("%s is not served", kind)
	}
	if custom := res.Custom(); custom != nil {
		return custom.TypeConverter()
	}
	converter, _, err := r.schemas.get(r.defs)
	return converter, err
}

// Default sets the defaults of an object of any served version. A custom resource also loses what
// its schema does not know, as when a client sends it.
func (r *Registry) Default(obj runtime.Object) {
	res := r.ResourceOf(obj.GetObjectKind().GroupVersionKind())
	if res == nil || res.Custom() == nil {
		legacyscheme.Scheme.Default(obj)
		return
	}
	stored, ok := obj.(store.Object)
	if !ok {
		return
	}
	if _, err := res.Custom().Coerce(stored, false); err == nil { // what cannot be coerced, validation refuses
		res.Custom().SetDefaults(stored)
	}
}

// Convert gives a copy of a custom resource in another served version of its kind.
func (r *Registry) Convert(obj store.Object, kind schema.GroupVersionKind) (store.Object, error) {
	from, to := r.ResourceOf(obj.GetObjectKind().GroupVersionKind()), r.ResourceOf(kind)
	if from == nil || to == nil || from.Stored != to.Stored {
		return nil, fmt.Errorf("%s cannot be shown as %s", obj.GetObjectKind().GroupVersionKind(), kind)
	}
	stored, err := from.def.versions.ToStored(obj.DeepCopyObject())
	if err != nil {
		return nil, err
	}
	served, err := to.def.versions.ToServed([]store.Object{stored})
	if err != nil {
		return nil, err
	}
	return served[0], nil
}
