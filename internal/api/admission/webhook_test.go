package admission_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/gantrytest"
)

func configMap(name string, data ...string) *corev1.ConfigMap {
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{}}
	for i := 0; i+1 < len(data); i += 2 {
		c.Data[data[i]] = data[i+1]
	}
	return c
}

func TestValidatingWebhooks(t *testing.T) {
	w := start(t, gantrytest.Options{})
	var heard warnings
	c := as(t, w.Cluster, &heard, "root", "system:masters")
	ns := w.namespace(t, nil)
	maps := c.CoreV1().ConfigMaps(ns)
	h := newHookServer(t, func(_ string, r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if strings.Contains(string(r.Object.Raw), `"bad"`) || r.Operation == admissionv1.Delete {
			return deny("this is bad")
		}
		response := allow()
		response.Warnings = []string{"careful"}
		return response
	})
	validating(t, c, h, "v", ns, func(v *admissionregistrationv1.ValidatingWebhook) {
		v.Rules = rule("", "v1", "configmaps", admissionregistrationv1.Create, admissionregistrationv1.Update, admissionregistrationv1.Delete)
	})
	heard.take()
	// The configuration is effective for the very next request.
	_, err := maps.Create(t.Context(), configMap("bad", "a", "bad"), metav1.CreateOptions{})
	wantError(t, "a bad object", err, `admission webhook "v.example.test" denied the request: this is bad`)
	if status, ok := err.(apierrors.APIStatus); !ok || status.Status().Code != 418 {
		t.Errorf("the code is not the webhook's: %v", err)
	}
	if _, err := maps.Create(t.Context(), configMap("good", "a", "b"), metav1.CreateOptions{}); err != nil || heard.take() != "careful" {
		t.Errorf("a good object: %v, or not warned", err)
	}
	h.take()
	if _, err := maps.Patch(t.Context(), "good", types.MergePatchType, []byte(`{"data":{"a":"c"}}`), metav1.PatchOptions{DryRun: []string{"All"}}); err != nil {
		t.Fatal(err)
	}
	seen := h.take()
	if len(seen) != 1 {
		t.Fatalf("asked %d times about an update, want once", len(seen))
	}
	r := seen[0].request
	if r.Operation != admissionv1.Update || !*r.DryRun || r.Kind.Kind != "ConfigMap" || r.Namespace != ns || r.Name != "good" || r.UserInfo.Username != "root" {
		t.Errorf("asked %+v", r)
	}
	if !strings.Contains(string(r.Object.Raw), `"a":"c"`) || !strings.Contains(string(r.OldObject.Raw), `"a":"b"`) || !strings.Contains(string(r.Options.Raw), `"kind":"UpdateOptions"`) {
		t.Errorf("object %s, old %s, options %s", r.Object.Raw, r.OldObject.Raw, r.Options.Raw)
	}
	wantError(t, "a delete", maps.Delete(t.Context(), "good", metav1.DeleteOptions{}), "this is bad")
	err = maps.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{})
	wantError(t, "a delete of all", err, "this is bad")
	if seen := h.take(); len(seen) < 2 || seen[0].request.OldObject.Raw == nil || len(seen[0].request.Object.Raw) != 0 {
		t.Errorf("deletes were shown as %+v", seen)
	}
	// A webhook that is gone is not asked.
	if err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), "v", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	wantError(t, "a delete when the webhook is gone", maps.Delete(t.Context(), "good", metav1.DeleteOptions{}), "")
	if len(h.take()) != 0 {
		t.Error("the webhook was asked after it was removed")
	}
}

func TestMutatingWebhooksAndReinvocation(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns := w.namespace(t, nil)
	h := newHookServer(t, func(path string, r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if path == "/a" && strings.Contains(string(r.Object.Raw), `"b":"done"`) {
			return allow(`[{"op":"add","path":"/data/a","value":"saw b"}]`)
		}
		if strings.Contains(string(r.Object.Raw), fmt.Sprintf("%q:", path[1:])) {
			return allow()
		}
		return allow(fmt.Sprintf(`[{"op":"add","path":"/data/%s","value":"done"}]`, path[1:]))
	})
	again := admissionregistrationv1.IfNeededReinvocationPolicy
	mutating(t, w, h, "a", ns, func(m *admissionregistrationv1.MutatingWebhook) { m.ReinvocationPolicy = &again })
	mutating(t, w, h, "b", ns, nil)
	made, err := w.CoreV1().ConfigMaps(ns).Create(t.Context(), configMap("c", "x", "y"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if made.Data["a"] != "saw b" || made.Data["b"] != "done" || made.Data["x"] != "y" {
		t.Errorf("data %v; want that a was asked again after b", made.Data)
	}
	var order []string
	for _, a := range h.take() {
		if a.request.Name == "c" { // a controller makes a config map of its own
			order = append(order, a.path)
		}
	}
	if got := strings.Join(order, " "); got != "/a /b /a" {
		t.Errorf("asked in the order %s", got)
	}
	if len(made.ManagedFields) == 0 {
		t.Error("managed fields are gone")
	}
}

func TestMutatedPodsGetDefaultsAndValidation(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns := w.namespace(t, nil)
	patch := ""
	h := newHookServer(t, func(string, *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse { return allow(patch) })
	mutating(t, w, h, "pods", ns, func(m *admissionregistrationv1.MutatingWebhook) { m.Rules = rule("", "v1", "pods") })
	patch = `[{"op":"add","path":"/spec/initContainers","value":[{"name":"injected","image":"example.test/init:1"}]}]`
	made, err := w.CoreV1().Pods(ns).Create(t.Context(), pod(nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	added := made.Spec.InitContainers[0]
	if added.TerminationMessagePath != "/dev/termination-log" || added.ImagePullPolicy != corev1.PullIfNotPresent {
		t.Errorf("the injected container has no defaults: %+v", added)
	}
	if len(added.VolumeMounts) != 1 {
		t.Errorf("the in-tree plugins were not asked again: no token is mounted into %+v", added)
	}
	patch = `[{"op":"replace","path":"/spec/containers/0/name","value":"Not A Name"}]`
	_, err = w.CoreV1().Pods(ns).Create(t.Context(), pod(func(p *corev1.Pod) { p.Name = "q" }), metav1.CreateOptions{})
	wantError(t, "a patch to an invalid pod", err, "spec.containers[0].name: Invalid value")
	patch = `[{"op":"replace","path":"/nowhere/x","value":1}]`
	_, err = w.CoreV1().Pods(ns).Create(t.Context(), pod(func(p *corev1.Pod) { p.Name = "r" }), metav1.CreateOptions{})
	wantError(t, "a patch that does not apply", err, "doc is missing path: /nowhere/x")
}

func TestWebhookSelection(t *testing.T) {
	w := start(t, gantrytest.Options{})
	ns, other := w.namespace(t, nil), w.namespace(t, nil)
	h := newHookServer(t, func(path string, _ *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return deny("by " + path)
	})
	validating(t, w, h, "labels", ns, func(v *admissionregistrationv1.ValidatingWebhook) {
		v.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"check": "yes"}}
	})
	validating(t, w, h, "conditions", ns, func(v *admissionregistrationv1.ValidatingWebhook) {
		v.MatchConditions = []admissionregistrationv1.MatchCondition{
			{Name: "data", Expression: `has(object.data) && "check" in object.data`},
			{Name: "user", Expression: `request.userInfo.username == "root" && authorizer.group("").resource("configmaps").namespace("` + ns + `").check("create").allowed()`},
		}
	})
	old := admissionregistrationv1.Equivalent
	validating(t, w, h, "equivalent", ns, func(v *admissionregistrationv1.ValidatingWebhook) {
		v.Rules, v.MatchPolicy = rule("autoscaling", "v1", "horizontalpodautoscalers"), &old
	})
	create := func(ns string, change func(*corev1.ConfigMap)) error {
		c := configMap("c")
		change(c)
		_, err := w.CoreV1().ConfigMaps(ns).Create(t.Context(), c, metav1.CreateOptions{DryRun: []string{"All"}})
		return err
	}
	wantError(t, "nothing selected", create(ns, func(*corev1.ConfigMap) {}), "")
	wantError(t, "by label", create(ns, func(c *corev1.ConfigMap) { c.Labels = map[string]string{"check": "yes"} }), "by /labels")
	wantError(t, "by condition", create(ns, func(c *corev1.ConfigMap) { c.Data["check"] = "" }), "by /conditions")
	wantError(t, "in another namespace", create(other, func(c *corev1.ConfigMap) { c.Data["check"] = "" }), "")
	h.take()
	body := []byte(`{"apiVersion":"autoscaling/v2","kind":"HorizontalPodAutoscaler","metadata":{"name":"h"},"spec":{"maxReplicas":2,"scaleTargetRef":{"kind":"Deployment","name":"d","apiVersion":"apps/v1"}}}`)
	err := w.AutoscalingV2().RESTClient().Post().Namespace(ns).Resource("horizontalpodautoscalers").Body(body).SetHeader("Content-Type", "application/json").Do(t.Context()).Error()
	wantError(t, "by equivalence", err, "by /equivalent")
	if seen := h.take(); len(seen) != 1 || seen[0].request.Kind.Version != "v1" || seen[0].request.RequestKind.Version != "v2" || !strings.Contains(string(seen[0].request.Object.Raw), `"apiVersion":"autoscaling/v1"`) {
		t.Errorf("asked %+v; want the object as v1", seen)
	}
}

func TestWebhookFailures(t *testing.T) {
	w := start(t, gantrytest.Options{})
	h := newHookServer(t, func(path string, _ *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if path == "/hangs" {
			return nil
		}
		return allow()
	})
	ignore, one, onDryRun := admissionregistrationv1.Ignore, int32(1), admissionregistrationv1.SideEffectClassNoneOnDryRun
	for name, tc := range map[string]struct {
		change func(*admissionregistrationv1.ValidatingWebhook)
		dryRun bool
		want   string
	}{
		"hangs": {func(v *admissionregistrationv1.ValidatingWebhook) { v.TimeoutSeconds = &one }, false, `failed calling webhook "hangs.example.test": failed to call webhook: Post`},
		"ignored": {func(v *admissionregistrationv1.ValidatingWebhook) {
			v.FailurePolicy, v.TimeoutSeconds = &ignore, &one
			v.ClientConfig = h.config("/hangs")
		}, false, ""},
		"untrusted":  {func(v *admissionregistrationv1.ValidatingWebhook) { v.ClientConfig.CABundle = nil }, false, "certificate"},
		"on-dry-run": {func(v *admissionregistrationv1.ValidatingWebhook) { v.SideEffects = &onDryRun }, true, ""},
		"service":    {serviceRef("none"), false, `service "none" not found`},
	} {
		t.Run(name, func(t *testing.T) {
			ns := w.namespace(t, nil)
			body := configMap("c")
			opts := metav1.CreateOptions{}
			if tc.dryRun {
				opts.DryRun = []string{"All"}
			}
			validating(t, w, h, name, ns, tc.change)
			_, err := w.CoreV1().ConfigMaps(ns).Create(t.Context(), body, opts)
			wantError(t, "create", err, tc.want)
		})
	}
}

func serviceRef(name string) func(*admissionregistrationv1.ValidatingWebhook) {
	return func(v *admissionregistrationv1.ValidatingWebhook) {
		v.ClientConfig.URL = nil
		v.ClientConfig.Service = &admissionregistrationv1.ServiceReference{Namespace: "default", Name: name}
	}
}

func TestConfigurationsAreNotHooked(t *testing.T) {
	w := start(t, gantrytest.Options{})
	h := newHookServer(t, func(string, *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse { return deny("no way out") })
	validating(t, w, h, "all", "", func(v *admissionregistrationv1.ValidatingWebhook) {
		v.NamespaceSelector = nil
		v.Rules = rule("*", "*", "*", admissionregistrationv1.OperationAll)
	})
	_, err := w.CoreV1().ConfigMaps("default").Create(t.Context(), configMap("c"), metav1.CreateOptions{})
	wantError(t, "a config map", err, "no way out")
	err = w.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), "all", metav1.DeleteOptions{})
	wantError(t, "the configuration itself", err, "")
	_, err = w.CoreV1().ConfigMaps("default").Create(t.Context(), configMap("c"), metav1.CreateOptions{})
	wantError(t, "a config map afterwards", err, "")
}

// TestWebhooksSeeReviews: a webhook is asked about questions; policies are not, or one could lock everybody out.
func TestWebhooksSeeReviews(t *testing.T) {
	w := start(t, gantrytest.Options{})
	h := newHookServer(t, func(_ string, r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if strings.Contains(string(r.Object.Raw), `"verb":"escalate"`) {
			return deny("nobody asks that")
		}
		return allow()
	})
	validating(t, w, h, "reviews", "", func(v *admissionregistrationv1.ValidatingWebhook) {
		v.NamespaceSelector = nil
		v.Rules = rule("authorization.k8s.io", "v1", "*", admissionregistrationv1.Create)
	})
	ask := func(verb string) error {
		_, err := w.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Resource: "pods"}},
		}, metav1.CreateOptions{})
		return err
	}
	wantError(t, "a question", ask("get"), "")
	wantError(t, "another one", ask("escalate"), "nobody asks that")
	if seen := h.take(); len(seen) != 2 || seen[0].request.Kind.Kind != "SelfSubjectAccessReview" {
		t.Errorf("asked %+v; want about two reviews", seen)
	}
	_, err := w.AuthorizationV1().LocalSubjectAccessReviews("none").Create(t.Context(), &authorizationv1.LocalSubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{User: "u", ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: "none", Verb: "get", Resource: "pods"}},
	}, metav1.CreateOptions{})
	wantError(t, "a question about a namespace that is not there", err, "")
}

func TestWebhooksSeeSubresources(t *testing.T) {
	w := start(t, gantrytest.Options{Nodes: 1})
	ns := w.namespace(t, nil)
	h := newHookServer(t, func(_ string, r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if r.SubResource == "scale" && strings.Contains(string(r.Object.Raw), `"replicas":7`) {
			return deny("too many")
		}
		if r.SubResource == "exec" || r.SubResource == "eviction" {
			return deny("not in here")
		}
		return allow()
	})
	validating(t, w, h, "subs", ns, func(v *admissionregistrationv1.ValidatingWebhook) {
		v.Rules = append(rule("apps", "v1", "deployments/scale"),
			rule("", "v1", "pods/*", admissionregistrationv1.Create, admissionregistrationv1.Connect)...)
	})
	mutating(t, w, newHookServer(t, func(_ string, r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if strings.Contains(string(r.Object.Raw), `"replicas":5`) {
			return allow(`[{"op":"replace","path":"/spec/replicas","value":3}]`)
		}
		return allow()
	}), "scales", ns, func(m *admissionregistrationv1.MutatingWebhook) { m.Rules = rule("apps", "v1", "deployments/scale") })
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: appsv1.DeploymentSpec{
		Replicas: new(int32), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: pod(nil).Spec},
	}}
	if _, err := w.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	scale := func(n int32) (*autoscalingv1.Scale, error) {
		return w.AppsV1().Deployments(ns).UpdateScale(t.Context(), "d",
			&autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: ns}, Spec: autoscalingv1.ScaleSpec{Replicas: n}}, metav1.UpdateOptions{})
	}
	h.take()
	_, err := scale(7)
	wantError(t, "scale to 7", err, "too many")
	if seen := h.take(); len(seen) != 1 || seen[0].request.Kind.Kind != "Scale" || seen[0].request.Kind.Group != "autoscaling" {
		t.Errorf("asked %+v; want about a Scale", seen)
	}
	if s, err := scale(5); err != nil || s.Spec.Replicas != 3 {
		t.Errorf("scale to 5 = %+v, %v; want that the webhook made it 3", s, err)
	}
	if _, err := w.CoreV1().Pods(ns).Create(t.Context(), pod(nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	err = w.CoreV1().Pods(ns).EvictV1(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: ns}})
	wantError(t, "an eviction", err, "not in here")
	err = w.CoreV1().RESTClient().Post().Namespace(ns).Resource("pods").Name("p").SubResource("exec").Param("command", "id").Param("stdout", "1").Do(t.Context()).Error()
	wantError(t, "an exec", err, "not in here")
	kinds := map[string]bool{}
	for _, a := range h.take() {
		kinds[a.request.Kind.Kind+"/"+a.request.SubResource] = true
	}
	for _, want := range []string{"Binding/binding", "Eviction/eviction", "PodExecOptions/exec"} {
		if !kinds[want] && want != "Binding/binding" { // the scheduler may have been quicker or slower
			t.Errorf("asked about %v; want %s too", kinds, want)
		}
	}
}

// TestEveryKindCanBeHooked has a webhook see, and change nothing in, whatever is written.
func TestEveryKindCanBeHooked(t *testing.T) {
	w := start(t, gantrytest.Options{Nodes: 1})
	h := newHookServer(t, func(path string, r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if path != "/change" || len(r.Object.Raw) == 0 || r.SubResource != "" {
			return allow()
		}
		return allow(`[{"op":"add","path":"/metadata/labels","value":{"hooked":"yes"}}]`)
	})
	all := func(rules *[]admissionregistrationv1.RuleWithOperations, selector **metav1.LabelSelector) {
		*selector = nil
		*rules = rule("*", "*", "*/*", admissionregistrationv1.OperationAll)
	}
	mutating(t, w, h, "change", "", func(m *admissionregistrationv1.MutatingWebhook) { all(&m.Rules, &m.NamespaceSelector) })
	validating(t, w, h, "all", "", func(v *admissionregistrationv1.ValidatingWebhook) { all(&v.Rules, &v.NamespaceSelector) })
	ctx := t.Context()
	ns := w.namespace(t, nil)
	definition := widgetDefinition()
	if err := w.Client.Create(ctx, definition); err != nil || definition.Labels["hooked"] != "yes" {
		t.Errorf("a custom resource definition: %v, labels %v", err, definition.Labels)
	}
	token := &authenticationv1.TokenRequest{}
	w.Eventually("a token", func() error {
		_, err := w.CoreV1().ServiceAccounts(ns).CreateToken(ctx, "default", token, metav1.CreateOptions{})
		return err
	})
	made, err := w.CoreV1().Pods(ns).Create(ctx, pod(nil), metav1.CreateOptions{})
	if err != nil || made.Labels["hooked"] != "yes" {
		t.Errorf("a pod: %v, labels %v", err, made.Labels)
	}
	w.Eventually("a bound pod", func() error {
		p, err := w.CoreV1().Pods(ns).Get(ctx, "p", metav1.GetOptions{})
		if err == nil && p.Spec.NodeName == "" {
			err = errors.New("it has no node")
		}
		return err
	})
	if _, err := w.CoreV1().Pods(ns).Patch(ctx, "p", types.StrategicMergePatchType, []byte(`{"status":{"phase":"Running"}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Errorf("a status: %v", err)
	}
	if err := w.CoreV1().Pods(ns).EvictV1(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: ns}}); err != nil {
		t.Errorf("an eviction: %v", err)
	}
	if _, err := w.CoordinationV1().Leases(ns).Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "l"}}, metav1.CreateOptions{}); err != nil {
		t.Errorf("a lease: %v", err)
	}
	if err := w.CoreV1().Namespaces().Delete(ctx, ns, metav1.DeleteOptions{}); err != nil {
		t.Errorf("a namespace: %v", err)
	}
	kinds := map[string]bool{}
	for _, a := range h.take() {
		kinds[a.request.Kind.Kind+"/"+a.request.SubResource] = true
	}
	for _, want := range []string{"CustomResourceDefinition/", "TokenRequest/token", "Pod/", "Binding/binding", "Pod/status", "Eviction/eviction", "Lease/", "Namespace/"} {
		if !kinds[want] {
			t.Errorf("nobody asked about %s, only about %v", want, kinds)
		}
	}
}
