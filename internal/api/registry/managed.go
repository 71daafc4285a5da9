package registry

import (
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	upstream "k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kube-openapi/pkg/builder3"
	"k8s.io/kube-openapi/pkg/common"
	openapiutil "k8s.io/kube-openapi/pkg/util"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	generated "k8s.io/kubernetes/pkg/generated/openapi"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"gantry.dev/gantry/internal/api/managedfields"
	"gantry.dev/gantry/internal/store"
)

// fieldManager keeps the managedFields of one kind, as seen through the object itself or
// one of its subresources. Writes take the quick way of view; what that refuses is for
// upstream's manager.
type fieldManager struct {
	view     func() (*managedfields.View, error) // nil for custom resources
	upstream func() (*upstream.FieldManager, error)
}

// typeSchemas are the structured-merge schemas of every built-in kind, and what is
// remembered about their fields. Building them takes tens of milliseconds, so it happens on
// first use.
type typeSchemas struct {
	once    sync.Once
	conv    upstream.TypeConverter
	tracker *managedfields.Tracker
	err     error
}

func (t *typeSchemas) get(defs []*definition) (upstream.TypeConverter, *managedfields.Tracker, error) {
	t.once.Do(func() {
		if t.conv, t.err = buildTypeConverter(defs); t.err == nil {
			t.tracker, t.err = managedfields.New(t.conv, managedfields.Options{})
		}
	})
	return t.conv, t.tracker, t.err
}

func buildTypeConverter(defs []*definition) (upstream.TypeConverter, error) {
	namer := openapi.NewDefinitionNamer(legacyscheme.Scheme)
	config := &common.OpenAPIV3Config{
		GetDefinitions:    generated.GetOpenAPIDefinitions,
		GetDefinitionName: namer.GetDefinitionName,
	}
	names := make([]string, 0, len(defs))
	for _, d := range defs {
		names = append(names, openapiutil.GetCanonicalTypeName(d.newObj()))
		for _, sub := range d.subs {
			if sub.fromParent != nil {
				names = append(names, openapiutil.GetCanonicalTypeName(sub.newObj()))
			}
		}
	}
	schemas, err := builder3.BuildOpenAPIDefinitionsForResources(config, names...)
	if err != nil {
		return nil, fmt.Errorf("building type schemas: %w", err)
	}
	return upstream.NewTypeConverter(schemas, false)
}

// newFieldManager makes the manager of one view of a kind.
func (r *Registry) newFieldManager(kind schema.GroupVersionKind, sub string, strategy any) *fieldManager {
	return &fieldManager{
		view: sync.OnceValues(func() (*managedfields.View, error) {
			_, tracker, err := r.schemas.get(r.defs)
			if err != nil {
				return nil, err
			}
			empty, err := legacyscheme.Scheme.New(kind)
			if err != nil {
				return nil, err
			}
			return tracker.View(kind, sub, empty, resetFields(strategy))
		}),
		upstream: sync.OnceValues(func() (*upstream.FieldManager, error) {
			conv, _, err := r.schemas.get(r.defs)
			if err != nil {
				return nil, err
			}
			return upstream.NewDefaultFieldManager(conv, betweenVersions{legacyscheme.Scheme}, legacyscheme.Scheme, legacyscheme.Scheme,
				kind, kind.GroupVersion(), sub, resetFields(strategy))
		}),
	}
}

// resetFields are the fields that a strategy puts back, which nobody can own through it.
func resetFields(strategy any) map[fieldpath.APIVersion]fieldpath.Filter {
	switch s := strategy.(type) {
	case rest.ResetFieldsFilterStrategy:
		return s.GetResetFieldsFilter()
	case rest.ResetFieldsStrategy:
		return fieldpath.NewExcludeFilterSetMap(s.GetResetFields())
	}
	return nil
}

// update records that manager made live into obj, and returns obj.
func (m *fieldManager) update(live, obj store.Object, manager string) (store.Object, error) {
	if m.view != nil {
		view, err := m.view()
		if err != nil {
			return nil, err
		}
		if view.Update(live, obj, manager) {
			return obj, nil
		}
	}
	up, err := m.upstream()
	if err != nil {
		return nil, err
	}
	return asObject(up.UpdateNoErrors(live, obj, manager))
}

// apply merges an applied configuration into live and returns the result. A conflict with
// another manager is a StatusError.
func (m *fieldManager) apply(live store.Object, config *unstructured.Unstructured, manager string, force bool) (store.Object, error) {
	if m.view != nil {
		view, err := m.view()
		if err != nil {
			return nil, err
		}
		if merged, ok := view.Apply(live, config.Object, manager); ok {
			return asObject(merged)
		}
	}
	up, err := m.upstream()
	if err != nil {
		return nil, err
	}
	merged, err := up.Apply(live, config, manager, force)
	if err != nil {
		return nil, err
	}
	return asObject(merged)
}

func asObject(obj runtime.Object) (store.Object, error) {
	typed, ok := obj.(store.Object)
	if !ok {
		return nil, fmt.Errorf("%T has no metadata", obj)
	}
	return typed, nil
}

// subManager keeps the managed fields of a mapped subresource, such as scale.
func (r *Resource) subManager(s *subresource) *fieldManager {
	return r.managers[s.info.Name]
}
