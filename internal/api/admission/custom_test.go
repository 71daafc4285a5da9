package admission_test

import (
	"fmt"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"gantry.dev/gantry/internal/gantrytest"
)

var widgets = schema.GroupVersionResource{Group: "example.test", Version: "v1", Resource: "widgets"}

// widgetDefinition has two versions of one schema.
func widgetDefinition() *apiextensionsv1.CustomResourceDefinition {
	size := apiextensionsv1.JSONSchemaProps{Type: "integer"}
	spec := apiextensionsv1.JSONSchemaProps{Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{
		"size":  size,
		"color": {Type: "string", Default: &apiextensionsv1.JSON{Raw: []byte(`"red"`)}},
		"parts": {Type: "object", AdditionalProperties: &apiextensionsv1.JSONSchemaPropsOrBool{Allows: true, Schema: &apiextensionsv1.JSONSchemaProps{Type: "string"}}},
	}}
	version := func(name string, storage bool) apiextensionsv1.CustomResourceDefinitionVersion {
		return apiextensionsv1.CustomResourceDefinitionVersion{Name: name, Served: true, Storage: storage, Schema: &apiextensionsv1.CustomResourceValidation{
			OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{"spec": spec}},
		}}
	}
	return &apiextensionsv1.CustomResourceDefinition{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition"},
		ObjectMeta: metav1.ObjectMeta{Name: "widgets.example.test"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: "example.test", Scope: apiextensionsv1.NamespaceScoped,
			Names:    apiextensionsv1.CustomResourceDefinitionNames{Plural: "widgets", Singular: "widget", Kind: "Widget", ListKind: "WidgetList"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{version("v1", true), version("v2", false)},
		},
	}
}

func widget(version, name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "example.test/" + version, "kind": "Widget", "metadata": map[string]any{"name": name}, "spec": spec,
	}}
}

// startWithWidgets is a cluster in which widgets are served.
func startWithWidgets(t *testing.T) (*world, dynamic.Interface) {
	t.Helper()
	w := start(t, gantrytest.Options{})
	if err := w.Client.Create(t.Context(), widgetDefinition()); err != nil {
		t.Fatal(err)
	}
	objects, err := dynamic.NewForConfig(w.Config("root", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	w.Eventually("widgets are served", func() error {
		_, err := objects.Resource(widgets).List(t.Context(), metav1.ListOptions{})
		return err
	})
	return w, objects
}

func TestWebhooksOnCustomResources(t *testing.T) {
	w, objects := startWithWidgets(t)
	ns := w.namespace(t, nil)
	h := newHookServer(t, func(path string, r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		switch {
		case path == "/mutate" && r.Operation == admissionv1.Create:
			return allow(`[{"op":"add","path":"/spec/parts","value":{"wheel":"round"}},{"op":"add","path":"/spec/unknown","value":1},{"op":"remove","path":"/spec/color"}]`)
		case path == "/validate" && strings.Contains(string(r.Object.Raw), `"size":13`):
			return deny("unlucky")
		}
		return allow()
	})
	mutating(t, w, h, "mutate", ns, func(m *admissionregistrationv1.MutatingWebhook) { m.Rules = rule("example.test", "v1", "widgets") })
	validating(t, w, h, "validate", ns, func(v *admissionregistrationv1.ValidatingWebhook) {
		v.Rules = rule("example.test", "v1", "widgets", admissionregistrationv1.Create, admissionregistrationv1.Update, admissionregistrationv1.Delete)
	})
	of := objects.Resource(widgets).Namespace(ns)
	made, err := of.Create(t.Context(), widget("v1", "a", map[string]any{"size": int64(1), "color": "blue"}), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	spec, _, _ := unstructured.NestedMap(made.Object, "spec")
	if got := fmt.Sprint(spec); got != "map[color:red parts:map[wheel:round] size:1]" {
		t.Errorf("spec %s; want the patch, pruned, with defaults", got)
	}
	_, err = of.Create(t.Context(), widget("v1", "b", map[string]any{"size": int64(13)}), metav1.CreateOptions{})
	wantError(t, "an unlucky size", err, `admission webhook "validate.example.test" denied the request: unlucky`)
	h.take()
	second := objects.Resource(widgets.GroupResource().WithVersion("v2")).Namespace(ns)
	_, err = second.Create(t.Context(), widget("v2", "c", map[string]any{"size": int64(13)}), metav1.CreateOptions{})
	wantError(t, "through another version", err, "unlucky")
	if seen := h.take(); len(seen) != 2 || seen[1].request.Kind.Version != "v1" || seen[1].request.RequestKind.Version != "v2" || !strings.Contains(string(seen[1].request.Object.Raw), `"apiVersion":"example.test/v1"`) {
		t.Errorf("asked %+v; want the object as v1", seen)
	}
	made, err = second.Create(t.Context(), widget("v2", "d", map[string]any{"size": int64(2)}), metav1.CreateOptions{})
	if err != nil || made.GetAPIVersion() != "example.test/v2" {
		t.Fatalf("through v2: %v, %v", made, err)
	}
	if wheel, _, _ := unstructured.NestedString(made.Object, "spec", "parts", "wheel"); wheel != "round" {
		t.Errorf("the webhook's patch is lost on its way back to v2: %v", made.Object)
	}
	wantError(t, "a delete", of.Delete(t.Context(), "a", metav1.DeleteOptions{}), "")
}

func TestPoliciesOnCustomResources(t *testing.T) {
	w, objects := startWithWidgets(t)
	ns := w.namespace(t, nil)
	of := objects.Resource(widgets).Namespace(ns)
	refuse := admissionregistrationv1.DenyAction
	w.validatingPolicy(t, "largest", ns, func(p *admissionregistrationv1.ValidatingAdmissionPolicySpec, b *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) {
		p.ParamKind = &admissionregistrationv1.ParamKind{APIVersion: "example.test/v1", Kind: "Widget"}
		p.Validations = []admissionregistrationv1.Validation{{Expression: "object.data.all(k, size(k) <= params.spec.size)", MessageExpression: `"keys are at most " + string(params.spec.size) + " long"`}}
		p.MatchConditions = []admissionregistrationv1.MatchCondition{{Name: "mine", Expression: `object.metadata.name == "c"`}}
		b.ParamRef = &admissionregistrationv1.ParamRef{Name: "limit", ParameterNotFoundAction: &refuse}
	})
	create := func(key string) error {
		_, err := w.CoreV1().ConfigMaps(ns).Create(t.Context(), configMap("c", key, ""), metav1.CreateOptions{DryRun: []string{"All"}})
		return err
	}
	wantError(t, "without its parameter", create("abc"), "no params found")
	if _, err := of.Create(t.Context(), widget("v1", "limit", map[string]any{"size": int64(2)}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	wantError(t, "beyond a custom parameter", create("abc"), "keys are at most 2 long")
	wantError(t, "within a custom parameter", create("ab"), "")

	policy := &admissionregistrationv1.MutatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "paint"}, Spec: admissionregistrationv1.MutatingAdmissionPolicySpec{
		MatchConstraints: matchRules("example.test", "v1", "widgets"), ReinvocationPolicy: admissionregistrationv1.NeverReinvocationPolicy,
		Mutations: []admissionregistrationv1.Mutation{{PatchType: admissionregistrationv1.PatchTypeApplyConfiguration,
			ApplyConfiguration: &admissionregistrationv1.ApplyConfiguration{Expression: `Object{spec: Object.spec{color: "green"}}`}}},
	}}
	if _, err := w.AdmissionregistrationV1().MutatingAdmissionPolicies().Create(t.Context(), policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &admissionregistrationv1.MutatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "paint"},
		Spec: admissionregistrationv1.MutatingAdmissionPolicyBindingSpec{PolicyName: "paint"}}
	if _, err := w.AdmissionregistrationV1().MutatingAdmissionPolicyBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	made, err := of.Create(t.Context(), widget("v1", "painted", map[string]any{"size": int64(3)}), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if color, _, _ := unstructured.NestedString(made.Object, "spec", "color"); color != "green" {
		t.Errorf("the policy made the color %q", color)
	}

	w.validatingPolicy(t, "typo", ns, func(p *admissionregistrationv1.ValidatingAdmissionPolicySpec, _ *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) {
		p.MatchConstraints = matchRules("example.test", "v1", "widgets")
		p.Validations = []admissionregistrationv1.Validation{{Expression: "object.spec.colour != 'x'"}, {Expression: "object.spec.size < 100"}}
	})
	w.Eventually("the type check", func() error {
		p, err := w.AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(t.Context(), "typo", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if found := p.Status.TypeChecking; found == nil || len(found.ExpressionWarnings) != 1 || !strings.Contains(found.ExpressionWarnings[0].Warning, "undefined field 'colour'") {
			return fmt.Errorf("status %+v", p.Status)
		}
		return nil
	})
}

func TestQuotaOfCustomResources(t *testing.T) {
	w, objects := startWithWidgets(t)
	ns := w.namespace(t, nil)
	w.quota(t, ns, map[corev1.ResourceName]string{"count/widgets.example.test": "1"})
	of := objects.Resource(widgets).Namespace(ns)
	create := func(name string) error {
		_, err := of.Create(t.Context(), widget("v1", name, map[string]any{"size": int64(1)}), metav1.CreateOptions{})
		return err
	}
	wantError(t, "the first", create("a"), "")
	wantError(t, "the second", create("b"), "exceeded quota: q, requested: count/widgets.example.test=1, used: count/widgets.example.test=1, limited: count/widgets.example.test=1")
	if err := of.Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.used(t, ns, "count/widgets.example.test", "0")
	wantError(t, "when there is room again", create("b"), "")
}
