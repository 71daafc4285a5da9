package registry

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"gantry.dev/gantry/internal/store"
)

// Versions moves objects between the version that a resource serves, the form that its strategy
// works on, and the version that is stored. Strategies of built-in kinds work on internal types,
// those of custom resources on the served version.
type Versions interface {
	// ToInternal gives an object of the served version to strategies. The two may share memory.
	ToInternal(obj store.Object) (runtime.Object, error)
	// ToStored is what is stored of an object that strategies are done with. The two may share memory.
	ToStored(internal runtime.Object) (store.Object, error)
	// Old is a copy, for strategies, of an object that is given as it is stored and as it is served.
	Old(stored, served store.Object) (runtime.Object, error)
	// ToServed gives stored objects as they are served, in order: new ones, or those that are the same.
	ToServed(objs []store.Object) ([]store.Object, error)
}

// typedVersions are the versions of a built-in kind: the scheme converts them.
type typedVersions struct{ served, stored schema.GroupVersionKind }

// ToInternal implements Versions.
func (v typedVersions) ToInternal(obj store.Object) (runtime.Object, error) {
	return unsafeConvert(obj, internalVersion(v.served))
}

// Old implements Versions.
func (v typedVersions) Old(stored, _ store.Object) (runtime.Object, error) {
	return unsafeConvert(stored.DeepCopyObject(), internalVersion(v.stored))
}

// ToStored implements Versions. It sets defaults once more, since strategies clear fields that have
// some, like the phase of a claim; upstream does it whenever it reads what is stored.
func (v typedVersions) ToStored(internal runtime.Object) (store.Object, error) {
	obj, err := versioned(internal, v.stored)
	if err == nil {
		legacyscheme.Scheme.Default(obj)
		dropEmpty(obj)
	}
	return obj, err
}

// ToServed implements Versions.
func (v typedVersions) ToServed(objs []store.Object) ([]store.Object, error) {
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

// isStored reports whether entries are served as they are: those of a built-in kind in its stored
// version. A custom resource may have been stored under another schema.
func (r *Resource) isStored() bool {
	v, builtin := r.def.versions.(typedVersions)
	return builtin && v.served == v.stored
}

// normalize is obj as it comes out of the conversions of its kind, if these move fields.
func (r *Resource) normalize(obj store.Object) (store.Object, error) {
	if !r.def.normalizes {
		return obj, nil
	}
	internal, err := r.def.versions.ToInternal(obj)
	if err != nil {
		return nil, err
	}
	return versioned(internal, r.Kind)
}

// view is a stored entry in the served version. The entry of another version is made once and kept
// with the stored one.
func (r *Resource) view(e *store.Entry) (*store.Entry, error) {
	if e == nil || r.isStored() {
		return e, nil
	}
	if v := e.View(r); v != nil {
		return v, nil
	}
	objs, err := r.def.versions.ToServed([]store.Object{e.Object})
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
	objs, err := r.def.versions.ToServed(missing)
	if err != nil {
		return nil, err
	}
	for n, i := range at {
		out[i] = entries[i].AddView(r, objs[n], r.def.served)
	}
	return out, nil
}

// viewEvents turns events into what this resource serves, in place. Where late is set, objects that
// it does not match are as if they were not there.
func (r *Resource) viewEvents(events []store.Event, late func(store.Object) bool) error {
	entries := make([]*store.Entry, len(events), 2*len(events))
	for i := range events {
		entries[i] = events[i].Entry
	}
	if late != nil {
		for i := range events {
			if events[i].Prev != nil {
				entries = append(entries, events[i].Prev)
			}
		}
	}
	views, err := r.viewAll(entries)
	if err != nil {
		return err
	}
	prev := views[len(events):]
	for i := range events {
		e := &events[i]
		e.Entry = views[i]
		if late == nil {
			continue
		}
		if e.Prev != nil {
			e.Prev, prev = prev[0], prev[1:]
		}
		narrow(e, late)
	}
	return nil
}

// narrow makes an event what a watch sees that knows only matching objects.
func narrow(e *store.Event, matches func(store.Object) bool) {
	was := e.Prev != nil && matches(e.Prev.Object)
	is := e.Type != store.Deleted && matches(e.Entry.Object)
	switch {
	case !was && !is:
		e.Type = store.Skipped
	case was && !is && e.Type != store.Deleted:
		e.Type, e.Entry = store.Deleted, e.Prev.At(e.Rev)
	case !was && is:
		e.Type = store.Added
	}
}

// withLate is the filter of a list: all that the selection asks for.
func (r *Resource) withLate(s selected) func(*store.Entry) bool {
	if s.late == nil {
		return s.filter
	}
	return func(e *store.Entry) bool {
		if !s.filter(e) {
			return false
		}
		v, err := r.view(e)
		return err != nil || s.late(v.Object) // what cannot be converted fails the list when it is shown
	}
}
