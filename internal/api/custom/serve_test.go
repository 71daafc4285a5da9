package custom_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"gantry.dev/gantry/internal/gantrytest"
)

const cronTabs = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.stable.example.com}
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct], categories: [all, jobs]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.selector}
    selectableFields: [{jsonPath: .spec.color}]
    additionalPrinterColumns:
    - {name: Spec, type: string, jsonPath: .spec.cronSpec}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    schema:
      openAPIV3Schema:
        type: object
        description: A table of jobs.
        properties:
          spec:
            type: object
            x-kubernetes-validations:
            - {rule: "!has(self.replicas) || self.replicas <= self.max", message: "replicas must not exceed max"}
            properties:
              cronSpec: {type: string, pattern: '^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$'}
              image: {type: string}
              color: {type: string}
              replicas: {type: integer, minimum: 0}
              max: {type: integer, default: 10}
              port: {x-kubernetes-int-or-string: true}
              note: {type: string, nullable: true}
              mode: {type: string, default: quick}
              tags: {type: array, x-kubernetes-list-type: set, items: {type: string}}
              ports:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items:
                  type: object
                  required: [name]
                  properties: {name: {type: string}, number: {type: integer}}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
              template: {type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}
          status:
            type: object
            properties:
              replicas: {type: integer}
              selector: {type: string}
              phase: {type: string}
`

var cronTab = schema.GroupVersionResource{Group: "stable.example.com", Version: "v1", Resource: "crontabs"}

func newCronTab(name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": map[string]any{"name": name}, "spec": spec,
	}}
}

func nested(t *testing.T, u *unstructured.Unstructured, path ...string) any {
	t.Helper()
	value, _, err := unstructured.NestedFieldNoCopy(u.Object, path...)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestServedWithinASecond(t *testing.T) {
	c := start(t, gantrytest.Options{})
	crd, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), parse(t, cronTabs), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	within(t, time.Second, "a list of the new kind", func() error {
		_, err := c.of(cronTab).List(t.Context(), metav1.ListOptions{})
		return err
	})
	within(t, time.Second, "established", func() error {
		got, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Get(t.Context(), crd.Name, metav1.GetOptions{})
		if err == nil && !apihelpers.IsCRDConditionTrue(got, apiextensionsv1.Established) {
			return errPending
		}
		return err
	})
	got := c.established(t, crd.Name)
	if !slices.Equal(got.Status.StoredVersions, []string{"v1"}) || got.Status.AcceptedNames.ListKind != "CronTabList" ||
		!apihelpers.IsCRDConditionTrue(got, apiextensionsv1.NamesAccepted) {
		t.Errorf("status is %+v", got.Status)
	}
}

func TestLifeOfACustomResource(t *testing.T) {
	c := start(t, gantrytest.Options{})
	c.define(t, cronTabs)
	tabs := c.of(cronTab)
	w, err := tabs.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()

	made, err := tabs.Create(t.Context(), newCronTab("a", map[string]any{
		"cronSpec": "* * * * */5", "replicas": int64(2), "unknown": "gone", "port": "http", "free": map[string]any{"any": "thing"},
		"template": map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "p", "odd": true}, "spec": map[string]any{"x": int64(1)}},
	}), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if nested(t, made, "spec", "unknown") != nil || nested(t, made, "spec", "mode") != "quick" || nested(t, made, "spec", "max") != int64(10) ||
		nested(t, made, "spec", "port") != "http" || nested(t, made, "spec", "free", "any") != "thing" ||
		nested(t, made, "spec", "template", "metadata", "odd") != nil || nested(t, made, "spec", "template", "spec", "x") != int64(1) {
		t.Errorf("pruning and defaults made %v", made.Object["spec"])
	}
	if made.GetGeneration() != 1 || made.GetUID() == "" || made.GetManagedFields()[0].Manager != "customtest" {
		t.Errorf("metadata is %v", made.Object["metadata"])
	}
	await(t, w, watch.Added, "a")

	made.Object["status"] = map[string]any{"phase": "ignored"}
	if err := unstructured.SetNestedField(made.Object, "red", "spec", "color"); err != nil {
		t.Fatal(err)
	}
	updated, err := tabs.Update(t.Context(), made, metav1.UpdateOptions{})
	if err != nil || updated.GetGeneration() != 2 || updated.Object["status"] != nil {
		t.Fatalf("Update = %v, %v", updated, err)
	}
	await(t, w, watch.Modified, "a")
	if _, err := tabs.Update(t.Context(), made, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("an update of an old revision: %v", err)
	}
	unversioned := updated.DeepCopy()
	unversioned.SetResourceVersion("")
	if _, err := tabs.Update(t.Context(), unversioned, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("an update without a revision: %v", err)
	}
	updated.Object["status"] = map[string]any{"phase": "Running", "replicas": int64(1), "selector": "app=a"}
	if err := unstructured.SetNestedField(updated.Object, "blue", "spec", "color"); err != nil {
		t.Fatal(err)
	}
	status, err := tabs.UpdateStatus(t.Context(), updated, metav1.UpdateOptions{})
	if err != nil || nested(t, status, "status", "phase") != "Running" || nested(t, status, "spec", "color") != "red" || status.GetGeneration() != 2 {
		t.Fatalf("UpdateStatus = %v, %v", status, err)
	}
	await(t, w, watch.Modified, "a")

	for kind, patch := range map[types.PatchType]string{
		types.MergePatchType: `{"spec":{"image":"m"}}`,
		types.JSONPatchType:  `[{"op":"add","path":"/spec/image","value":"j"}]`,
	} {
		got, err := tabs.Patch(t.Context(), "a", kind, []byte(patch), metav1.PatchOptions{})
		if err != nil || !strings.Contains(patch, fmt.Sprintf("%q", nested(t, got, "spec", "image"))) {
			t.Errorf("%s = %v, %v", kind, got, err)
		}
		await(t, w, watch.Modified, "a")
	}
	if _, err := tabs.Patch(t.Context(), "a", types.StrategicMergePatchType, []byte(`{}`), metav1.PatchOptions{}); !apierrors.IsUnsupportedMediaType(err) {
		t.Errorf("a strategic merge patch: %v", err)
	}
	if _, err := tabs.Create(t.Context(), newCronTab("b", nil), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		t.Errorf("dry run: %v", err)
	}
	if _, err := tabs.Get(t.Context(), "b", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a dry run stored: %v", err)
	}
	if err := tabs.Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, w, watch.Deleted, "a")
}

// await reads events until the one wanted.
func await(t *testing.T, w watch.Interface, kind watch.EventType, name string) *unstructured.Unstructured {
	t.Helper()
	select {
	case event, open := <-w.ResultChan():
		u, ok := event.Object.(*unstructured.Unstructured)
		if !open || event.Type != kind || !ok || u.GetName() != name {
			t.Fatalf("event %s %+v (open %v), want %s %q", event.Type, event.Object, open, kind, name)
		}
		return u
	case <-time.After(20 * time.Second):
		t.Fatalf("no %s event", kind)
	}
	return nil
}

func TestValidation(t *testing.T) {
	c := start(t, gantrytest.Options{})
	c.define(t, cronTabs)
	tabs := c.of(cronTab)
	for name, tc := range map[string]struct {
		spec map[string]any
		want string
	}{
		"pattern":       {map[string]any{"cronSpec": "nonsense"}, "spec.cronSpec in body should match"},
		"type":          {map[string]any{"replicas": "two"}, "must be of type integer"},
		"minimum":       {map[string]any{"replicas": int64(-1)}, "should be greater than or equal to 0"},
		"CEL rule":      {map[string]any{"replicas": int64(11)}, "replicas must not exceed max"},
		"set":           {map[string]any{"tags": []any{"a", "a"}}, "Duplicate value"},
		"map":           {map[string]any{"ports": []any{map[string]any{"name": "x"}, map[string]any{"name": "x"}}}, "Duplicate value"},
		"embedded":      {map[string]any{"template": map[string]any{"spec": map[string]any{}}}, "spec.template.kind: Required value"},
		"int or string": {map[string]any{"port": true}, "must be of type integer"},
		"nullable":      {map[string]any{"note": nil}, ""},
	} {
		_, err := tabs.Create(t.Context(), newCronTab(strings.ReplaceAll(strings.ToLower(name), " ", "-"), tc.spec), metav1.CreateOptions{})
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.want != "" && (!apierrors.IsInvalid(err) || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	c.warnings.take()
	unknown := newCronTab("w", map[string]any{"extra": int64(1)})
	if _, err := tabs.Create(t.Context(), unknown, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}); !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), `unknown field "spec.extra"`) {
		t.Errorf("strict: %v", err)
	}
	if _, err := tabs.Create(t.Context(), unknown, metav1.CreateOptions{FieldValidation: metav1.FieldValidationWarn}); err != nil {
		t.Errorf("warn: %v", err)
	}
	if got := c.warnings.take(); !slices.Contains(got, `unknown field "spec.extra"`) {
		t.Errorf("warnings are %q", got)
	}
	path := "/apis/stable.example.com/v1/namespaces/default/crontabs"
	if code, body := c.do(t, http.MethodPost, path+"?fieldValidation=Strict", `{"apiVersion":"stable.example.com/v1","kind":"CronTab","metadata":{"name":"d"},"spec":{"image":"a","image":"b"}}`,
		"Content-Type", "application/json"); code != http.StatusBadRequest || !strings.Contains(body, `duplicate field`) {
		t.Errorf("a duplicate field: %d %s", code, body)
	}
	patchPath := path + "/w?fieldValidation=Strict"
	if code, body := c.do(t, http.MethodPatch, patchPath, `{"spec":{"more":1}}`, "Content-Type", "application/merge-patch+json"); code != http.StatusUnprocessableEntity || !strings.Contains(body, "unknown field") {
		t.Errorf("a strict patch: %d %s", code, body)
	}
	if code, body := c.do(t, http.MethodPost, path, "apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {name: yy}\nspec: {image: x}\n", "Content-Type", "application/yaml", "Accept", "application/yaml"); code != http.StatusCreated || !strings.Contains(body, "image: x") {
		t.Errorf("YAML: %d %s", code, body)
	}
	for contentType, want := range map[string]int{"application/vnd.kubernetes.protobuf": http.StatusUnsupportedMediaType} {
		if code, body := c.do(t, http.MethodPost, path, "k8s\x00", "Content-Type", contentType); code != want {
			t.Errorf("a body of %s: %d %s", contentType, code, body)
		}
	}
	for accept, want := range map[string]int{
		"application/vnd.kubernetes.protobuf":                                                     http.StatusNotAcceptable,
		"application/vnd.kubernetes.protobuf,application/json":                                    http.StatusOK,
		"application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1":     http.StatusOK,
		"application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,x/y": http.StatusOK,
	} {
		if code, body := c.do(t, http.MethodGet, path, "", "Accept", accept); code != want {
			t.Errorf("Accept %s: %d %.100s", accept, code, body)
		}
	}
}
