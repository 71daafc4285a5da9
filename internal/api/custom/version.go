package custom

import (
	"context"
	"fmt"
	"reflect"
	"slices"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	"k8s.io/apiextensions-apiserver/pkg/crdserverscheme"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresource/tableconvertor"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	jsonserializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/store"
)

// servedVersion is one version of a kind as it is served.
type servedVersion struct {
	kind       *kind
	gvk        schema.GroupVersionKind
	hasStatus  bool
	selectable []string // field paths
	table      func() rest.TableConvertor
	strategies func() (*strategies, error)
}

var _ registry.Custom = (*servedVersion)(nil)

// ToInternal implements registry.Versions: strategies work on the served version.
func (v *servedVersion) ToInternal(obj store.Object) (runtime.Object, error) { return obj, nil }

// ToStored implements registry.Versions.
func (v *servedVersion) ToStored(internal runtime.Object) (store.Object, error) {
	u, err := asUnstructured(internal)
	if err != nil {
		return nil, err
	}
	stored := schema.GroupVersion{Group: v.gvk.Group, Version: v.kind.storage}
	if u.GroupVersionKind().GroupVersion() != stored {
		convert, err := v.kind.convert()
		if err != nil {
			return nil, err
		}
		out, err := convert.ConvertToVersion(u, stored)
		if err != nil {
			return nil, err
		}
		if u, err = asUnstructured(out); err != nil {
			return nil, err
		}
	}
	_, err = v.kind.coerce(u, coercion{})
	return u, err
}

// Old implements registry.Versions.
func (v *servedVersion) Old(_, served store.Object) (runtime.Object, error) {
	return served.DeepCopyObject(), nil
}

// ToServed implements registry.Versions. What a schema that changed since takes away or adds is
// seen in objects that were stored before, without their being written.
func (v *servedVersion) ToServed(objs []store.Object) ([]store.Object, error) {
	out := make([]store.Object, len(objs))
	var others []int // of another version
	for i, obj := range objs {
		u, err := asUnstructured(obj.DeepCopyObject())
		if err != nil {
			return nil, err
		}
		if _, err := v.kind.coerce(u, coercion{stored: true}); err != nil {
			return nil, fmt.Errorf("reading %s %s/%s: %w", v.gvk.Kind, obj.GetNamespace(), obj.GetName(), err)
		}
		defaulter{v.kind}.Default(u)
		switch {
		case u.GroupVersionKind() != v.gvk:
			others = append(others, i)
			out[i] = u
		case reflect.DeepEqual(u.Object, obj.(*unstructured.Unstructured).Object):
			out[i] = obj
		default:
			out[i] = u
		}
	}
	return out, v.convertAll(out, others)
}

// convertAll converts the objects at the given places, by one call of a webhook.
func (v *servedVersion) convertAll(objs []store.Object, at []int) error {
	if len(at) == 0 {
		return nil
	}
	convert, err := v.kind.convert()
	if err != nil {
		return err
	}
	list := &unstructured.UnstructuredList{Object: map[string]any{}}
	list.SetGroupVersionKind(v.gvk.GroupVersion().WithKind(v.kind.names.ListKind))
	for _, i := range at {
		list.Items = append(list.Items, *objs[i].(*unstructured.Unstructured))
	}
	converted, err := convert.ConvertToVersion(list, v.gvk.GroupVersion())
	if err != nil {
		return err
	}
	result, ok := converted.(*unstructured.UnstructuredList)
	if !ok || len(result.Items) != len(at) {
		return fmt.Errorf("converting %d objects of %s gave a %T", len(at), v.gvk.Kind, converted)
	}
	for n, i := range at {
		u := &result.Items[n]
		if _, err := v.kind.coerce(u, coercion{}); err != nil {
			return err
		}
		objs[i] = u
	}
	return nil
}

// Decode implements registry.Reader.
func (v *servedVersion) Decode(data []byte, yaml, strict bool) (store.Object, []error, error) {
	serializer := jsonserializer.NewSerializerWithOptions(jsonserializer.DefaultMetaFactory, creator{}, crdserverscheme.NewUnstructuredObjectTyper(),
		jsonserializer.SerializerOptions{Yaml: yaml, Strict: strict})
	obj, _, err := serializer.Decode(data, &v.gvk, newObject(v.gvk))
	var problems []error
	if err != nil {
		strictError, ok := runtime.AsStrictDecodingError(err)
		if !ok || obj == nil {
			return nil, nil, err
		}
		problems = strictError.Errors()
	}
	u, err := asUnstructured(obj)
	if err != nil {
		return nil, nil, err
	}
	unknown, err := v.Coerce(u, strict)
	if err != nil {
		return nil, nil, err
	}
	v.SetDefaults(u)
	return u, append(problems, unknown...), nil
}

// Coerce implements registry.Reader.
func (v *servedVersion) Coerce(obj store.Object, strict bool) ([]error, error) {
	u, err := asUnstructured(obj)
	if err != nil {
		return nil, err
	}
	unknown, err := v.kind.coerce(u, coercion{strict: strict})
	return unknownFields(unknown), err
}

// SetDefaults implements registry.Reader.
func (v *servedVersion) SetDefaults(obj store.Object) { defaulter{v.kind}.Default(obj) }

// FieldLabel implements registry.Reader.
func (v *servedVersion) FieldLabel(label, value string) (string, string, error) {
	if label == "metadata.name" || label == "metadata.namespace" && v.kind.scoped || slices.Contains(v.selectable, label) {
		return label, value, nil
	}
	return "", "", fmt.Errorf("field label not supported: %s", label)
}

// fieldSet gives the selectable fields of an object.
func (v *servedVersion) fieldSet(obj store.Object) fields.Set {
	s, err := v.strategies()
	if err != nil {
		return nil
	}
	set, err := s.fields(obj)
	if err != nil {
		return nil
	}
	return set
}

// TypeConverter implements registry.Owners.
func (v *servedVersion) TypeConverter() (managedfields.TypeConverter, error) { return v.kind.types() }

// FieldManager implements registry.Owners.
func (v *servedVersion) FieldManager(sub string) (*managedfields.FieldManager, error) {
	types, err := v.kind.types()
	if err != nil {
		return nil, err
	}
	convert, err := v.kind.convert()
	if err != nil {
		return nil, err
	}
	reset := map[fieldpath.APIVersion]*fieldpath.Set{}
	s, err := v.strategies()
	if err != nil {
		return nil, err
	}
	if sub == "status" {
		reset, err = v.kind.statusResetFields()
		if err != nil {
			return nil, err
		}
	} else if strategy, ok := s.object.(rest.ResetFieldsStrategy); ok {
		reset = strategy.GetResetFields()
	}
	return managedfields.NewDefaultCRDFieldManager(types, convert, defaulter{v.kind}, creator{}, v.gvk, v.gvk.GroupVersion(), sub,
		fieldpath.NewExcludeFilterSetMap(reset))
}

// statusResetFields are the fields, by version, that nobody owns through the status subresource.
func (k *kind) statusResetFields() (map[fieldpath.APIVersion]*fieldpath.Set, error) {
	crd, err := k.crd()
	if err != nil {
		return nil, err
	}
	out := make(map[fieldpath.APIVersion]*fieldpath.Set)
	for _, v := range crd.Spec.Versions {
		if v.Subresources != nil && v.Subresources.Status != nil {
			out[fieldpath.APIVersion(k.group+"/"+v.Name)] = fieldpath.NewSet(fieldpath.MakePathOrDie("metadata"), fieldpath.MakePathOrDie("spec"))
		}
	}
	return out, nil
}

// definition finds the version in its definition.
func (v *servedVersion) definition() (*apiextensionsv1.CustomResourceDefinition, *apiextensionsv1.CustomResourceDefinitionVersion, error) {
	crd, err := v.kind.crd()
	if err != nil {
		return nil, nil, err
	}
	for i := range crd.Spec.Versions {
		if crd.Spec.Versions[i].Name == v.gvk.Version {
			return crd, &crd.Spec.Versions[i], nil
		}
	}
	return nil, nil, fmt.Errorf("%s has no version %s", crd.Name, v.gvk.Version)
}

func (v *servedVersion) newTable() rest.TableConvertor {
	var columns []apiextensionsv1.CustomResourceColumnDefinition
	if _, version, err := v.definition(); err == nil {
		columns = version.AdditionalPrinterColumns
	}
	if len(columns) == 0 {
		columns = []apiextensionsv1.CustomResourceColumnDefinition{{
			Name: "Age", Type: "date", JSONPath: ".metadata.creationTimestamp",
			Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"],
		}}
	}
	table, _ := tableconvertor.New(columns) // with an invalid column it has those before
	return table
}

// ConvertToTable implements registry.Describer.
func (v *servedVersion) ConvertToTable(ctx context.Context, obj, opts runtime.Object) (*metav1.Table, error) {
	return v.table().ConvertToTable(ctx, obj, opts)
}

// OpenAPIV2 implements registry.Describer.
func (v *servedVersion) OpenAPIV2() (*spec.Swagger, error) {
	crd, err := v.kind.crd()
	if err != nil {
		return nil, err
	}
	return builder.BuildOpenAPIV2(crd, v.gvk.Version, builder.Options{V2: true, IncludeSelectableFields: true})
}

// OpenAPIV3 implements registry.Describer.
func (v *servedVersion) OpenAPIV3() (*spec3.OpenAPI, error) {
	crd, err := v.kind.crd()
	if err != nil {
		return nil, err
	}
	return builder.BuildOpenAPIV3(crd, v.gvk.Version, builder.Options{IncludeSelectableFields: true})
}
