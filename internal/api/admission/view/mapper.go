package view

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/spec3"
)

// Mapper finds resources and kinds among what is served now. It knows the questions that
// admission asks, all of which name the version or every version.
func (v *View) Mapper() meta.RESTMapper { return mapper{view: v} }

// mapper implements meta.RESTMapper; the embedded interface is nil.
type mapper struct {
	meta.RESTMapper
	view *View
}

// RESTMappings implements meta.RESTMapper.
func (m mapper) RESTMappings(kind schema.GroupKind, versions ...string) ([]*meta.RESTMapping, error) {
	var out []*meta.RESTMapping
	for _, version := range versions {
		if mapping, err := m.view.Mapping(kind.WithVersion(version)); err == nil {
			out = append(out, mapping)
		}
	}
	if len(out) == 0 {
		return nil, &meta.NoKindMatchError{GroupKind: kind, SearchedVersions: versions}
	}
	return out, nil
}

// RESTMapping implements meta.RESTMapper.
func (m mapper) RESTMapping(kind schema.GroupKind, versions ...string) (*meta.RESTMapping, error) {
	mappings, err := m.RESTMappings(kind, versions...)
	if err != nil {
		return nil, err
	}
	return mappings[0], nil
}

// KindsFor implements meta.RESTMapper.
func (m mapper) KindsFor(partial schema.GroupVersionResource) ([]schema.GroupVersionKind, error) {
	var out []schema.GroupVersionKind
	for _, r := range m.view.registry.Resources() {
		if r.Resource.Resource == partial.Resource && r.Resource.Group == partial.Group && (partial.Version == "" || r.Resource.Version == partial.Version) {
			out = append(out, r.Kind)
		}
	}
	if len(out) == 0 {
		return nil, &meta.NoResourceMatchError{PartialResource: partial}
	}
	return out, nil
}

// KindFor implements meta.RESTMapper.
func (m mapper) KindFor(partial schema.GroupVersionResource) (schema.GroupVersionKind, error) {
	kinds, err := m.KindsFor(partial)
	if err != nil {
		return schema.GroupVersionKind{}, err
	}
	return kinds[0], nil
}

// Namespace reads a namespace, shared and read-only.
func (v *View) Namespace(name string) (*corev1.Namespace, error) {
	return getter[*corev1.Namespace]{v, corev1.SchemeGroupVersion.WithResource("namespaces"), ""}.read(name)
}

// ServiceAccount reads a service account, shared and read-only.
func (v *View) ServiceAccount(namespace, name string) (*corev1.ServiceAccount, error) {
	return getter[*corev1.ServiceAccount]{v, corev1.SchemeGroupVersion.WithResource("serviceaccounts"), namespace}.read(name)
}

// Resource finds a version in which a resource is served; ok is false if there is none.
func (v *View) Resource(name schema.GroupResource) (resource schema.GroupVersionResource, ok bool) {
	for _, r := range v.registry.Resources() {
		if r.Resource.GroupResource() == name {
			if r.Primary {
				return r.Resource, true
			}
			resource, ok = r.Resource, true
		}
	}
	return resource, ok
}

// Document describes a custom resource as its OpenAPI document does; an error for built-in kinds.
func (v *View) Document(kind schema.GroupVersionKind) (*spec3.OpenAPI, error) {
	r := v.registry.ResourceOf(kind)
	if r == nil || r.Custom() == nil {
		return nil, &meta.NoKindMatchError{GroupKind: kind.GroupKind(), SearchedVersions: []string{kind.Version}}
	}
	return r.Custom().OpenAPIV3()
}
