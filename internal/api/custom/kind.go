package custom

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/kube-openapi/pkg/spec3"

	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/store"
)

// kind is what all versions of a definition share.
type kind struct {
	// crd gives the definition; it is kept once, in the store.
	crd      func() (*apiextensionsv1.CustomResourceDefinition, error)
	group    string
	names    apiextensionsv1.CustomResourceDefinitionNames // as accepted
	scoped   bool                                          // to a namespace
	preserve bool                                          // unknown fields
	storage  string                                        // version

	schemas func() (map[string]*structuralschema.Structural, error) // by version, made on first use
	types   func() (managedfields.TypeConverter, error)
	convert func() (runtime.ObjectConvertor, error)
}

// converters makes converters between versions.
type converters func(crd *apiextensionsv1.CustomResourceDefinition) (runtime.ObjectConvertor, error)

// newKind makes what the registry serves of a definition whose names are accepted; nothing dear yet.
func newKind(crd *apiextensionsv1.CustomResourceDefinition, read func() (*apiextensionsv1.CustomResourceDefinition, error), convert converters) (*registry.CustomKind, error) {
	storage, err := apihelpers.GetCRDStorageVersion(crd)
	if err != nil {
		return nil, err
	}
	names := crd.Status.AcceptedNames
	if names.Plural == "" || names.Singular == "" || names.Kind == "" || names.ListKind == "" {
		return nil, fmt.Errorf("%s has no accepted names", crd.Name)
	}
	k := &kind{
		crd: read, group: crd.Spec.Group, names: names, scoped: crd.Spec.Scope == apiextensionsv1.NamespaceScoped,
		preserve: crd.Spec.PreserveUnknownFields, storage: storage,
	}
	k.schemas = sync.OnceValues(k.buildSchemas)
	k.types = sync.OnceValues(k.buildTypes)
	k.convert = sync.OnceValues(func() (runtime.ObjectConvertor, error) {
		crd, err := read()
		if err != nil {
			return nil, err
		}
		return convert(crd)
	})
	out := &registry.CustomKind{
		Table:       registry.NewCustomTable(k.group, names.Plural, k.scoped, codec{}),
		Terminating: apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Terminating),
	}
	primary := primaryVersion(crd, storage)
	for i := range crd.Spec.Versions {
		v := &crd.Spec.Versions[i]
		if v.Served || v.Name == primary {
			served := k.version(crd, v, v.Name == primary, out.Terminating)
			served.Hidden = !v.Served
			out.Versions = append(out.Versions, served)
		}
	}
	return out, nil
}

// primaryVersion is the version for who looks at each object once: the stored one if it is served or
// none is.
func primaryVersion(crd *apiextensionsv1.CustomResourceDefinition, storage string) string {
	primary := storage
	for _, v := range crd.Spec.Versions {
		if v.Served && v.Name == storage {
			return storage
		}
		if v.Served && primary == storage {
			primary = v.Name
		}
	}
	return primary
}

func (k *kind) version(crd *apiextensionsv1.CustomResourceDefinition, v *apiextensionsv1.CustomResourceDefinitionVersion, primary, terminating bool) registry.CustomVersion {
	gv := schema.GroupVersion{Group: k.group, Version: v.Name}
	out := &servedVersion{kind: k, gvk: gv.WithKind(k.names.Kind)}
	out.table = sync.OnceValue(out.newTable)
	out.strategies = sync.OnceValues(out.newStrategies)
	verbs := []string{"delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"}
	if terminating {
		verbs = []string{"delete", "deletecollection", "get", "list", "watch"}
	}
	served := registry.CustomVersion{
		Info: registry.Info{
			Resource: gv.WithResource(k.names.Plural), Kind: out.gvk, Primary: primary,
			Stored:   schema.GroupVersionKind{Group: k.group, Version: k.storage, Kind: k.names.Kind},
			ListKind: k.names.ListKind, Namespaced: k.scoped, Singular: k.names.Singular,
			ShortNames: k.names.ShortNames, Categories: k.names.Categories, Verbs: verbs,
			Revision: string(crd.UID) + "/" + strconv.FormatInt(crd.Generation, 10), Warning: deprecation(crd, v),
		},
		Strategy: &strategy{out},
		New:      func() store.Object { return newObject(out.gvk) },
		Codec:    codec{},
		Custom:   out,
	}
	if len(v.SelectableFields) > 0 {
		served.Fields = out.fieldSet
		out.selectable = make([]string, len(v.SelectableFields))
		for i, field := range v.SelectableFields {
			out.selectable[i] = strings.TrimPrefix(field.JSONPath, ".")
		}
	}
	if sub := v.Subresources; sub != nil {
		out.hasStatus = sub.Status != nil
		if sub.Status != nil {
			served.Status = &statusStrategy{strategy{out}}
		}
		if sub.Scale != nil {
			served.Scale = newScale(crd, sub.Scale)
		}
	}
	return served
}

// deprecation is the warning that every request to a deprecated version is answered with.
func deprecation(crd *apiextensionsv1.CustomResourceDefinition, v *apiextensionsv1.CustomResourceDefinitionVersion) string {
	switch {
	case !v.Deprecated:
		return ""
	case v.DeprecationWarning != nil:
		return *v.DeprecationWarning
	}
	warning := fmt.Sprintf("%s/%s %s is deprecated", crd.Spec.Group, v.Name, crd.Spec.Names.Kind)
	var newer []string
	for _, other := range crd.Spec.Versions {
		if other.Served && !other.Deprecated && version.CompareKubeAwareVersionStrings(v.Name, other.Name) < 0 {
			newer = append(newer, other.Name)
		}
	}
	if len(newer) == 0 {
		return warning
	}
	best := slices.MaxFunc(newer, version.CompareKubeAwareVersionStrings)
	return warning + fmt.Sprintf("; use %s/%s %s", crd.Spec.Group, best, crd.Spec.Names.Kind)
}

// internalSchema is the schema of a version in the form that upstream's packages take; nil if it
// has none.
func internalSchema(crd *apiextensionsv1.CustomResourceDefinition, name string) (*apiextensions.JSONSchemaProps, error) {
	validation, err := apihelpers.GetSchemaForVersion(crd, name)
	if err != nil || validation == nil {
		return nil, err
	}
	var internal apiextensions.CustomResourceValidation
	if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(validation, &internal, nil); err != nil {
		return nil, fmt.Errorf("converting the schema of %s: %w", name, err)
	}
	return internal.OpenAPIV3Schema, nil
}

func (k *kind) buildSchemas() (map[string]*structuralschema.Structural, error) {
	crd, err := k.crd()
	if err != nil {
		return nil, err
	}
	out := make(map[string]*structuralschema.Structural, len(crd.Spec.Versions))
	for _, v := range crd.Spec.Versions {
		internal, err := internalSchema(crd, v.Name)
		if err != nil {
			return nil, err
		}
		if internal == nil {
			continue
		}
		s, err := structuralschema.NewStructural(internal)
		if err != nil {
			if k.preserve {
				continue
			}
			return nil, fmt.Errorf("reading the schema of %s: %w", v.Name, err)
		}
		if !k.preserve {
			s = s.DeepCopy() // its defaults are the definition's, and are pruned here
			if err := defaulting.PruneDefaults(s); err != nil {
				return nil, fmt.Errorf("pruning the defaults of %s: %w", v.Name, err)
			}
		}
		out[v.Name] = s
	}
	return out, nil
}

// buildTypes makes the types that managed fields are computed with.
func (k *kind) buildTypes() (managedfields.TypeConverter, error) {
	crd, err := k.crd()
	if err != nil {
		return nil, err
	}
	specs := make([]*spec3.OpenAPI, 0, len(crd.Spec.Versions))
	for _, v := range crd.Spec.Versions {
		document, err := builder.BuildOpenAPIV3(crd, v.Name, builder.Options{})
		if err != nil {
			return nil, fmt.Errorf("building the types of %s: %w", v.Name, err)
		}
		specs = append(specs, document)
	}
	merged, err := builder.MergeSpecsV3(specs...)
	if err != nil || merged.Components == nil || len(merged.Components.Schemas) == 0 {
		return managedfields.NewDeducedTypeConverter(), nil //nolint:nilerr // as upstream: what the schema does not say is deduced
	}
	return managedfields.NewTypeConverter(merged.Components.Schemas, k.preserve)
}
