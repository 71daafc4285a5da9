package custom

import (
	"fmt"

	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// coercion says how strange parts of an object are dealt with.
type coercion struct {
	stored bool // it comes from etcd: invalid metadata is dropped, a missing generation repaired
	strict bool // report unknown fields
}

// coerce gives u the form that decoding into a Go type would give it: unknown fields go, nulls that
// are not allowed and have no default go, the metadata is well formed. It returns the paths of
// unknown fields if c is strict.
func (k *kind) coerce(u *unstructured.Unstructured, c coercion) (unknown []string, err error) {
	kindName, hasKind, err := unstructured.NestedString(u.Object, "kind")
	if err != nil {
		return nil, err
	}
	apiVersion, hasVersion, err := unstructured.NestedString(u.Object, "apiVersion")
	if err != nil {
		return nil, err
	}
	meta, hasMeta, unknown, err := objectmeta.GetObjectMetaWithOptions(u.Object, objectmeta.ObjectMetaOptions{
		DropMalformedFields: c.stored, ReturnUnknownFieldPaths: c.strict,
	})
	if err != nil {
		return nil, err
	}
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		return nil, err
	}
	if gv.Group == k.group && kindName == k.names.Kind {
		fields, err := k.coerceFields(u, gv.Version, c)
		if err != nil {
			return nil, err
		}
		unknown = append(unknown, fields...)
		if c.stored && meta.Generation == 0 {
			meta.Generation = 1 // of a time when there was none
		}
	}
	// Pruning may have taken what every object has.
	if hasKind {
		u.SetKind(kindName)
	}
	if hasVersion {
		u.SetAPIVersion(apiVersion)
	}
	if hasMeta {
		if err := objectmeta.SetObjectMeta(u.Object, meta); err != nil {
			return nil, err
		}
	}
	return unknown, nil
}

func (k *kind) coerceFields(u *unstructured.Unstructured, version string, c coercion) (unknown []string, err error) {
	schemas, err := k.schemas()
	if err != nil {
		return nil, err
	}
	s := schemas[version]
	if !k.preserve {
		unknown = pruning.PruneWithOptions(u.Object, s, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: c.strict})
		defaulting.PruneNonNullableNullsWithoutDefaults(u.Object, s)
	}
	invalid, paths := objectmeta.CoerceWithOptions(nil, u.Object, s, false, objectmeta.CoerceOptions{
		DropInvalidFields: c.stored, ReturnUnknownFieldPaths: c.strict,
	})
	if invalid != nil {
		return nil, invalid
	}
	return append(unknown, paths...), nil
}

func unknownFields(paths []string) []error {
	problems := make([]error, len(paths))
	for i, path := range paths {
		problems[i] = fmt.Errorf(`unknown field "%s"`, path)
	}
	return problems
}

// defaulter fills defaults of every version of a kind. It implements runtime.ObjectDefaulter.
type defaulter struct{ kind *kind }

// Default implements runtime.ObjectDefaulter.
func (d defaulter) Default(in runtime.Object) {
	u, ok := in.(runtime.Unstructured)
	if !ok {
		return
	}
	gvk := in.GetObjectKind().GroupVersionKind()
	if gvk.Group != d.kind.group || gvk.Kind != d.kind.names.Kind {
		return
	}
	if schemas, err := d.kind.schemas(); err == nil { // what has no schema has no defaults
		defaulting.Default(u.UnstructuredContent(), schemas[gvk.Version])
	}
}
