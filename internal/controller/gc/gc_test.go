package gc

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/controller/controllertest"
)

type notes struct {
	mu   sync.Mutex
	seen []string
}

func (n *notes) Event(_ runtime.Object, kind, reason, note string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = append(n.seen, kind+" "+reason+" "+note)
}

func kinds() []controller.Kind {
	return []controller.Kind{
		{GVK: corev1.SchemeGroupVersion.WithKind("ConfigMap"), Resource: "configmaps", Namespaced: true},
		{GVK: corev1.SchemeGroupVersion.WithKind("Pod"), Resource: "pods", Namespaced: true},
		{GVK: appsv1.SchemeGroupVersion.WithKind("ReplicaSet"), Resource: "replicasets", Namespaced: true},
		{GVK: corev1.SchemeGroupVersion.WithKind("Node"), Resource: "nodes"},
	}
}

func object(name string, owners ...*corev1.ConfigMap) *corev1.ConfigMap {
	yes := true
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)}}
	for _, owner := range owners {
		c.OwnerReferences = append(c.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID, BlockOwnerDeletion: &yes})
	}
	return c
}

// inWorld runs f beside a collector and returns the names of the config maps left.
func inWorld(t *testing.T, objs []client.Object, f func(c *controllertest.Cluster, events *notes)) []string {
	t.Helper()
	var names []string
	synctest.Test(t, func(t *testing.T) {
		c := controllertest.New(t, objs...)
		events := &notes{}
		gc, err := New(c, c, events, Options{Kinds: kinds})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- gc.Run(ctx) }()
		settle()
		f(c, events)
		settle()
		var list corev1.ConfigMapList
		if err := c.List(context.Background(), &list); err != nil {
			t.Fatal(err)
		}
		for _, item := range list.Items {
			names = append(names, item.Name)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		if panics := gc.Stats().Panics; panics != 0 {
			t.Errorf("%d panics", panics)
		}
	})
	return names
}

func settle() {
	time.Sleep(10 * time.Second)
	synctest.Wait()
}

func TestCollect(t *testing.T) {
	a := object("a")
	b := object("b", a)
	deep := object("c", b)
	both := object("both", a, object("other"))
	missing := object("missing", object("never"))
	replaced := object("replaced", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "older"}})
	unknown := object("unknown")
	unknown.OwnerReferences = []metav1.OwnerReference{{APIVersion: "example.com/v1", Kind: "Thing", Name: "x", UID: "x"}}
	for name, tc := range map[string]struct {
		objs   []client.Object
		delete metav1.DeletionPropagation
		want   []string
	}{
		"owners there":            {[]client.Object{a, b, deep}, "", []string{"a", "b", "c"}},
		"background":              {[]client.Object{a, b, deep}, metav1.DeletePropagationBackground, nil},
		"foreground":              {[]client.Object{a, b, deep}, metav1.DeletePropagationForeground, nil},
		"orphan":                  {[]client.Object{a, b, deep}, metav1.DeletePropagationOrphan, []string{"b", "c"}},
		"one of two owners":       {[]client.Object{a, object("other"), both}, metav1.DeletePropagationBackground, []string{"both", "other"}},
		"one of two, foreground":  {[]client.Object{a, object("other"), both}, metav1.DeletePropagationForeground, []string{"both", "other"}},
		"owner never there":       {[]client.Object{missing}, "", nil},
		"owner replaced":          {[]client.Object{a, replaced}, "", []string{"a"}},
		"owner's kind not served": {[]client.Object{unknown}, "", []string{"unknown"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := inWorld(t, tc.objs, func(c *controllertest.Cluster, _ *notes) {
				if tc.delete != "" {
					if err := c.Delete(context.Background(), a, client.PropagationPolicy(tc.delete)); err != nil {
						t.Fatal(err)
					}
				}
			})
			if !slices.Equal(got, tc.want) {
				t.Errorf("left %q, want %q", got, tc.want)
			}
		})
	}
}

func TestForegroundWaitsAndOrphanReleases(t *testing.T) {
	a := object("a")
	stuck := object("b", a)
	stuck.Finalizers = []string{"example.com/wait"}
	got := inWorld(t, []client.Object{a, stuck}, func(c *controllertest.Cluster, _ *notes) {
		if err := c.Delete(context.Background(), a, client.PropagationPolicy(metav1.DeletePropagationForeground)); err != nil {
			t.Fatal(err)
		}
		settle()
		var both corev1.ConfigMapList
		if err := c.List(context.Background(), &both); err != nil || len(both.Items) != 2 {
			t.Fatalf("%d left while one waits, %v", len(both.Items), err)
		}
		var b corev1.ConfigMap
		_ = c.Get(context.Background(), client.ObjectKeyFromObject(stuck), &b)
		free := b.DeepCopy()
		free.Finalizers = nil
		if err := c.Update(context.Background(), free); err != nil {
			t.Fatal(err)
		}
	})
	if len(got) != 0 {
		t.Errorf("left %q", got)
	}
}

func TestOwnerInAnotherNamespace(t *testing.T) {
	owner := object("owner")
	owner.Namespace = "elsewhere"
	var seen []string
	got := inWorld(t, []client.Object{owner, object("child", owner)}, func(_ *controllertest.Cluster, events *notes) {
		events.mu.Lock()
		defer events.mu.Unlock()
		seen = events.seen
	})
	want := fmt.Sprintf("Warning OwnerRefInvalidNamespace ownerRef [v1/ConfigMap, namespace: elsewhere, name: owner, uid: %s] does not exist in namespace %q", owner.UID, "default")
	if !slices.Equal(got, []string{"owner"}) || !slices.Contains(seen, want) {
		t.Errorf("left %q, events %q", got, seen)
	}
}

func TestCycleInForeground(t *testing.T) {
	a, b, c := object("a"), object("b"), object("c")
	objs := []client.Object{object("a", c), object("b", a), object("c", b)}
	got := inWorld(t, objs, func(cluster *controllertest.Cluster, _ *notes) {
		if err := cluster.Delete(context.Background(), a, client.PropagationPolicy(metav1.DeletePropagationForeground)); err != nil {
			t.Fatal(err)
		}
	})
	if len(got) != 0 {
		t.Errorf("left %q", got)
	}
}

func TestGraphForgetsWhatItNeedNotKnow(t *testing.T) {
	g := newGraph()
	gvk := corev1.SchemeGroupVersion.WithKind("ConfigMap")
	a := object("a")
	b := object("b", a)
	g.observe(gvk, a)
	g.observe(gvk, b)
	if len(g.items) != 1 {
		t.Errorf("%d items, want only the one with an owner", len(g.items))
	}
	g.forget(b.UID)
	g.forget(a.UID)
	if len(g.items) != 0 || len(g.byOwner) != 0 {
		t.Errorf("%d items and %d owners left", len(g.items), len(g.byOwner))
	}
}
