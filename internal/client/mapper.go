package client

import (
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"gantry.dev/gantry/internal/api/registry"
)

// mapper is a RESTMapper of what is served at the moment. Safe for concurrent use.
type mapper struct {
	registry *registry.Registry

	mu      sync.Mutex // guards the fields below
	changed <-chan struct{}
	current meta.RESTMapper
}

var _ meta.RESTMapper = (*mapper)(nil)

func (m *mapper) now() meta.RESTMapper {
	m.mu.Lock()
	defer m.mu.Unlock()
	if changed := m.registry.Changed(); m.changed != changed {
		m.changed, m.current = changed, newMapper(m.registry)
	}
	return m.current
}

func newMapper(reg *registry.Registry) meta.RESTMapper {
	var versions []schema.GroupVersion
	for _, r := range reg.Resources() {
		versions = append(versions, r.Kind.GroupVersion())
	}
	mapper := meta.NewDefaultRESTMapper(versions)
	for _, r := range reg.Resources() {
		scope := meta.RESTScope(meta.RESTScopeNamespace)
		if !r.Namespaced {
			scope = meta.RESTScopeRoot
		}
		mapper.AddSpecific(r.Kind, r.Resource, r.Resource.GroupVersion().WithResource(r.Singular), scope)
	}
	return mapper
}

// KindFor implements meta.RESTMapper.
func (m *mapper) KindFor(resource schema.GroupVersionResource) (schema.GroupVersionKind, error) {
	return m.now().KindFor(resource)
}

// KindsFor implements meta.RESTMapper.
func (m *mapper) KindsFor(resource schema.GroupVersionResource) ([]schema.GroupVersionKind, error) {
	return m.now().KindsFor(resource)
}

// ResourceFor implements meta.RESTMapper.
func (m *mapper) ResourceFor(input schema.GroupVersionResource) (schema.GroupVersionResource, error) {
	return m.now().ResourceFor(input)
}

// ResourcesFor implements meta.RESTMapper.
func (m *mapper) ResourcesFor(input schema.GroupVersionResource) ([]schema.GroupVersionResource, error) {
	return m.now().ResourcesFor(input)
}

// RESTMapping implements meta.RESTMapper.
func (m *mapper) RESTMapping(kind schema.GroupKind, versions ...string) (*meta.RESTMapping, error) {
	return m.now().RESTMapping(kind, versions...)
}

// RESTMappings implements meta.RESTMapper.
func (m *mapper) RESTMappings(kind schema.GroupKind, versions ...string) ([]*meta.RESTMapping, error) {
	return m.now().RESTMappings(kind, versions...)
}

// ResourceSingularizer implements meta.RESTMapper.
func (m *mapper) ResourceSingularizer(resource string) (string, error) {
	return m.now().ResourceSingularizer(resource)
}
