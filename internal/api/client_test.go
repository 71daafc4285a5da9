package api

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	discoveryclient "k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/openapi3"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

var contentTypes = map[string]string{"json": "application/json", "protobuf": "application/vnd.kubernetes.protobuf"}

func testPod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "busybox"}}}}
}

func TestTypedClient(t *testing.T) {
	for name, contentType := range contentTypes {
		t.Run(name, func(t *testing.T) {
			c := start(t, Options{})
			clients, err := kubernetes.NewForConfig(c.config(t, "root", contentType, "system:masters"))
			if err != nil {
				t.Fatal(err)
			}
			ctx, pods := t.Context(), clients.CoreV1().Pods("default")
			made, err := pods.Create(ctx, testPod("a"), metav1.CreateOptions{})
			if err != nil || made.UID == "" || made.Spec.RestartPolicy != corev1.RestartPolicyAlways {
				t.Fatalf("Create = %+v, %v", made, err)
			}
			if made.ManagedFields[0].Manager != "apitest" {
				t.Errorf("the manager is %q", made.ManagedFields[0].Manager)
			}
			got, err := pods.Get(ctx, "a", metav1.GetOptions{})
			if err != nil || got.UID != made.UID || got.ResourceVersion != made.ResourceVersion {
				t.Fatalf("Get = %+v, %v", got, err)
			}
			got.Labels["x"] = "y"
			if got, err = pods.Update(ctx, got, metav1.UpdateOptions{}); err != nil || got.Labels["x"] != "y" {
				t.Fatalf("Update = %+v, %v", got, err)
			}
			got.Status.Phase = corev1.PodRunning
			if got, err = pods.UpdateStatus(ctx, got, metav1.UpdateOptions{}); err != nil || got.Status.Phase != corev1.PodRunning {
				t.Fatalf("UpdateStatus = %+v, %v", got, err)
			}
			if _, err := pods.Create(ctx, testPod("b"), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: "x=y"})
			if err != nil || len(list.Items) != 1 || list.Items[0].Name != "a" || list.ResourceVersion == "" {
				t.Fatalf("List = %+v, %v", list, err)
			}
			page, err := pods.List(ctx, metav1.ListOptions{Limit: 1})
			if err != nil || page.Continue == "" || len(page.Items) != 1 || *page.RemainingItemCount != 1 {
				t.Fatalf("first page = %+v, %v", page.ListMeta, err)
			}
			if page, err = pods.List(ctx, metav1.ListOptions{Limit: 1, Continue: page.Continue}); err != nil || page.Items[0].Name != "b" {
				t.Fatalf("second page = %+v, %v", page, err)
			}
			if err := pods.DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}, metav1.ListOptions{LabelSelector: "app=web"}); err != nil {
				t.Fatal(err)
			}
			if _, err = pods.Get(ctx, "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("Get after delete: %v", err)
			}
			if list, err = pods.List(ctx, metav1.ListOptions{}); err != nil || len(list.Items) != 0 {
				t.Errorf("List after delete = %+v, %v", list, err)
			}
		})
	}
}

func TestPatches(t *testing.T) {
	c := start(t, Options{})
	clients, err := kubernetes.NewForConfig(c.config(t, "root", "", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	maps := clients.CoreV1().ConfigMaps("default")
	if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Data: map[string]string{"a": "1"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		kind types.PatchType
		data string
		key  string
	}{
		{types.MergePatchType, `{"data":{"m":"1"}}`, "m"},
		{types.StrategicMergePatchType, `{"data":{"s":"1"}}`, "s"},
		{types.JSONPatchType, `[{"op":"add","path":"/data/j","value":"1"}]`, "j"},
	} {
		got, err := maps.Patch(t.Context(), "c", tc.kind, []byte(tc.data), metav1.PatchOptions{})
		if err != nil || got.Data[tc.key] != "1" || got.Data["a"] != "1" {
			t.Errorf("%s: %v, %v", tc.kind, got, err)
		}
	}
	applied, err := maps.Apply(t.Context(), corev1apply.ConfigMap("new", "default").WithData(map[string]string{"k": "v"}), metav1.ApplyOptions{FieldManager: "ann"})
	if err != nil || applied.Data["k"] != "v" || applied.ManagedFields[0].Operation != metav1.ManagedFieldsOperationApply {
		t.Errorf("Apply = %+v, %v", applied, err)
	}
	if _, err := maps.Apply(t.Context(), corev1apply.ConfigMap("new", "default").WithData(map[string]string{"k": "w"}), metav1.ApplyOptions{FieldManager: "bob"}); !apierrors.IsConflict(err) {
		t.Errorf("a foreign field was taken over: %v", err)
	}
}

func TestWatch(t *testing.T) {
	for name, contentType := range contentTypes {
		t.Run(name, func(t *testing.T) {
			c := start(t, Options{BookmarkPeriod: 50 * time.Millisecond})
			clients, err := kubernetes.NewForConfig(c.config(t, "root", contentType, "system:masters"))
			if err != nil {
				t.Fatal(err)
			}
			maps := clients.CoreV1().ConfigMaps("default")
			w, err := maps.Watch(t.Context(), metav1.ListOptions{LabelSelector: "app=web", AllowWatchBookmarks: true})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"app": "web"}}}
			if object, err = maps.Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			expect(t, w, watch.Added, "a")
			object.Labels["app"] = "other"
			if _, err = maps.Update(t.Context(), object, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			expect(t, w, watch.Deleted, "a") // it left the selection
			expect(t, w, watch.Bookmark, "")
			old, err := maps.Watch(t.Context(), metav1.ListOptions{ResourceVersion: "1"})
			if err != nil {
				t.Fatal(err)
			}
			defer old.Stop()
		})
	}
}

// expect waits for an event; bookmarks in between are passed over unless wanted.
func expect(t *testing.T, w watch.Interface, kind watch.EventType, name string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case event, open := <-w.ResultChan():
			if !open {
				t.Fatalf("the watch ended before %s", kind)
			}
			if event.Type == watch.Bookmark && kind != watch.Bookmark {
				continue
			}
			object, ok := event.Object.(metav1.Object)
			if event.Type != kind || !ok || object.GetName() != name || object.GetResourceVersion() == "" {
				t.Fatalf("event %s %+v, want %s %q", event.Type, event.Object, kind, name)
			}
			return
		case <-deadline:
			t.Fatalf("no %s event", kind)
		}
	}
}

func TestInformer(t *testing.T) {
	for name, contentType := range contentTypes {
		t.Run(name, func(t *testing.T) {
			c := start(t, Options{})
			for _, pod := range []string{"a", "b"} {
				c.mustCreate(t, "pods", "default", testPod(pod))
			}
			clients, err := kubernetes.NewForConfig(c.config(t, "root", contentType, "system:masters"))
			if err != nil {
				t.Fatal(err)
			}
			factory := informers.NewSharedInformerFactory(clients, 0)
			var added, deleted atomic.Int32
			informer := factory.Core().V1().Pods().Informer()
			if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
				AddFunc: func(any) { added.Add(1) }, DeleteFunc: func(any) { deleted.Add(1) }}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			factory.Start(ctx.Done())
			if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
				t.Fatal("the informer did not sync")
			}
			if err := clients.CoreV1().Pods("default").Delete(ctx, "a", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
				t.Fatal(err)
			}
			c.mustCreate(t, "pods", "default", testPod("c"))
			for added.Load() != 3 || deleted.Load() != 1 {
				if ctx.Err() != nil {
					t.Fatalf("%d added, %d deleted; want 3, 1", added.Load(), deleted.Load())
				}
				time.Sleep(5 * time.Millisecond)
			}
			cancel()
			factory.Shutdown()
		})
	}
}

func TestDynamicAndMetadataClients(t *testing.T) {
	c := start(t, Options{})
	c.mustCreate(t, "pods", "default", testPod("a"))
	config := c.config(t, "root", "", "system:masters")
	pods := corev1.SchemeGroupVersion.WithResource("pods")
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	list, err := dyn.Resource(pods).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].GetKind() != "Pod" {
		t.Errorf("dynamic List = %+v, %v", list, err)
	}
	object := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "d"}}}
	if _, err := dyn.Resource(corev1.SchemeGroupVersion.WithResource("configmaps")).Namespace("default").Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	partial, err := meta.Resource(pods).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(partial.Items) != 1 || partial.Items[0].Name != "a" {
		t.Errorf("metadata List = %+v, %v", partial, err)
	}
	one, err := meta.Resource(pods).Namespace("default").Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil || one.Labels["app"] != "web" {
		t.Errorf("metadata Get = %+v, %v", one, err)
	}
}

func TestDiscoveryAndOpenAPI(t *testing.T) {
	c := start(t, Options{})
	client, err := discoveryclient.NewDiscoveryClientForConfig(c.config(t, "ann", "")) // no administrator
	if err != nil {
		t.Fatal(err)
	}
	groups, resources, err := client.ServerGroupsAndResources()
	if err != nil || len(groups) < 6 {
		t.Fatalf("%d groups, %v", len(groups), err)
	}
	legacy := client.WithLegacy()
	_, old, err := legacy.ServerGroupsAndResources()
	if err != nil || len(old) != len(resources) {
		t.Fatalf("legacy discovery has %d versions, aggregated %d: %v", len(old), len(resources), err)
	}
	counts := map[string]int{}
	for _, version := range old {
		counts[version.GroupVersion] = len(version.APIResources)
	}
	for _, version := range resources {
		if len(version.APIResources) != counts[version.GroupVersion] {
			t.Errorf("%s: %d resources aggregated, %d in legacy", version.GroupVersion, len(version.APIResources), counts[version.GroupVersion])
		}
	}
	info, err := client.ServerVersion()
	if err != nil || info.Minor != "36" {
		t.Errorf("version %+v, %v", info, err)
	}
	v2, err := client.OpenAPISchema()
	if err != nil || len(v2.GetDefinitions().GetAdditionalProperties()) < 100 {
		t.Errorf("OpenAPI v2: %v", err)
	}
	root := openapi3.NewRoot(client.OpenAPIV3())
	versions, err := root.GroupVersions()
	if err != nil || len(versions) != len(resources) {
		t.Errorf("OpenAPI v3 has %v, %v", versions, err)
	}
	spec, err := root.GVSpec(appsv1.SchemeGroupVersion)
	if err != nil {
		t.Fatal(err)
	}
	patch := spec.Paths.Paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]
	if patch == nil || patch.Patch == nil {
		t.Fatal("no PATCH of deployments")
	}
	found := false
	for _, p := range patch.Patch.Parameters {
		found = found || p.Name == "fieldValidation"
	}
	if !found || patch.Patch.Extensions["x-kubernetes-group-version-kind"] == nil {
		t.Errorf("PATCH has no fieldValidation or kind: %+v", patch.Patch.Extensions)
	}
	if spec.Components.Schemas["io.k8s.api.apps.v1.Deployment"] == nil {
		t.Error("no schema of Deployment")
	}
}

func TestReviewsAndTokens(t *testing.T) {
	c := start(t, Options{})
	clients, err := kubernetes.NewForConfig(c.config(t, "ann", ""))
	if err != nil {
		t.Fatal(err)
	}
	can := func(verb, namespace string) bool {
		answer, err := clients.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Namespace: namespace, Resource: "pods"}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return answer.Status.Allowed
	}
	if !can("create", "default") || can("create", "kube-system") {
		t.Error("ann's rights are not those of an editor of default")
	}
	who, err := clients.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || who.Status.UserInfo.Username != "ann" {
		t.Errorf("SelfSubjectReview = %+v, %v", who, err)
	}
	c.mustCreate(t, "serviceaccounts", "default", &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "sa"}})
	token, err := clients.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "sa", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(c.config(t, "x", ""))
	config.BearerToken = token.Status.Token
	account, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if who, err = account.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{}); err != nil ||
		who.Status.UserInfo.Username != "system:serviceaccount:default:sa" {
		t.Errorf("with the token: %+v, %v", who, err)
	}
	if _, err := account.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("the account reads secrets: %v", err)
	}
}

func TestTables(t *testing.T) {
	c := start(t, Options{})
	c.mustCreate(t, "pods", "default", testPod("a"))
	const accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
	for path, rows := range map[string]int{"/api/v1/namespaces/default/pods": 1, "/api/v1/namespaces/default/pods/a": 1, "/api/v1/namespaces/none/pods": 0} {
		var table metav1.Table
		w := c.do(t, "root", "GET", path, nil, "Accept", accept)
		if err := json.Unmarshal(w.Body.Bytes(), &table); err != nil || w.Code != 200 {
			t.Fatalf("%s: %d %s", path, w.Code, w.Body)
		}
		var columns []string
		for _, column := range table.ColumnDefinitions {
			columns = append(columns, column.Name)
		}
		if table.Kind != "Table" || len(table.Rows) != rows || !slices.Equal(columns[:5], []string{"Name", "Ready", "Status", "Restarts", "Age"}) {
			t.Errorf("%s: kind %s, %d rows, columns %v", path, table.Kind, len(table.Rows), columns)
		}
		if rows > 0 {
			var partial metav1.PartialObjectMetadata
			if err := json.Unmarshal(table.Rows[0].Object.Raw, &partial); err != nil || partial.Kind != "PartialObjectMetadata" || partial.Name != "a" {
				t.Errorf("row object %s", table.Rows[0].Object.Raw)
			}
		}
	}
	w := c.do(t, "root", "GET", "/api/v1/namespaces/default/pods?watch=1&timeoutSeconds=1", nil, "Accept", accept)
	if !strings.HasPrefix(w.Body.String(), `{"type":"ADDED","object":{"kind":"Table"`) {
		t.Errorf("watch: %s", w.Body)
	}
}

func TestEveryKindHasColumns(t *testing.T) {
	c := start(t, Options{})
	for name, ep := range c.routes().endpoints {
		path := "/apis/" + name.GroupVersion().String() + "/" + name.Resource
		if name.Group == "" {
			path = "/api/v1/" + name.Resource
		}
		var table metav1.Table
		w := c.do(t, "root", "GET", path, nil, "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
		if err := json.Unmarshal(w.Body.Bytes(), &table); err != nil || w.Code != 200 || len(table.ColumnDefinitions) < 2 {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
		w = c.do(t, "root", "GET", path, nil, "Accept", typeProto)
		if w.Code != 200 || !strings.HasPrefix(w.Body.String(), "k8s\x00") {
			t.Errorf("%s of %s as protobuf: %d %q", path, ep.Kind.Kind, w.Code, w.Body)
		}
	}
}

// The encoded list must be what the generated types would encode, also when it is sent in parts.
func TestListBytesMatchTheTypedEncoding(t *testing.T) {
	for name, count := range map[string]int{"small": 2, "in parts": 6} {
		t.Run(name, func(t *testing.T) {
			c := start(t, Options{})
			for i := range count {
				pod := testPod(fmt.Sprintf("pod-%d", i))
				if count > 2 {
					pod.Annotations = map[string]string{"filler": strings.Repeat("<x>", 40<<10)}
				}
				c.mustCreate(t, "pods", "default", pod)
			}
			checkListBytes(t, c)
		})
	}
}

func checkListBytes(t *testing.T, c *cluster) {
	t.Helper()
	w := c.do(t, "root", "GET", "/api/v1/namespaces/default/pods", nil)
	var list corev1.PodList
	if err := json.Unmarshal(w.Body.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	want, _ := json.Marshal(&list)
	if got := strings.TrimSuffix(w.Body.String(), "\n"); got != string(want) {
		t.Errorf("list is\n%s\nwant\n%s", got, want)
	}
	w = c.do(t, "root", "GET", "/api/v1/namespaces/default/pods", nil, "Accept", typeProto)
	var envelope runtime.Unknown
	if err := envelope.Unmarshal(w.Body.Bytes()[4:]); err != nil {
		t.Fatal(err)
	}
	if kind := (schema.GroupVersionKind{Version: "v1", Kind: "PodList"}); envelope.APIVersion != kind.Version || envelope.Kind != kind.Kind {
		t.Errorf("envelope is %+v", envelope.TypeMeta)
	}
	bare := corev1.PodList{ListMeta: list.ListMeta, Items: list.Items}
	raw, _ := bare.Marshal()
	if string(raw) != string(envelope.Raw) {
		t.Error("the protobuf list differs from the typed encoding")
	}
	encoded, _ := (&runtime.Unknown{TypeMeta: envelope.TypeMeta, Raw: envelope.Raw}).Marshal()
	if string(encoded) != w.Body.String()[4:] {
		t.Error("the envelope differs from the typed encoding")
	}
}
