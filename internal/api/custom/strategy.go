package custom

import (
	"context"
	"fmt"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apiextensions-apiserver/pkg/crdserverscheme"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresource"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/storage/names"

	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/store"
)

// strategies are upstream's for one version. With them the validators and CEL programs are
// compiled, which costs milliseconds and most of the memory of a definition.
type strategies struct {
	object registry.Strategy
	status registry.Strategy
	attrs  func(obj runtime.Object) (labels.Set, fields.Set, error)
}

func (s *strategies) fields(obj store.Object) (fields.Set, error) {
	_, set, err := s.attrs(obj)
	return set, err
}

func (v *servedVersion) newStrategies() (*strategies, error) {
	crd, version, err := v.definition()
	if err != nil {
		return nil, err
	}
	schemas, err := v.kind.schemas()
	if err != nil {
		return nil, err
	}
	props, err := internalSchema(crd, v.gvk.Version)
	if err != nil {
		return nil, err
	}
	validator, _, err := validation.NewSchemaValidator(props)
	if err != nil {
		return nil, fmt.Errorf("compiling the schema of %s: %w", v.gvk, err)
	}
	var statusValidator validation.SchemaValidator
	var status *apiextensions.CustomResourceSubresourceStatus
	var scale *apiextensions.CustomResourceSubresourceScale
	if sub := version.Subresources; sub != nil {
		if sub.Status != nil {
			status = &apiextensions.CustomResourceSubresourceStatus{}
			if statusValidator, err = newStatusValidator(props); err != nil {
				return nil, fmt.Errorf("compiling the status schema of %s: %w", v.gvk, err)
			}
		}
		if sub.Scale != nil {
			scale = &apiextensions.CustomResourceSubresourceScale{}
			if err := apiextensionsv1.Convert_v1_CustomResourceSubresourceScale_To_apiextensions_CustomResourceSubresourceScale(sub.Scale, scale, nil); err != nil {
				return nil, fmt.Errorf("converting the scale of %s: %w", v.gvk, err)
			}
		}
	}
	object := customresource.NewStrategy(crdserverscheme.NewUnstructuredObjectTyper(), v.kind.scoped, v.gvk, validator, statusValidator,
		schemas[v.gvk.Version], status, scale, version.SelectableFields)
	return &strategies{object: object, status: customresource.NewStatusStrategy(object), attrs: object.GetAttrs}, nil
}

func newStatusValidator(props *apiextensions.JSONSchemaProps) (validation.SchemaValidator, error) {
	if props == nil {
		return nil, nil
	}
	status, ok := props.Properties["status"]
	if !ok {
		return nil, nil
	}
	validator, _, err := validation.NewSchemaValidator(&status)
	return validator, err
}

// strategy is upstream's, made when an object is first written. What it answers without upstream's
// is the same for every custom resource.
type strategy struct{ version *servedVersion }

var _ registry.Strategy = (*strategy)(nil)

// use calls f with upstream's strategy; a definition that cannot be used is an error of the object.
func (s *strategy) use(f func(*strategies) field.ErrorList) field.ErrorList {
	up, err := s.version.strategies()
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	return f(up)
}

// ObjectKinds implements runtime.ObjectTyper.
func (s *strategy) ObjectKinds(obj runtime.Object) ([]schema.GroupVersionKind, bool, error) {
	return crdserverscheme.NewUnstructuredObjectTyper().ObjectKinds(obj)
}

// Recognizes implements runtime.ObjectTyper.
func (s *strategy) Recognizes(schema.GroupVersionKind) bool { return false }

// GenerateName implements names.NameGenerator.
func (s *strategy) GenerateName(base string) string {
	return names.SimpleNameGenerator.GenerateName(base)
}

// NamespaceScoped implements rest.RESTCreateStrategy.
func (s *strategy) NamespaceScoped() bool { return s.version.kind.scoped }

// AllowCreateOnUpdate implements rest.RESTUpdateStrategy.
func (s *strategy) AllowCreateOnUpdate() bool { return false }

// AllowUnconditionalUpdate implements rest.RESTUpdateStrategy.
func (s *strategy) AllowUnconditionalUpdate() bool { return false }

// Canonicalize implements both.
func (s *strategy) Canonicalize(runtime.Object) {}

// PrepareForCreate implements rest.RESTCreateStrategy.
func (s *strategy) PrepareForCreate(ctx context.Context, obj runtime.Object) {
	s.use(func(up *strategies) field.ErrorList {
		up.object.PrepareForCreate(ctx, obj)
		return nil
	})
}

// Validate implements rest.RESTCreateStrategy.
func (s *strategy) Validate(ctx context.Context, obj runtime.Object) field.ErrorList {
	return s.use(func(up *strategies) field.ErrorList { return up.object.Validate(ctx, obj) })
}

// WarningsOnCreate implements rest.RESTCreateStrategy.
func (s *strategy) WarningsOnCreate(ctx context.Context, obj runtime.Object) (warnings []string) {
	s.use(func(up *strategies) field.ErrorList {
		warnings = up.object.WarningsOnCreate(ctx, obj)
		return nil
	})
	return warnings
}

// PrepareForUpdate implements rest.RESTUpdateStrategy.
func (s *strategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	s.use(func(up *strategies) field.ErrorList {
		up.object.PrepareForUpdate(ctx, obj, old)
		return nil
	})
}

// ValidateUpdate implements rest.RESTUpdateStrategy.
func (s *strategy) ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList {
	return s.use(func(up *strategies) field.ErrorList { return up.object.ValidateUpdate(ctx, obj, old) })
}

// WarningsOnUpdate implements rest.RESTUpdateStrategy.
func (s *strategy) WarningsOnUpdate(ctx context.Context, obj, old runtime.Object) (warnings []string) {
	s.use(func(up *strategies) field.ErrorList {
		warnings = up.object.WarningsOnUpdate(ctx, obj, old)
		return nil
	})
	return warnings
}

// statusStrategy is strategy through the status subresource.
type statusStrategy struct{ strategy }

// PrepareForUpdate implements rest.RESTUpdateStrategy.
func (s *statusStrategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	s.use(func(up *strategies) field.ErrorList {
		up.status.PrepareForUpdate(ctx, obj, old)
		return nil
	})
}

// ValidateUpdate implements rest.RESTUpdateStrategy.
func (s *statusStrategy) ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList {
	return s.use(func(up *strategies) field.ErrorList { return up.status.ValidateUpdate(ctx, obj, old) })
}

// WarningsOnUpdate implements rest.RESTUpdateStrategy.
func (s *statusStrategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}
