package custom_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/gantrytest"
)

// gone waits until a definition is.
func (c *cluster) gone(t *testing.T, name string) {
	t.Helper()
	c.Eventually(name+" is gone", func() error {
		crd, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Get(t.Context(), name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, fmt.Errorf("conditions are %+v", crd.Status.Conditions))
	})
}

func TestDeletingADefinitionDeletesItsObjects(t *testing.T) {
	c := start(t, gantrytest.Options{})
	c.define(t, cronTabs)
	tabs, name := c.of(cronTab), "crontabs.stable.example.com"
	held := newCronTab("held", nil)
	held.SetFinalizers([]string{"example.com/hold"})
	for _, tab := range []string{"a", "b"} {
		if _, err := tabs.Create(t.Context(), newCronTab(tab, nil), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tabs.Create(t.Context(), held, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w, err := tabs.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.Eventually("only the held one is left", func() error {
		list, err := tabs.List(t.Context(), metav1.ListOptions{})
		if err == nil && len(list.Items) != 1 {
			err = fmt.Errorf("%d are left", len(list.Items))
		}
		return err
	})
	crd, err := c.crds.ApiextensionsV1().CustomResourceDefinitions().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil || crd.DeletionTimestamp == nil || !slices.Contains(crd.Finalizers, apiextensionsv1.CustomResourceCleanupFinalizer) ||
		!apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Terminating) {
		t.Errorf("the definition is %+v, %v", crd.ObjectMeta, err)
	}
	if _, err := tabs.Create(t.Context(), newCronTab("late", nil), metav1.CreateOptions{}); !apierrors.IsForbidden(err) && !apierrors.IsMethodNotSupported(err) {
		t.Errorf("a create meanwhile: %v", err)
	}
	if _, err := tabs.Patch(t.Context(), "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.gone(t, name)
	c.Eventually("the resource is not served any more", func() error { // the definition's end is heard of by its event
		if code, _ := c.do(t, http.MethodGet, "/apis/stable.example.com/v1/crontabs", ""); code != http.StatusNotFound {
			return fmt.Errorf("the answer is %d", code)
		}
		return nil
	})
	for event := range w.ResultChan() { // the watch ends with its kind
		_ = event
	}
	c.define(t, cronTabs)
	if list, err := tabs.List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) != 0 {
		t.Errorf("a definition of the same name begins with %d objects, %v", len(list.Items), err)
	}
}

func TestOwnersAndNamespaces(t *testing.T) {
	c := start(t, gantrytest.Options{})
	c.define(t, cronTabs)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "short"}}
	if err := c.Client.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	tabs := c.dynamic.Resource(cronTab).Namespace("short")
	owner, err := tabs.Create(t.Context(), newCronTab("owner", nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ref := metav1.OwnerReference{APIVersion: "stable.example.com/v1", Kind: "CronTab", Name: "owner", UID: owner.GetUID()}
	dependent := newCronTab("dependent", nil)
	dependent.SetOwnerReferences([]metav1.OwnerReference{ref})
	if _, err := tabs.Create(t.Context(), dependent, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "short", Name: "owned", OwnerReferences: []metav1.OwnerReference{ref}}}
	if err := c.Client.Create(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if err := tabs.Delete(t.Context(), "owner", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.Eventually("dependents are collected", func() error {
		_, err := tabs.Get(t.Context(), "dependent", metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			return errors.Join(err, errPending)
		}
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKeyFromObject(config), &corev1.ConfigMap{}); !apierrors.IsNotFound(err) {
			return errors.Join(err, errPending)
		}
		return nil
	})
	if _, err := tabs.Create(t.Context(), newCronTab("last", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Client.Delete(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	c.Eventually("the namespace is gone", func() error {
		if err := c.Client.Get(t.Context(), ctrlclient.ObjectKey{Name: "short"}, &corev1.Namespace{}); !apierrors.IsNotFound(err) {
			return errors.Join(err, errPending)
		}
		return nil
	})
	if _, err := tabs.Get(t.Context(), "last", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("an object outlived its namespace: %v", err)
	}
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	c := start(t, gantrytest.Options{Dir: dir})
	c.define(t, cronTabs)
	made, err := c.of(cronTab).Create(t.Context(), newCronTab("a", map[string]any{"image": "i"}), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.of(cronTab).Create(t.Context(), newCronTab("b", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.Stop()
	again := start(t, gantrytest.Options{Dir: dir})
	got, err := again.of(cronTab).Get(t.Context(), "a", metav1.GetOptions{}) // at once: it is served before requests are answered
	if err != nil || got.GetResourceVersion() != made.GetResourceVersion() || nested(t, got, "spec", "image") != "i" {
		t.Fatalf("Get = %v, %v", got, err)
	}
	w, err := again.of(cronTab).Watch(t.Context(), metav1.ListOptions{ResourceVersion: made.GetResourceVersion()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	await(t, w, "ADDED", "b") // the history from before is there
}
