package policy

import (
	"fmt"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	generated "k8s.io/kubernetes/pkg/generated/openapi"

	"gantry.dev/gantry/internal/api/admission/view"
)

// CheckTypes finds mistakes in the expressions of a policy: fields that the kinds it is about
// do not have. The schemas of built-in kinds are made for the call and dropped after it: policies
// change seldom, and the schemas are large.
func CheckTypes(v *view.View, policy *admissionregistrationv1.ValidatingAdmissionPolicy) []admissionregistrationv1.ExpressionWarning {
	builtin := resolver.NewDefinitionsSchemaResolver(generated.GetOpenAPIDefinitions, legacyscheme.Scheme)
	checker := validating.TypeChecker{SchemaResolver: builtin.Combine(customSchemas{v}), RestMapper: v.Mapper()}
	return checker.Check(policy)
}

// customSchemas finds the schemas of custom resources. It implements resolver.SchemaResolver.
type customSchemas struct{ view *view.View }

// ResolveSchema implements resolver.SchemaResolver.
func (c customSchemas) ResolveSchema(kind schema.GroupVersionKind) (*spec.Schema, error) {
	document, err := c.view.Document(kind)
	if err != nil {
		return nil, err
	}
	for name, candidate := range document.Components.Schemas {
		if !describes(candidate, kind) {
			continue
		}
		return resolver.PopulateRefs(func(ref string) (*spec.Schema, bool) {
			s, ok := document.Components.Schemas[strings.TrimPrefix(ref, refPrefix)]
			return s, ok
		}, refPrefix+name)
	}
	return nil, fmt.Errorf("%s: %w", kind, resolver.ErrSchemaNotFound)
}

// refPrefix is where an OpenAPI document has its schemas.
const refPrefix = "#/components/schemas/"

// describes reports whether a schema says that it is of the kind.
func describes(s *spec.Schema, kind schema.GroupVersionKind) bool {
	kinds, _ := s.Extensions["x-kubernetes-group-version-kind"].([]any)
	for _, k := range kinds {
		fields, _ := k.(map[string]any)
		if fields["group"] == kind.Group && fields["version"] == kind.Version && fields["kind"] == kind.Kind {
			return true
		}
	}
	return false
}
