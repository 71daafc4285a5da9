package admission_test

import (
	"fmt"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/gantrytest"
)

func matchRules(group, version, resource string) *admissionregistrationv1.MatchResources {
	return &admissionregistrationv1.MatchResources{ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{RuleWithOperations: rule(group, version, resource)[0]}}}
}

// validatingPolicy makes a policy about config maps and binds it in a namespace.
func (w *world) validatingPolicy(t *testing.T, name, ns string, change func(*admissionregistrationv1.ValidatingAdmissionPolicySpec, *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec)) {
	t.Helper()
	policy := &admissionregistrationv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{MatchConstraints: matchRules("", "v1", "configmaps")}}
	binding := &admissionregistrationv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: name, ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny},
			MatchResources: &admissionregistrationv1.MatchResources{NamespaceSelector: inNamespace(ns)},
		}}
	change(&policy.Spec, &binding.Spec)
	if _, err := w.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(t.Context(), policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestValidatingPolicies(t *testing.T) {
	w := start(t, gantrytest.Options{})
	var heard warnings
	c := as(t, w.Cluster, &heard, "root", "system:masters")
	ns := w.namespace(t, nil)
	maps := c.CoreV1().ConfigMaps(ns)
	forbidden := metav1.StatusReasonForbidden
	w.validatingPolicy(t, "count", ns, func(p *admissionregistrationv1.ValidatingAdmissionPolicySpec, _ *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) {
		p.Variables = []admissionregistrationv1.Variable{{Name: "n", Expression: "has(object.data) ? object.data.size() : 0"}}
		p.MatchConditions = []admissionregistrationv1.MatchCondition{{Name: "not-root-ca", Expression: `object.metadata.name != "kube-root-ca.crt"`}}
		p.Validations = []admissionregistrationv1.Validation{
			{Expression: "variables.n <= 2", MessageExpression: `"has " + string(variables.n) + " keys"`},
			{Expression: `!("taken" in object.data)`, Message: "taken", Reason: &forbidden},
			{Expression: `namespaceObject.metadata.name != "x" && authorizer.group("").resource("secrets").namespace("default").check("list").allowed()`},
		}
	})
	_, err := maps.Create(t.Context(), configMap("c", "a", "", "b", "", "c", ""), metav1.CreateOptions{})
	wantError(t, "too many keys", err, `ValidatingAdmissionPolicy 'count' with binding 'count' denied request: has 3 keys`)
	if !apierrors.IsInvalid(err) {
		t.Errorf("%v is not Invalid, the default reason", err)
	}
	_, err = maps.Create(t.Context(), configMap("c", "taken", ""), metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("%v is not Forbidden, the reason of the policy", err)
	}
	_, err = maps.Create(t.Context(), configMap("c", "a", ""), metav1.CreateOptions{})
	wantError(t, "few keys", err, "")
	warn := []byte(`{"spec":{"validationActions":["Warn","Audit"]}}`)
	if _, err := c.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Patch(t.Context(), "count", types.MergePatchType, warn, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	heard.take()
	_, err = maps.Create(t.Context(), configMap("d", "a", "", "b", "", "c", ""), metav1.CreateOptions{})
	if text := heard.take(); err != nil || !strings.Contains(text, "Validation failed for ValidatingAdmissionPolicy 'count' with binding 'count': has 3 keys") {
		t.Errorf("warnings %q, %v", text, err)
	}
	if err := c.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Delete(t.Context(), "count", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = maps.Create(t.Context(), configMap("e", "a", "", "b", "", "c", ""), metav1.CreateOptions{})
	if text := heard.take(); err != nil || text != "" {
		t.Errorf("warnings %q, %v after the binding was removed", text, err)
	}
}

// TestPoliciesLeaveReviewsAlone: a policy that denies everything still lets everyone ask about rights.
func TestPoliciesLeaveReviewsAlone(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns := w.namespace(t, nil)
	w.validatingPolicy(t, "nothing", ns, func(p *admissionregistrationv1.ValidatingAdmissionPolicySpec, b *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) {
		p.MatchConstraints = matchRules("*", "*", "*")
		b.MatchResources = nil
		p.Validations = []admissionregistrationv1.Validation{{Expression: "false", Message: "nothing goes"}}
	})
	_, err := w.CoreV1().ConfigMaps(ns).Create(t.Context(), configMap("c"), metav1.CreateOptions{})
	wantError(t, "a config map", err, "nothing goes")
	_, err = w.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "get", Resource: "pods"}},
	}, metav1.CreateOptions{})
	wantError(t, "a question", err, "")
	err = w.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Delete(t.Context(), "nothing", metav1.DeleteOptions{})
	wantError(t, "the policy's own binding", err, "")
}

func TestPolicyParameters(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns := w.namespace(t, nil)
	refuse := admissionregistrationv1.DenyAction
	w.validatingPolicy(t, "most", ns, func(p *admissionregistrationv1.ValidatingAdmissionPolicySpec, b *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) {
		p.ParamKind = &admissionregistrationv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"}
		p.MatchConditions = []admissionregistrationv1.MatchCondition{{Name: "about", Expression: `has(object.data) && "n" in object.data`}}
		p.Validations = []admissionregistrationv1.Validation{{Expression: "int(object.data.n) <= int(params.data.most)", MessageExpression: `"at most " + params.data.most`}}
		b.ParamRef = &admissionregistrationv1.ParamRef{Name: "limits", Namespace: "default", ParameterNotFoundAction: &refuse}
	})
	create := func(n string) error {
		_, err := w.CoreV1().ConfigMaps(ns).Create(t.Context(), configMap("c", "n", n), metav1.CreateOptions{DryRun: []string{"All"}})
		return err
	}
	wantError(t, "no parameters", create("1"), "no params found for policy binding with `Deny` parameterNotFoundAction")
	limits := configMap("limits", "most", "5")
	if _, err := w.CoreV1().ConfigMaps("default").Create(t.Context(), limits, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	wantError(t, "within", create("5"), "")
	wantError(t, "beyond", create("6"), "at most 5")
	limits.Data["most"] = "6"
	if _, err := w.CoreV1().ConfigMaps("default").Update(t.Context(), limits, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	wantError(t, "within the new limit", create("6"), "")
	w.validatingPolicy(t, "unknown", ns, func(p *admissionregistrationv1.ValidatingAdmissionPolicySpec, b *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) {
		p.ParamKind = &admissionregistrationv1.ParamKind{APIVersion: "none.example.test/v1", Kind: "Limit"}
		p.Validations = []admissionregistrationv1.Validation{{Expression: "true"}}
		b.ParamRef = &admissionregistrationv1.ParamRef{Name: "x", ParameterNotFoundAction: &refuse}
	})
	wantError(t, "parameters of a kind that is not there", create("1"), "failed to configure policy: failed to find resource referenced by paramKind: 'none.example.test/v1, Kind=Limit'")
}

func TestMutatingPolicies(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns := w.namespace(t, nil)
	policies := w.AdmissionregistrationV1().MutatingAdmissionPolicies()
	never := admissionregistrationv1.NeverReinvocationPolicy
	fail := admissionregistrationv1.Fail
	for name, mutation := range map[string]admissionregistrationv1.Mutation{
		"apply": {PatchType: admissionregistrationv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionregistrationv1.ApplyConfiguration{
			Expression: `Object{spec: Object.spec{initContainers: [Object.spec.initContainers{name: "mesh", image: "example.test/mesh:1"}]}}`}},
		"json": {PatchType: admissionregistrationv1.PatchTypeJSONPatch, JSONPatch: &admissionregistrationv1.JSONPatch{
			Expression: `[JSONPatch{op: "add", path: "/metadata/labels", value: {"by": variables.who}}]`}},
	} {
		policy := &admissionregistrationv1.MutatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admissionregistrationv1.MutatingAdmissionPolicySpec{
			MatchConstraints: matchRules("", "v1", "pods"), ReinvocationPolicy: never, FailurePolicy: &fail, Mutations: []admissionregistrationv1.Mutation{mutation},
			Variables:       []admissionregistrationv1.Variable{{Name: "who", Expression: "request.userInfo.username"}},
			MatchConditions: []admissionregistrationv1.MatchCondition{{Name: "new", Expression: "request.operation == 'CREATE'"}},
		}}
		if _, err := policies.Create(t.Context(), policy, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		binding := &admissionregistrationv1.MutatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admissionregistrationv1.MutatingAdmissionPolicyBindingSpec{
			PolicyName: name, MatchResources: &admissionregistrationv1.MatchResources{NamespaceSelector: inNamespace(ns)},
		}}
		if _, err := w.AdmissionregistrationV1().MutatingAdmissionPolicyBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	made, err := w.CoreV1().Pods(ns).Create(t.Context(), pod(nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if made.Labels["by"] != "root" {
		t.Errorf("labels %v; want those of the JSON patch", made.Labels)
	}
	if len(made.Spec.InitContainers) != 1 || made.Spec.InitContainers[0].TerminationMessagePath == "" || len(made.Spec.InitContainers[0].VolumeMounts) != 1 {
		t.Errorf("init containers %+v; want the applied one with defaults and the token", made.Spec.InitContainers)
	}
}

func TestTypeChecking(t *testing.T) {
	w := start(t, gantrytest.Options{})
	w.validatingPolicy(t, "typo", "default", func(p *admissionregistrationv1.ValidatingAdmissionPolicySpec, _ *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) {
		p.MatchConstraints = matchRules("apps", "v1", "deployments")
		p.Validations = []admissionregistrationv1.Validation{{Expression: "object.spec.replicas > 1"}, {Expression: "object.spec.replica > 1", MessageExpression: `"wanted > " + string(object.spec.replicas)`}}
	})
	w.Eventually("the warnings in the status", func() error {
		policy, err := w.AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(t.Context(), "typo", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if policy.Status.ObservedGeneration != policy.Generation || policy.Status.TypeChecking == nil {
			return fmt.Errorf("status %+v", policy.Status)
		}
		found := policy.Status.TypeChecking.ExpressionWarnings
		if len(found) != 1 || found[0].FieldRef != "spec.validations[1].expression" || !strings.Contains(found[0].Warning, "undefined field 'replica'") {
			return fmt.Errorf("warnings %+v", found)
		}
		return nil
	})
}
