package custom_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"

	"gantry.dev/gantry/internal/gantrytest"
)

func TestServerSideApply(t *testing.T) {
	c := start(t, gantrytest.Options{})
	c.define(t, cronTabs)
	tabs := c.of(cronTab)
	apply := func(manager string, force bool, spec map[string]any) (*unstructured.Unstructured, error) {
		return tabs.Apply(t.Context(), "a", newCronTab("a", spec), metav1.ApplyOptions{FieldManager: manager, Force: force})
	}
	ports := func(names ...any) []any {
		var out []any
		for _, name := range names {
			out = append(out, map[string]any{"name": name, "number": int64(1)})
		}
		return out
	}
	made, err := apply("ann", false, map[string]any{"image": "i", "ports": ports("web")})
	if err != nil || made.GetManagedFields()[0].Operation != metav1.ManagedFieldsOperationApply {
		t.Fatalf("Apply = %v, %v", made, err)
	}
	if _, err := apply("bob", false, map[string]any{"image": "j"}); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), ".spec.image") {
		t.Errorf("bob took ann's field: %v", err)
	}
	both, err := apply("bob", false, map[string]any{"ports": ports("metrics"), "replicas": int64(3)})
	if err != nil || len(nested(t, both, "spec", "ports").([]any)) != 2 {
		t.Fatalf("lists of keyed items are merged: %v, %v", both, err)
	}
	if got, err := apply("bob", true, map[string]any{"image": "j"}); err != nil || nested(t, got, "spec", "image") != "j" || len(nested(t, got, "spec", "ports").([]any)) != 1 ||
		nested(t, got, "spec", "replicas") != nil {
		t.Errorf("by force, and what bob left out goes: %v, %v", got, err)
	}
	if _, err := apply("ann", true, map[string]any{"nowhere": int64(1)}); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a field that the schema does not have: %v", err)
	}
	if got, err := tabs.ApplyStatus(t.Context(), "a", &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": map[string]any{"name": "a"}, "status": map[string]any{"phase": "Ready"},
	}}, metav1.ApplyOptions{FieldManager: "controller"}); err != nil || nested(t, got, "status", "phase") != "Ready" {
		t.Errorf("ApplyStatus = %v, %v", got, err)
	}
}

func TestScale(t *testing.T) {
	c := start(t, gantrytest.Options{})
	c.define(t, cronTabs)
	tabs := c.of(cronTab)
	path := "/apis/stable.example.com/v1/namespaces/default/crontabs/"
	for name, spec := range map[string]map[string]any{"with": {"replicas": int64(2)}, "without": {}} {
		if _, err := tabs.Create(t.Context(), newCronTab(name, spec), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var scale autoscalingv1.Scale
	c.document(t, path+"with/scale", &scale)
	if scale.Spec.Replicas != 2 || scale.Kind != "Scale" || scale.APIVersion != "autoscaling/v1" || scale.UID == "" {
		t.Errorf("scale is %+v", scale)
	}
	if code, body := c.do(t, http.MethodGet, path+"without/scale", ""); code != http.StatusInternalServerError || !strings.Contains(body, "the spec replicas field") {
		t.Errorf("scale without replicas: %d %s", code, body)
	}
	patched, err := tabs.Patch(t.Context(), "without", types.MergePatchType, []byte(`{"spec":{"replicas":4}}`), metav1.PatchOptions{}, "scale")
	if err != nil || nested(t, patched, "spec", "replicas") != int64(4) {
		t.Fatalf("patching the scale = %v, %v", patched, err)
	}
	scale.Spec.Replicas = 3
	data, err := json.Marshal(scale)
	if err != nil {
		t.Fatal(err)
	}
	if code, body := c.do(t, http.MethodPut, path+"with/scale", string(data), "Content-Type", "application/json"); code != http.StatusOK {
		t.Errorf("updating the scale: %d %s", code, body)
	}
	got, err := tabs.Get(t.Context(), "with", metav1.GetOptions{})
	if err != nil || nested(t, got, "spec", "replicas") != int64(3) {
		t.Fatalf("after the update: %v, %v", got, err)
	}
	if !slices.ContainsFunc(got.GetManagedFields(), func(e metav1.ManagedFieldsEntry) bool { return e.Subresource == "scale" }) {
		t.Errorf("managers are %v", got.GetManagedFields())
	}
	if _, err := tabs.Patch(t.Context(), "with", types.MergePatchType, []byte(`{"spec":{"replicas":-1}}`), metav1.PatchOptions{}, "scale"); !apierrors.IsInvalid(err) {
		t.Errorf("a negative scale: %v", err)
	}
}

func TestSelectionAndShapes(t *testing.T) {
	c := start(t, gantrytest.Options{})
	c.define(t, cronTabs)
	tabs := c.of(cronTab)
	w, err := tabs.Watch(t.Context(), metav1.ListOptions{FieldSelector: "spec.color=red"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for name, color := range map[string]string{"a": "red", "b": "blue", "c": "blue"} {
		u := newCronTab(name, map[string]any{"color": color, "cronSpec": "* * * * *", "replicas": int64(1)})
		u.SetLabels(map[string]string{"color": color})
		if _, err := tabs.Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	await(t, w, watch.Added, "a")
	for selector, want := range map[string]int{"spec.color=blue": 2, "spec.color!=blue": 1, "metadata.name=a": 1, "spec.color=blue,metadata.name=a": 0} {
		if list, err := tabs.List(t.Context(), metav1.ListOptions{FieldSelector: selector}); err != nil || len(list.Items) != want {
			t.Errorf("%s selects %d, %v; want %d", selector, len(list.Items), err, want)
		}
	}
	if _, err := tabs.List(t.Context(), metav1.ListOptions{FieldSelector: "spec.image=x"}); !apierrors.IsBadRequest(err) {
		t.Errorf("a field that is not selectable: %v", err)
	}
	if _, err := tabs.Patch(t.Context(), "a", types.MergePatchType, []byte(`{"spec":{"color":"blue"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, w, watch.Deleted, "a")
	if page, err := tabs.List(t.Context(), metav1.ListOptions{Limit: 2}); err != nil || len(page.Items) != 2 || page.GetContinue() == "" {
		t.Errorf("a page is %v, %v", page, err)
	}
	code, body := c.do(t, http.MethodGet, "/apis/stable.example.com/v1/crontabs", "", "Accept", "application/json;as=Table;g=meta.k8s.io;v=v1")
	var table metav1.Table
	if err := json.Unmarshal([]byte(body), &table); err != nil || code != http.StatusOK {
		t.Fatal(code, err)
	}
	if len(table.ColumnDefinitions) != 3 || table.ColumnDefinitions[1].Name != "Spec" || len(table.Rows) != 3 || table.Rows[0].Cells[1] != "* * * * *" || table.Rows[0].Cells[2] != float64(1) {
		t.Errorf("the table is %s", body)
	}
	meta, err := metadata.NewForConfig(c.config)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := meta.Resource(cronTab).Namespace("default").List(t.Context(), metav1.ListOptions{LabelSelector: "color=red"}); err != nil || len(list.Items) != 1 || list.Items[0].Name != "a" {
		t.Errorf("metadata lists %v, %v", list, err)
	}
	if err := tabs.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "color=blue"}); err != nil {
		t.Fatal(err)
	}
	if list, err := tabs.List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) != 1 {
		t.Errorf("%d are left, %v", len(list.Items), err)
	}
}

func TestDiscoveryAndOpenAPI(t *testing.T) {
	c := start(t, gantrytest.Options{})
	tag := func() string {
		t.Helper()
		_, body := c.do(t, http.MethodGet, "/openapi/v3", "")
		return body
	}
	before := tag()
	crd := c.define(t, cronTabs)
	var resources metav1.APIResourceList
	c.document(t, "/apis/stable.example.com/v1", &resources)
	names := make([]string, 0, len(resources.APIResources))
	for _, r := range resources.APIResources {
		names = append(names, r.Name)
	}
	if !slices.Equal(names, []string{"crontabs", "crontabs/scale", "crontabs/status"}) || !slices.Equal(resources.APIResources[0].ShortNames, []string{"ct"}) ||
		!slices.Equal(resources.APIResources[0].Categories, []string{"all", "jobs"}) {
		t.Errorf("discovery has %+v", resources.APIResources)
	}
	code, body := c.do(t, http.MethodGet, "/apis", "", "Accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
	if code != http.StatusOK || !strings.Contains(body, `"stable.example.com"`) || !strings.Contains(body, `"resource":"crontabs"`) {
		t.Errorf("aggregated discovery: %d, has no crontabs", code)
	}
	if tag() == before {
		t.Error("the index of OpenAPI v3 did not change")
	}
	var v3 struct {
		Components struct {
			Schemas map[string]map[string]any `json:"schemas"`
		} `json:"components"`
		Paths map[string]any `json:"paths"`
	}
	c.document(t, "/openapi/v3/apis/stable.example.com/v1", &v3)
	if s := v3.Components.Schemas["com.example.stable.v1.CronTab"]; s == nil || s["description"] != "A table of jobs." {
		t.Errorf("OpenAPI v3 has the schema %v", s)
	}
	if v3.Paths["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}/scale"] == nil {
		t.Error("OpenAPI v3 lacks the scale subresource")
	}
	var v2 struct {
		Definitions map[string]map[string]any `json:"definitions"`
		Paths       map[string]any            `json:"paths"`
	}
	c.document(t, "/openapi/v2", &v2)
	if s := v2.Definitions["com.example.stable.v1.CronTab"]; s == nil || v2.Definitions["io.k8s.api.core.v1.Pod"] == nil || v2.Paths["/apis/stable.example.com/v1/crontabs"] == nil {
		t.Errorf("OpenAPI v2 has the schema %v", s)
	}
	if err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Delete(t.Context(), crd.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.gone(t, crd.Name)
	c.Eventually("OpenAPI forgets it", func() error {
		_, v3 := c.do(t, http.MethodGet, "/openapi/v3", "")
		_, v2 := c.do(t, http.MethodGet, "/openapi/v2", "")
		_, groups := c.do(t, http.MethodGet, "/apis", "")
		for name, text := range map[string]string{"v3": v3, "v2": v2, "groups": groups} {
			if strings.Contains(text, "stable.example.com") {
				return fmt.Errorf("%s still has it", name)
			}
		}
		return nil
	})
}

func TestPreserveUnknownFieldsAndClusterScope(t *testing.T) {
	c := start(t, gantrytest.Options{})
	crd := parse(t, strings.NewReplacer("scope: Namespaced", "scope: Cluster").Replace(endpointsDefinition))
	schema := crd.Spec.Versions[0].Schema.OpenAPIV3Schema
	yes := true
	schema.XPreserveUnknownFields = &yes
	if _, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), crd, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.established(t, crd.Name)
	made, err := c.dynamic.Resource(targetsV1).Create(t.Context(), target("v1", "a", map[string]any{"anything": map[string]any{"goes": true}}), metav1.CreateOptions{})
	if err != nil || nested(t, made, "anything", "goes") != true {
		t.Errorf("Create = %v, %v", made, err)
	}
	if code, _ := c.do(t, http.MethodGet, "/apis/net.example.com/v1/namespaces/default/targets", ""); code != http.StatusNotFound {
		t.Errorf("a cluster-wide kind in a namespace: %d", code)
	}
	invalid := parse(t, endpointsDefinition)
	invalid.Name, invalid.Spec.Names.Plural = "others.net.example.com", "others"
	invalid.Spec.PreserveUnknownFields = true
	if _, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), invalid, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("preserveUnknownFields: %v", err)
	}
	invalid.Spec.PreserveUnknownFields = false
	invalid.Spec.Versions[0].Schema.OpenAPIV3Schema.XValidations = apiextensionsv1.ValidationRules{{Rule: "self.nonsense("}}
	if _, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), invalid, metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "compilation failed") {
		t.Errorf("a CEL rule that does not compile: %v", err)
	}
}

// TestKubectl uses the kubectl beside the program, if there is one.
func TestKubectl(t *testing.T) {
	_, here, _, _ := runtime.Caller(0)
	kubectl := filepath.Join(filepath.Dir(here), "../../../bin/kubectl")
	if named := os.Getenv("KUBECTL"); named != "" {
		kubectl = named
	}
	if _, err := os.Stat(kubectl); err != nil {
		t.Skip("there is no kubectl: ", kubectl)
	}
	c := start(t, gantrytest.Options{})
	dir := t.TempDir()
	config, err := yaml.Marshal(clientcmdapi.Config{
		Kind: "Config", APIVersion: "v1", CurrentContext: "c",
		Clusters:  []clientcmdapi.NamedCluster{{Name: "c", Cluster: clientcmdapi.Cluster{Server: c.config.Host, InsecureSkipTLSVerify: true}}},
		AuthInfos: []clientcmdapi.NamedAuthInfo{{Name: "c", AuthInfo: clientcmdapi.AuthInfo{Token: c.config.BearerToken}}},
		Contexts:  []clientcmdapi.NamedContext{{Name: "c", Context: clientcmdapi.Context{Cluster: "c", AuthInfo: "c"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	kubeconfig := write("config", string(config))
	run := func(want string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), kubectl, args...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "HOME="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("kubectl %s: %v, %q is not in\n%s", strings.Join(args, " "), err, want, out)
		}
	}
	crd := write("crd.yaml", cronTabs)
	cr := write("cr.yaml", "apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {name: mine}\nspec: {cronSpec: '* * * * */5', replicas: 2}\n")
	run("created", "apply", "-f", crd)
	run("condition met", "wait", "--for=condition=Established", "crd/crontabs.stable.example.com", "--timeout=30s")
	run("crontab.stable.example.com/mine created", "apply", "-f", cr)
	run("crontab.stable.example.com/mine unchanged", "apply", "-f", cr)
	run("serverside-applied", "apply", "--server-side", "--force-conflicts", "-f", cr)
	run("* * * * */5", "get", "ct")
	run("crontab.stable.example.com/mine", "get", "all", "-o", "name")
	run("cronSpec", "explain", "crontab.spec")
	run("A table of jobs.", "explain", "crontabs", "--output=plaintext-openapiv2")
	run("scaled", "scale", "crontab/mine", "--replicas=3")
	run("Replicas", "describe", "crontab", "mine")
	run("patched", "patch", "crontab", "mine", "--type=merge", "-p", `{"spec":{"image":"x"}}`)
	run("deleted", "delete", "-f", cr, "-f", crd)
}
