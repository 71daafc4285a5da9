package admission

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"gantry.dev/gantry/internal/api/registry"
)

// objects gives hooks what they need to show an object in another version and to take it
// back. It implements admission.ObjectInterfaces.
type objects struct {
	runtime.ObjectConvertor
	registry *registry.Registry
}

func newObjects(reg *registry.Registry) admission.ObjectInterfaces {
	return &objects{legacyscheme.Scheme, reg}
}

// GetObjectCreater implements admission.ObjectInterfaces.
func (o *objects) GetObjectCreater() runtime.ObjectCreater { return o }

// GetObjectTyper implements admission.ObjectInterfaces.
func (o *objects) GetObjectTyper() runtime.ObjectTyper { return legacyscheme.Scheme }

// GetObjectDefaulter implements admission.ObjectInterfaces.
func (o *objects) GetObjectDefaulter() runtime.ObjectDefaulter { return o }

// GetObjectConvertor implements admission.ObjectInterfaces.
func (o *objects) GetObjectConvertor() runtime.ObjectConvertor { return o }

// GetEquivalentResourceMapper implements admission.ObjectInterfaces.
func (o *objects) GetEquivalentResourceMapper() runtime.EquivalentResourceMapper { return o }

// New implements runtime.ObjectCreater.
func (o *objects) New(kind schema.GroupVersionKind) (runtime.Object, error) {
	if legacyscheme.Scheme.Recognizes(kind) {
		return legacyscheme.Scheme.New(kind)
	}
	obj := &unstructured.Unstructured{}
	obj.SetGroupVersionKind(kind)
	return obj, nil
}

// Convert implements runtime.ObjectConvertor. out gets the content of in, in its own version.
func (o *objects) Convert(in, out, context any) error {
	from, ok := in.(*unstructured.Unstructured)
	if !ok {
		return o.ObjectConvertor.Convert(in, out, context)
	}
	to, ok := out.(*unstructured.Unstructured)
	if !ok {
		return o.ObjectConvertor.Convert(in, out, context)
	}
	kind := to.GroupVersionKind()
	if kind == from.GroupVersionKind() {
		to.SetUnstructuredContent(from.UnstructuredContent())
		return nil
	}
	converted, err := o.registry.Convert(from, kind)
	if err != nil {
		return err
	}
	same, ok := converted.(*unstructured.Unstructured)
	if !ok {
		return fmt.Errorf("converting to %s: a %T came back", kind, converted)
	}
	to.SetUnstructuredContent(same.UnstructuredContent())
	return nil
}

// Default implements runtime.ObjectDefaulter.
func (o *objects) Default(in runtime.Object) { o.registry.Default(in) }

// EquivalentResourcesFor implements runtime.EquivalentResourceMapper: all that shows the same
// objects, other versions of a kind and events in both their groups.
func (o *objects) EquivalentResourcesFor(resource schema.GroupVersionResource, subresource string) []schema.GroupVersionResource {
	var out []schema.GroupVersionResource
	r := o.registry.Resource(resource)
	if r == nil {
		return nil
	}
	for _, other := range o.registry.Resources() {
		if other.Stored == r.Stored && (subresource == "" || other.Sub(subresource) != nil) {
			out = append(out, other.Resource)
		}
	}
	return slices.Clip(out)
}

// KindFor implements runtime.EquivalentResourceMapper.
func (o *objects) KindFor(resource schema.GroupVersionResource, subresource string) schema.GroupVersionKind {
	r := o.registry.Resource(resource)
	switch {
	case r == nil:
		return schema.GroupVersionKind{}
	case subresource == "":
		return r.Kind
	}
	if sub := r.Sub(subresource); sub != nil {
		return sub.Kind
	}
	return schema.GroupVersionKind{}
}
