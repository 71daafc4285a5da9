package custom_test

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"gantry.dev/gantry/internal/gantrytest"
)

// endpoints has two versions: v1 knows host and port apart, v2 as one field.
const endpointsDefinition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: targets.net.example.com}
spec:
  group: net.example.com
  scope: Namespaced
  names: {plural: targets, singular: target, kind: Target}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          host: {type: string}
          port: {type: string}
          labels: {type: object, additionalProperties: {type: string}}
  - name: v2
    served: true
    storage: false
    selectableFields: [{jsonPath: .hostPort}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          hostPort: {type: string}
          weight: {type: integer, default: 5}
          labels: {type: object, additionalProperties: {type: string}}
`

var (
	targetsV1 = schema.GroupVersionResource{Group: "net.example.com", Version: "v1", Resource: "targets"}
	targetsV2 = schema.GroupVersionResource{Group: "net.example.com", Version: "v2", Resource: "targets"}
)

func target(version, name string, fields map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "net.example.com/" + version, "kind": "Target", "metadata": map[string]any{"name": name},
	}}
	for key, value := range fields {
		u.Object[key] = value
	}
	return u
}

func TestConversionNone(t *testing.T) {
	c := start(t, gantrytest.Options{})
	crd := c.define(t, endpointsDefinition)
	if !slices.Equal(crd.Status.StoredVersions, []string{"v1"}) {
		t.Errorf("storedVersions are %v", crd.Status.StoredVersions)
	}
	if _, err := c.of(targetsV1).Create(t.Context(), target("v1", "a", map[string]any{"host": "h", "port": "1"}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := c.of(targetsV2).Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil || got.GetAPIVersion() != "net.example.com/v2" || got.Object["host"] != nil {
		t.Fatalf("v2 shows %v, %v", got, err)
	}
	if _, err := c.of(targetsV2).Create(t.Context(), target("v1", "b", nil), metav1.CreateOptions{}); !apierrors.IsBadRequest(err) {
		t.Errorf("an object of another version was taken: %v", err)
	}
	// The storage version moves on: new objects are stored in v2, old ones are still read.
	c.update(t, crd.Name, func(crd *apiextensionsv1.CustomResourceDefinition) {
		crd.Spec.Versions[0].Storage, crd.Spec.Versions[1].Storage = false, true
	})
	c.Eventually("both versions were stored", func() error {
		crd := c.established(t, crd.Name)
		if !slices.Equal(crd.Status.StoredVersions, []string{"v1", "v2"}) {
			return fmt.Errorf("storedVersions are %v", crd.Status.StoredVersions)
		}
		return nil
	})
	if _, err := c.of(targetsV2).Create(t.Context(), target("v2", "b", map[string]any{"hostPort": "h:2"}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	list, err := c.of(targetsV1).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 2 || list.Items[0].GetAPIVersion() != "net.example.com/v1" || list.Items[1].GetAPIVersion() != "net.example.com/v1" ||
		list.Items[0].Object["host"] != "h" {
		t.Errorf("v1 lists %v, %v", list, err)
	}
	// A version that is not served any more is gone.
	c.update(t, crd.Name, func(crd *apiextensionsv1.CustomResourceDefinition) { crd.Spec.Versions[0].Served = false })
	c.Eventually("v1 is gone", func() error {
		if code, _ := c.do(t, http.MethodGet, "/apis/net.example.com/v1/targets", ""); code != http.StatusNotFound {
			return fmt.Errorf("code %d", code)
		}
		return nil
	})
	var group metav1.APIGroup
	c.document(t, "/apis/net.example.com", &group)
	if len(group.Versions) != 1 || group.PreferredVersion.Version != "v2" {
		t.Errorf("discovery shows %+v", group)
	}
}

// webhook converts targets as their definition means it.
func webhook(t *testing.T, calls, objects *atomic.Int64, broken *atomic.Bool) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		var review apiextensionsv1.ConversionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		review.Response = &apiextensionsv1.ConversionResponse{UID: review.Request.UID, Result: metav1.Status{Status: metav1.StatusSuccess}}
		if broken.Load() {
			review.Response.Result = metav1.Status{Status: metav1.StatusFailure, Message: "out of order"}
		}
		for _, raw := range review.Request.Objects {
			objects.Add(1)
			var u unstructured.Unstructured
			if err := u.UnmarshalJSON(raw.Raw); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			convertTarget(&u, review.Request.DesiredAPIVersion)
			review.Response.ConvertedObjects = append(review.Response.ConvertedObjects, runtime.RawExtension{Object: &u})
		}
		review.Request = nil
		_ = json.NewEncoder(w).Encode(&review)
	}))
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

func convertTarget(u *unstructured.Unstructured, version string) {
	if strings.HasSuffix(version, "/v2") {
		host, _ := u.Object["host"].(string)
		port, _ := u.Object["port"].(string)
		u.Object["hostPort"] = host + ":" + port
		delete(u.Object, "host")
		delete(u.Object, "port")
	} else {
		hostPort, _ := u.Object["hostPort"].(string)
		u.Object["host"], u.Object["port"], _ = strings.Cut(hostPort, ":")
		delete(u.Object, "hostPort")
		delete(u.Object, "weight")
	}
	u.SetAPIVersion(version)
}

func TestConversionWebhook(t *testing.T) {
	c := start(t, gantrytest.Options{})
	var calls, objects atomic.Int64
	var broken atomic.Bool
	server := webhook(t, &calls, &objects, &broken)
	crd := parse(t, endpointsDefinition)
	url := server.URL
	crd.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.WebhookConverter, Webhook: &apiextensionsv1.WebhookConversion{
		ConversionReviewVersions: []string{"v1"},
		ClientConfig: &apiextensionsv1.WebhookClientConfig{URL: &url,
			CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate(server.TLS)})},
	}}
	if _, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), crd, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.established(t, crd.Name)
	v1, v2 := c.of(targetsV1), c.of(targetsV2)
	for i := range 5 {
		if _, err := v1.Create(t.Context(), target("v1", fmt.Sprintf("t%d", i), map[string]any{"host": "h", "port": fmt.Sprint(i)}), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if calls.Load() != 0 {
		t.Errorf("%d calls for the stored version", calls.Load())
	}
	list, err := v2.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 5 || list.Items[3].Object["hostPort"] != "h:3" {
		t.Fatalf("v2 lists %v, %v", list, err)
	}
	if calls.Load() != 1 || objects.Load() != 5 {
		t.Errorf("a list took %d calls for %d objects, want one call", calls.Load(), objects.Load())
	}
	if got, err := v2.Get(t.Context(), "t1", metav1.GetOptions{}); err != nil || got.Object["hostPort"] != "h:1" || calls.Load() != 1 {
		t.Errorf("Get = %v, %v after %d calls", got, err, calls.Load())
	}
	// Selectable fields are those of the version asked, also in a watch.
	selected, err := v2.List(t.Context(), metav1.ListOptions{FieldSelector: "hostPort=h:2"})
	if err != nil || len(selected.Items) != 1 || selected.Items[0].GetName() != "t2" {
		t.Errorf("selected %v, %v", selected, err)
	}
	w, err := v2.Watch(t.Context(), metav1.ListOptions{FieldSelector: "hostPort=new:1"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	made, err := v2.Create(t.Context(), target("v2", "new", map[string]any{"hostPort": "new:1"}), metav1.CreateOptions{})
	if err != nil || made.Object["hostPort"] != "new:1" {
		t.Fatalf("Create through v2 = %v, %v", made, err)
	}
	if seen := await(t, w, watch.Added, "new"); seen.Object["hostPort"] != "new:1" {
		t.Errorf("the watch shows %v", seen)
	}
	stored, err := v1.Get(t.Context(), "new", metav1.GetOptions{})
	if err != nil || stored.Object["host"] != "new" || stored.Object["port"] != "1" {
		t.Errorf("v1 shows %v, %v", stored, err)
	}
	if _, err := v1.Patch(t.Context(), "new", types.MergePatchType, []byte(`{"port":"2"}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, w, watch.Deleted, "new") // it left the selection
	apply := func(resource schema.GroupVersionResource, manager string, u *unstructured.Unstructured, force bool) error {
		_, err := c.of(resource).Apply(t.Context(), u.GetName(), u, metav1.ApplyOptions{FieldManager: manager, Force: force})
		return err
	}
	if err := apply(targetsV2, "ann", target("v2", "applied", map[string]any{"hostPort": "a:1"}), false); err != nil {
		t.Fatal(err)
	}
	if err := apply(targetsV1, "bob", target("v1", "applied", map[string]any{"host": "b"}), false); !apierrors.IsConflict(err) {
		t.Errorf("bob took ann's field through another version: %v", err)
	}
	broken.Store(true)
	if _, err := v2.Create(t.Context(), target("v2", "never", nil), metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("a create through a broken webhook: %v", err)
	}
	if _, err := v1.Get(t.Context(), "new", metav1.GetOptions{}); err != nil {
		t.Errorf("the stored version needs no webhook: %v", err)
	}
}

func certificate(config *tls.Config) []byte { return config.Certificates[0].Certificate[0] }

func TestASchemaThatChanges(t *testing.T) {
	c := start(t, gantrytest.Options{})
	crd := c.define(t, cronTabs)
	tabs := c.of(cronTab)
	if _, err := tabs.Create(t.Context(), newCronTab("a", map[string]any{"replicas": int64(1), "color": "red"}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w, err := tabs.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.update(t, crd.Name, func(crd *apiextensionsv1.CustomResourceDefinition) {
		spec := crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
		spec.Properties["added"] = apiextensionsv1.JSONSchemaProps{Type: "string", Default: &apiextensionsv1.JSON{Raw: []byte(`"later"`)}}
		replicas := spec.Properties["replicas"]
		five := 5.0
		replicas.Minimum = &five
		spec.Properties["replicas"] = replicas
		crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"] = spec
	})
	for range w.ResultChan() { // a watch of the old schema ends
		continue
	}
	c.Eventually("the new default shows in what was stored before", func() error {
		got, err := tabs.Get(t.Context(), "a", metav1.GetOptions{})
		if err == nil && nested(t, got, "spec", "added") != "later" {
			err = fmt.Errorf("spec is %v", got.Object["spec"])
		}
		return err
	})
	// Ratcheting: what was valid and does not change stays, what changes must be valid now.
	if _, err := tabs.Patch(t.Context(), "a", types.MergePatchType, []byte(`{"spec":{"color":"blue"}}`), metav1.PatchOptions{}); err != nil {
		t.Errorf("a change beside an old value: %v", err)
	}
	if _, err := tabs.Patch(t.Context(), "a", types.MergePatchType, []byte(`{"spec":{"replicas":2}}`), metav1.PatchOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a new value that is invalid: %v", err)
	}
}

func TestDeprecatedVersionWarns(t *testing.T) {
	c := start(t, gantrytest.Options{})
	crd := parse(t, endpointsDefinition)
	crd.Spec.Versions[0].Deprecated = true
	if _, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), crd, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.established(t, crd.Name)
	c.warnings.take()
	if _, err := c.of(targetsV1).List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := c.warnings.take(); !slices.Equal(got, []string{"net.example.com/v1 Target is deprecated; use net.example.com/v2 Target"}) {
		t.Errorf("warnings are %q", got)
	}
}

func TestNames(t *testing.T) {
	c := start(t, gantrytest.Options{})
	c.define(t, endpointsDefinition)
	crds := c.crds.ApiextensionsV1().CustomResourceDefinitions()
	rival := parse(t, strings.NewReplacer("plural: targets", "plural: rivals", "targets.net", "rivals.net", "singular: target", "singular: rival").Replace(endpointsDefinition))
	if _, err := crds.Create(t.Context(), rival, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	refused := func(crd *apiextensionsv1.CustomResourceDefinition) error {
		for _, condition := range crd.Status.Conditions {
			if condition.Type == apiextensionsv1.NamesAccepted && condition.Reason == "ListKindConflict" && condition.Status == apiextensionsv1.ConditionFalse {
				return nil
			}
		}
		return fmt.Errorf("conditions are %+v", crd.Status.Conditions)
	}
	c.Eventually("the kind is taken", func() error {
		crd, err := crds.Get(t.Context(), rival.Name, metav1.GetOptions{})
		return errors.Join(err, refused(crd))
	})
	if err := crds.Delete(t.Context(), "targets.net.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.established(t, rival.Name) // the names are free now
	unapproved := parse(t, strings.NewReplacer("net.example.com", "net.k8s.io").Replace(endpointsDefinition))
	if _, err := crds.Create(t.Context(), unapproved, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a group of Kubernetes' own without approval: %v", err)
	}
	unapproved.Annotations = map[string]string{apiextensionsv1.KubeAPIApprovedAnnotation: "unapproved, a test"}
	if _, err := crds.Create(t.Context(), unapproved, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	got := c.established(t, "targets.net.k8s.io")
	if i := slices.IndexFunc(got.Status.Conditions, func(condition apiextensionsv1.CustomResourceDefinitionCondition) bool {
		return condition.Type == apiextensionsv1.KubernetesAPIApprovalPolicyConformant
	}); i < 0 || got.Status.Conditions[i].Reason != "UnapprovedAnnotation" {
		t.Errorf("conditions are %+v", got.Status.Conditions)
	}
}
