package custom_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	toolscache "k8s.io/client-go/tools/cache"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/client"
	"gantry.dev/gantry/internal/gantrytest"
)

// Tab is the Go type of a custom resource, as an operator has it.
type Tab struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              TabSpec   `json:"spec,omitempty"`
	Status            TabStatus `json:"status,omitempty"`
}

// TabSpec is what is wanted.
type TabSpec struct {
	Image    string `json:"image,omitempty"`
	Mode     string `json:"mode,omitempty"`
	Replicas *int64 `json:"replicas,omitempty"`
}

// TabStatus is what is.
type TabStatus struct {
	Phase string `json:"phase,omitempty"`
}

// DeepCopyObject implements runtime.Object.
func (t *Tab) DeepCopyObject() runtime.Object {
	out := *t
	t.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// TabList is a list of them.
type TabList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Tab `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (t *TabList) DeepCopyObject() runtime.Object {
	out := *t
	out.Items = append([]Tab(nil), t.Items...)
	return &out
}

func tabScheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	gv := schema.GroupVersion{Group: "stable.example.com", Version: "v1"}
	scheme.AddKnownTypeWithName(gv.WithKind("CronTab"), &Tab{})
	scheme.AddKnownTypeWithName(gv.WithKind("CronTabList"), &TabList{})
	metav1.AddToGroupVersion(scheme, gv)
	return scheme
}

// typed is an in-process client and informers for Go types of tabScheme.
func (c *cluster) typed(t *testing.T) (*client.Client, *client.Cache) {
	t.Helper()
	in, err := client.New(client.Options{
		Registry: c.ControlPlane.Registry(), Manager: "operator", Scheme: tabScheme(),
		User: &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup}},
	})
	if err != nil {
		t.Fatal(err)
	}
	informers := client.NewCache(in, client.CacheOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { _ = informers.Start(ctx) })
	t.Cleanup(func() {
		cancel()
		group.Wait()
	})
	return in, informers
}

func TestInProcessClient(t *testing.T) {
	c := start(t, gantrytest.Options{})
	in, _ := c.typed(t)
	ctx := t.Context()
	if err := in.Create(ctx, &Tab{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "early"}}); !meta.IsNoMatchError(err) {
		t.Errorf("before the definition: %v", err)
	}
	c.define(t, cronTabs)
	tab := &Tab{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a", Labels: map[string]string{"x": "y"}}, Spec: TabSpec{Image: "i"}}
	if err := in.Create(ctx, tab); err != nil || tab.UID == "" || tab.Spec.Mode != "quick" {
		t.Fatalf("Create = %+v, %v", tab, err)
	}
	before := tab.DeepCopyObject().(*Tab)
	tab.Spec.Image = "j"
	if err := in.Patch(ctx, tab, ctrlclient.MergeFrom(before)); err != nil || tab.Generation != 2 {
		t.Fatalf("Patch = %+v, %v", tab, err)
	}
	tab.Status.Phase = "Ready"
	if err := in.Status().Update(ctx, tab); err != nil || tab.Status.Phase != "Ready" {
		t.Fatalf("Status().Update = %+v, %v", tab, err)
	}
	var got Tab
	if err := in.Get(ctx, ctrlclient.ObjectKeyFromObject(tab), &got); err != nil || got.Spec.Image != "j" || got.Status.Phase != "Ready" {
		t.Errorf("Get = %+v, %v", got, err)
	}
	var list TabList
	if err := in.List(ctx, &list, ctrlclient.InNamespace("default"), ctrlclient.MatchingLabels{"x": "y"}); err != nil || len(list.Items) != 1 || list.Items[0].Spec.Image != "j" {
		t.Errorf("List = %+v, %v", list, err)
	}
	loose := newCronTab("b", map[string]any{"image": "k"})
	loose.SetNamespace("default")
	if err := in.Create(ctx, loose); err != nil || nested(t, loose, "spec", "mode") != "quick" {
		t.Errorf("an unstructured Create = %v, %v", loose, err)
	}
	loose.Object["spec"] = map[string]any{"mode": "changed by its owner only"}
	if err := in.Get(ctx, ctrlclient.ObjectKey{Namespace: "default", Name: "b"}, &got); err != nil || got.Spec.Mode != "quick" || got.Spec.Image != "k" {
		t.Errorf("Get = %+v, %v", got, err)
	}
	var partial metav1.PartialObjectMetadata
	partial.SetGroupVersionKind(loose.GroupVersionKind())
	if err := in.Get(ctx, ctrlclient.ObjectKey{Namespace: "default", Name: "a"}, &partial); err != nil || partial.Labels["x"] != "y" {
		t.Errorf("Get of the metadata = %+v, %v", partial, err)
	}
	if _, err := in.RESTMapper().RESTMapping(schema.GroupKind{Group: "stable.example.com", Kind: "CronTab"}); err != nil {
		t.Errorf("RESTMapping: %v", err)
	}
	if err := in.DeleteAllOf(ctx, &Tab{}, ctrlclient.InNamespace("default")); err != nil {
		t.Errorf("DeleteAllOf: %v", err)
	}
	many := &unstructured.UnstructuredList{}
	many.SetGroupVersionKind(loose.GroupVersionKind())
	if err := in.List(ctx, many); err != nil || len(many.Items) != 0 {
		t.Errorf("List = %v, %v", many.Items, err)
	}
}

// seen keeps what an informer told.
type seen struct {
	mu   sync.Mutex
	told []string
}

func (s *seen) add(what string, obj any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if final, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
		obj = final.Obj
	}
	tab, ok := obj.(*Tab)
	if !ok {
		s.told = append(s.told, fmt.Sprintf("%s a %T", what, obj))
		return
	}
	s.told = append(s.told, what+" "+tab.Name+" "+tab.Spec.Image)
}

func (s *seen) last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.told) == 0 {
		return ""
	}
	return s.told[len(s.told)-1]
}

func TestInformerOverTheLifeOfADefinition(t *testing.T) {
	c := start(t, gantrytest.Options{})
	in, informers := c.typed(t)
	c.define(t, cronTabs)
	informer, err := informers.GetInformer(t.Context(), &Tab{})
	if err != nil {
		t.Fatal(err)
	}
	got := &seen{}
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { got.add("add", obj) }, UpdateFunc: func(_, obj any) { got.add("update", obj) }, DeleteFunc: func(obj any) { got.add("delete", obj) },
	}); err != nil {
		t.Fatal(err)
	}
	expect := func(want string) {
		t.Helper()
		c.Eventually(want, func() error {
			if last := got.last(); last != want {
				return fmt.Errorf("the last event is %q", last)
			}
			return nil
		})
	}
	create := func(name string) {
		t.Helper()
		c.Eventually("creating "+name, func() error {
			return in.Create(t.Context(), &Tab{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: TabSpec{Image: "i"}})
		})
	}
	create("a")
	expect("add a i")
	if err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Delete(t.Context(), "crontabs.stable.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("delete a i")
	c.gone(t, "crontabs.stable.example.com")
	c.define(t, cronTabs)
	create("b")
	expect("add b i")
}
