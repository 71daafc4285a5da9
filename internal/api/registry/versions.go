package registry

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"gantry.dev/gantry/internal/store"
)

// versions moves objects between the version that a resource serves, the form that its strategy
// works on, and the version that is stored. Strategies of built-in kinds work on internal types,
// those of custom resources on the served version.
type versions interface {
	// toInternal gives an object of the served version to strategies. The two may share memory.
	toInternal(obj store.Object) (runtime.Object, error)
	// toStored is what is stored of an object that strategies are done with. The two may share memory.
	toStored(internal runtime.Object) (store.Object, error)
	// fromStored gives an object of the stored version to strategies. The two may share memory.
	fromStored(obj store.Object) (runtime.Object, error)
	// toServed gives objects of the stored version in the served one, which is another; the results
	// are new, in order.
	toServed(objs []store.Object) ([]store.Object, error)
}

// typedVersions are the versions of a built-in kind: the scheme converts them.
type typedVersions struct{ served, stored schema.GroupVersionKind }

func (v typedVersions) toInternal(obj store.Object) (runtime.Object, error) {
	return unsafeConvert(obj, internalVersion(v.served))
}

func (v typedVersions) fromStored(obj store.Object) (runtime.Object, error) {
	return unsafeConvert(obj, internalVersion(v.stored))
}

// toStored sets defaults once more, since strategies clear fields that have some, like the phase of
// a claim; upstream does it whenever it reads what is stored.
func (v typedVersions) toStored(internal runtime.Object) (store.Object, error) {
	obj, err := versioned(internal, v.stored)
	if err == nil {
		legacyscheme.Scheme.Default(obj)
		dropEmpty(obj)
	}
	return obj, err
}

func (v typedVersions) toServed(objs []store.Object) ([]store.Object, error) {
	out := make([]store.Object, len(objs))
	for i, obj := range objs {
		internal, err := unsafeConvert(obj.DeepCopyObject(), internalVersion(v.stored))
		if err != nil {
			return nil, err
		}
		if out[i], err = versioned(internal, v.served); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func unsafeConvert(obj runtime.Object, to schema.GroupVersion) (runtime.Object, error) {
	out, err := legacyscheme.Scheme.UnsafeConvertToVersion(obj, to)
	if err != nil {
		return nil, fmt.Errorf("converting %T: %w", obj, err)
	}
	return out, nil
}

func versioned(internal runtime.Object, kind schema.GroupVersionKind) (store.Object, error) {
	out, err := unsafeConvert(internal, kind.GroupVersion())
	if err != nil {
		return nil, err
	}
	obj, err := asObject(out)
	if err != nil {
		return nil, err
	}
	obj.GetObjectKind().SetGroupVersionKind(kind)
	return obj, nil
}

// betweenVersions converts between external versions by way of the internal one, which the scheme
// alone does not. Server-side apply needs it where owners wrote through several versions.
type betweenVersions struct{ runtime.ObjectConvertor }

// ConvertToVersion implements runtime.ObjectConvertor.
func (b betweenVersions) ConvertToVersion(in runtime.Object, target runtime.GroupVersioner) (runtime.Object, error) {
	kind := in.GetObjectKind().GroupVersionKind()
	to, single := target.(schema.GroupVersion)
	if !single || kind.Empty() || to == kind.GroupVersion() || to.Version == runtime.APIVersionInternal || kind.Version == runtime.APIVersionInternal {
		return b.ObjectConvertor.ConvertToVersion(in, target)
	}
	internal, err := b.ObjectConvertor.ConvertToVersion(in, internalVersion(kind))
	if err != nil {
		return nil, err
	}
	return b.ObjectConvertor.ConvertToVersion(internal, target)
}

// isStored reports whether the served version is the stored one, so that entries are served as
// they are.
func (r *Resource) isStored() bool { return r.Kind == r.Stored }

// view is a stored entry in the served version. The entry of another version is made once and kept
// with the stored one.
func (r *Resource) view(e *store.Entry) (*store.Entry, error) {
	if e == nil || r.isStored() {
		return e, nil
	}
	if v := e.View(r); v != nil {
		return v, nil
	}
	objs, err := r.def.versions.toServed([]store.Object{e.Object})
	if err != nil {
		return nil, err
	}
	return e.AddView(r, objs[0], r.def.served), nil
}

// viewAll is view of many entries; what is missing is converted at once.
func (r *Resource) viewAll(entries []*store.Entry) ([]*store.Entry, error) {
	if r.isStored() {
		return entries, nil
	}
	out := make([]*store.Entry, len(entries))
	var missing []store.Object
	var at []int
	for i, e := range entries {
		if out[i] = e.View(r); out[i] == nil {
			missing, at = append(missing, e.Object), append(at, i)
		}
	}
	if len(missing) == 0 {
		return out, nil
	}
	objs, err := r.def.versions.toServed(missing)
	if err != nil {
		return nil, err
	}
	for n, i := range at {
		out[i] = entries[i].AddView(r, objs[n], r.def.served)
	}
	return out, nil
}

// viewEvents turns events into the served version in place.
func (r *Resource) viewEvents(events []store.Event) error {
	entries := make([]*store.Entry, len(events))
	for i := range events {
		entries[i] = events[i].Entry
	}
	views, err := r.viewAll(entries)
	if err != nil {
		return err
	}
	for i := range events {
		events[i].Entry = views[i]
	}
	return nil
}
