package policy

import (
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	generated "k8s.io/kubernetes/pkg/generated/openapi"

	"gantry.dev/gantry/internal/api/admission/view"
)

// CheckTypes finds mistakes in the expressions of a policy: fields that the kinds it is about
// do not have. The schemas of built-in kinds are made for the call and dropped after it: policies
// change seldom, and the schemas are large.
func CheckTypes(v *view.View, policy *admissionregistrationv1.ValidatingAdmissionPolicy) []admissionregistrationv1.ExpressionWarning {
	builtin := resolver.NewDefinitionsSchemaResolver(generated.GetOpenAPIDefinitions, legacyscheme.Scheme)
	checker := validating.TypeChecker{SchemaResolver: builtin, RestMapper: v.Mapper()}
	return checker.Check(policy)
}
