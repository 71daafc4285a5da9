package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"gantry.dev/gantry/internal/store"
)

// served asks discovery for every resource and subresource there is.
func (c *cluster) served(t *testing.T) map[schema.GroupVersion][]metav1.APIResource {
	t.Helper()
	out := map[schema.GroupVersion][]metav1.APIResource{}
	read := func(path string, into any) {
		w := c.do(t, "root", "GET", path, nil)
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%s: %d %v", path, w.Code, err)
		}
	}
	var groups metav1.APIGroupList
	read("/apis", &groups)
	paths := map[schema.GroupVersion]string{corev1.SchemeGroupVersion: "/api/v1"}
	for _, group := range groups.Groups {
		for _, version := range group.Versions {
			gv, _ := schema.ParseGroupVersion(version.GroupVersion)
			paths[gv] = "/apis/" + version.GroupVersion
		}
	}
	for gv, path := range paths {
		var list metav1.APIResourceList
		read(path, &list)
		out[gv] = list.APIResources
	}
	return out
}

// probe is one request of the matrix; %s in path is the object's name.
type probe struct{ method, path, contentType string }

// probes lists the ways to ask for a verb of a resource.
func probes(gv schema.GroupVersion, resource metav1.APIResource, verb string) []probe {
	path := "/apis/" + gv.String()
	if gv.Group == "" {
		path = "/api/" + gv.Version
	}
	name, sub, isSub := strings.Cut(resource.Name, "/")
	if resource.Namespaced {
		path += "/namespaces/default"
	}
	path += "/" + name
	one := path + "/%s"
	if isSub {
		one += "/" + sub
	}
	const asJSON = "application/json"
	switch verb {
	case "get":
		return []probe{{"GET", one, ""}, {"HEAD", one, ""}, {"GET", one + "?resourceVersion=0", ""}}
	case "list":
		return []probe{{"GET", path, ""}, {"GET", path + "?fieldSelector=metadata.name%%3D%s", ""}, {"GET", path + "?limit=1", ""}}
	case "watch":
		return []probe{{"GET", path + "?watch=true", ""}, {"GET", path + "?watch=1&fieldSelector=metadata.name%%3D%s", ""}, {"GET", one + "?watch=true", ""}}
	case "create":
		if isSub {
			return []probe{{"POST", one, asJSON}, {"POST", one + "?dryRun=All", asJSON}}
		}
		return []probe{{"POST", path, asJSON}, {"POST", path + "?dryRun=All", asJSON}}
	case "update":
		return []probe{{"PUT", one, asJSON}, {"PUT", one + "?dryRun=All", asJSON}}
	case "patch":
		var out []probe
		for _, patch := range []types.PatchType{types.MergePatchType, types.StrategicMergePatchType, types.JSONPatchType, types.ApplyPatchType} {
			out = append(out, probe{"PATCH", one + "?fieldManager=m", string(patch)}, probe{"PATCH", one + "?fieldManager=m&force=true&dryRun=All", string(patch)})
		}
		return out
	case "delete":
		return []probe{{"DELETE", one, ""}, {"DELETE", one + "?dryRun=All", ""}}
	case "deletecollection":
		return []probe{{"DELETE", path, ""}, {"DELETE", path + "?dryRun=All&fieldSelector=metadata.name%%3D%s", ""}}
	}
	return nil
}

// For every verb of every kind: who has no right gets 403, and the same one whether the object is there or not.
func TestMatrixWithoutRights(t *testing.T) {
	c := start(t, Options{})
	const present, absent = "present", "missing" // of one length
	asked := map[string]bool{}
	for gv, resources := range c.served(t) {
		for _, resource := range resources {
			if ep := c.routes().endpoints[gv.WithResource(resource.Name)]; ep != nil {
				c.put(t, ep, present)
			}
			if slices.Contains([]string{"authentication.k8s.io", "authorization.k8s.io"}, gv.Group) && strings.HasPrefix(resource.Name, "self") {
				continue // everyone who is known may ask about themselves
			}
			for _, verb := range resource.Verbs {
				asked[verb] = true
				ways := probes(gv, resource, verb)
				if len(ways) == 0 {
					t.Errorf("%s %s: the test does not know the verb", resource.Name, verb)
				}
				for _, way := range ways {
					for _, user := range []string{"nobody", "other"} {
						c.compare(t, user, way, present, absent)
					}
				}
			}
		}
	}
	if len(asked) != 8 {
		t.Errorf("only these verbs were asked for: %v", slices.Sorted(maps.Keys(asked)))
	}
}

// put stores an object of the kind as it is.
func (c *cluster) put(t *testing.T, ep *endpoint, name string) {
	t.Helper()
	object, ok := ep.New().(store.Object)
	if !ok || !ep.verbs["create"] || ep.Info.Kind != ep.Stored { // what is computed, and other versions of what is stored
		return
	}
	object.SetName(name)
	object.SetUID("uid")
	key := name
	if ep.Namespaced {
		object.SetNamespace("default")
		key = "default/" + name
	}
	if _, err := c.store.Create(t.Context(), ep.StoredIn(), key, object); err != nil {
		t.Errorf("storing one of %s: %v", ep.StoredIn(), err)
	}
}

// compare sends a request about an object that is there and one that is not.
func (c *cluster) compare(t *testing.T, user string, way probe, present, absent string) {
	t.Helper()
	var first string
	for _, name := range []string{present, absent} {
		path := way.path
		if strings.Contains(path, "%s") {
			path = fmt.Sprintf(path, name)
		}
		header := []string{"Audit-ID", "x"}
		if way.contentType != "" {
			header = append(header, "Content-Type", way.contentType)
		}
		w := c.do(t, user, way.method, path, strings.NewReader("{}"), header...)
		if w.Code != http.StatusForbidden {
			t.Errorf("%s %s as %s: %d %s", way.method, path, user, w.Code, w.Body)
			continue
		}
		got := fmt.Sprint(w.Header()) + strings.ReplaceAll(w.Body.String(), name, "NAME")
		if first == "" {
			first = got
		}
		if got != first {
			t.Errorf("%s %s as %s says whether the object is there:\n%s\n%s", way.method, path, user, first, got)
		}
	}
}

// A right to change objects is none to create them.
func TestCreateByUpdateNeedsTheRight(t *testing.T) {
	c := start(t, Options{})
	c.grant("editor", "", []string{"get", "update", "patch"}, []string{"configmaps"})
	c.grant("editor", "coordination.k8s.io", []string{"get", "update", "patch"}, []string{"leases"})
	const maps, leases = "/api/v1/namespaces/default/configmaps/", "/apis/coordination.k8s.io/v1/namespaces/default/leases/"
	const applied = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"
	for name, tc := range map[string]struct {
		method, path, body, contentType string
		code                            int
		say                             string
	}{
		"apply":               {"PATCH", maps + "a?fieldManager=m", applied, "application/apply-patch+yaml", 403, `configmaps "a" is forbidden: User "editor" cannot create resource "configmaps"`},
		"apply, dry run":      {"PATCH", maps + "a?fieldManager=m&dryRun=All", applied, "application/apply-patch+yaml", 403, "cannot create resource"},
		"apply, forced":       {"PATCH", maps + "a?fieldManager=m&force=true", applied, "application/apply-patch+yaml", 403, "cannot create resource"},
		"update":              {"PUT", leases + "a", `{"metadata":{"name":"a"}}`, "application/json", 403, `leases.coordination.k8s.io "a" is forbidden: User "editor" cannot create resource "leases"`},
		"update, dry run":     {"PUT", leases + "a?dryRun=All", `{"metadata":{"name":"a"}}`, "application/json", 403, "cannot create resource"},
		"merge patch":         {"PATCH", maps + "a", `{"data":{"a":"b"}}`, "application/merge-patch+json", 404, `configmaps "a" not found`},
		"no create by update": {"PUT", maps + "a", `{"metadata":{"name":"a"}}`, "application/json", 404, `configmaps "a" not found`},
	} {
		t.Run(name, func(t *testing.T) {
			w := c.do(t, "editor", tc.method, tc.path, strings.NewReader(tc.body), "Content-Type", tc.contentType)
			var status metav1.Status
			if err := json.Unmarshal(w.Body.Bytes(), &status); err != nil || w.Code != tc.code || !strings.Contains(status.Message, tc.say) {
				t.Errorf("%d %s, %v; want %d %s", w.Code, w.Body, err, tc.code, tc.say)
			}
		})
	}
	for _, path := range []string{maps + "a", leases + "a"} {
		if w := c.do(t, "root", "GET", path, nil); w.Code != 404 {
			t.Errorf("%s was made: %s", path, w.Body)
		}
	}
}

// However a delete and an apply meet, who may not create does not.
func TestApplyDoesNotRecreate(t *testing.T) {
	c := start(t, Options{})
	c.grant("editor", "", []string{"patch"}, []string{"configmaps"})
	root, err := kubernetes.NewForConfig(c.config(t, "root", "", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	for range 30 {
		if _, err := root.CoreV1().ConfigMaps("default").Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				c.do(t, "editor", "PATCH", "/api/v1/namespaces/default/configmaps/a?fieldManager=m", strings.NewReader("apiVersion: v1\nkind: ConfigMap\n"),
					"Content-Type", "application/apply-patch+yaml")
			})
		}
		if err := root.CoreV1().ConfigMaps("default").Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		group.Wait()
		if _, err := root.CoreV1().ConfigMaps("default").Get(t.Context(), "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Fatalf("after the delete: %v", err)
		}
	}
}

// Nobody gives rights that they do not have, in whatever way the role or binding is written.
func TestEscalation(t *testing.T) {
	c := start(t, Options{})
	rbac := rbacv1.GroupName
	all := []string{"roles", "rolebindings", "clusterroles", "clusterrolebindings"}
	c.grant("rita", rbac, []string{"get", "create", "update", "patch", "delete"}, all)
	c.grant("rita", "", []string{"get"}, []string{"configmaps"})
	c.grant("bill", rbac, []string{"get", "create", "update", "patch"}, all)
	c.grant("bill", rbac, []string{"escalate", "bind"}, []string{"roles", "clusterroles"})
	c.opts.Authorizer.RBAC().SetRole("", "small", []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"configmaps"}}})
	const rules = `"rules":[{"verbs":["%s"],"apiGroups":[""],"resources":["configmaps"]}]`
	const binding = `"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"%s"},"subjects":[{"kind":"User","name":"rita","apiGroup":"rbac.authorization.k8s.io"}]`
	for resource, kind := range map[string]string{"roles": "Role", "clusterroles": "ClusterRole", "rolebindings": "RoleBinding", "clusterrolebindings": "ClusterRoleBinding"} {
		t.Run(resource, func(t *testing.T) {
			path := "/apis/rbac.authorization.k8s.io/v1/" + resource
			if !strings.HasPrefix(resource, "cluster") {
				path = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/" + resource
			}
			isBinding := strings.HasSuffix(resource, "bindings")
			content := func(more bool) string {
				switch {
				case isBinding && more:
					return fmt.Sprintf(binding, "cluster-admin")
				case isBinding:
					return fmt.Sprintf(binding, "small")
				case more:
					return fmt.Sprintf(rules, "delete")
				}
				return fmt.Sprintf(rules, "get")
			}
			document := func(name string, more bool) string {
				return fmt.Sprintf(`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"%s","metadata":{"name":"%s"},%s}`, kind, name, content(more))
			}
			do := func(as, method, path, body, contentType string, code int) {
				t.Helper()
				if w := c.do(t, as, method, path, strings.NewReader(body), "Content-Type", contentType); w.Code != code {
					t.Errorf("%s as %s: %s %s: %d %s, want %d", contentType, as, method, path, w.Code, w.Body, code)
				}
			}
			const asJSON, merge, strategic, jsonPatch, apply = "application/json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/json-patch+json", "application/apply-patch+yaml"
			do("rita", "POST", path, document("a", false), asJSON, 201) // what she has she may give
			do("rita", "POST", path, document("b", true), asJSON, 403)
			do("rita", "POST", path+"?dryRun=All", document("b", true), asJSON, 403)
			do("rita", "PUT", path+"/b", document("b", true), asJSON, 403) // a create by update
			do("rita", "PATCH", path+"/b?fieldManager=m", document("b", true), apply, 403)
			do("rita", "PATCH", path+"/a", `{"metadata":{"labels":{"x":"y"}}}`, merge, 200)
			if !isBinding { // a binding's role cannot be changed at all
				do("rita", "PUT", path+"/a", document("a", true), asJSON, 403)
				do("rita", "PATCH", path+"/a", "{"+content(true)+"}", merge, 403)
				do("rita", "PATCH", path+"/a", "{"+content(true)+"}", strategic, 403)
				do("rita", "PATCH", path+"/a", `[{"op":"add","path":"/rules/0/verbs/-","value":"delete"}]`, jsonPatch, 403)
				do("rita", "PATCH", path+"/a?fieldManager=m&force=true", document("a", true), apply, 403)
				do("bill", "PATCH", path+"/a", "{"+content(true)+"}", merge, 200)
			}
			do("bill", "POST", path, document("b", true), asJSON, 201) // escalate or bind
			do("bill", "PATCH", path+"/c?fieldManager=m", document("c", true), apply, 201)
			if resource == "clusterroles" {
				do("rita", "POST", path, `{"metadata":{"name":"agg"},"aggregationRule":{"clusterRoleSelectors":[{"matchLabels":{"a":"b"}}]}}`, asJSON, 403)
			}
		})
	}
}
