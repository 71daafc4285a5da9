package namespace

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/controller/controllertest"
)

func kinds() ([]controller.Kind, error) {
	return []controller.Kind{
		{GVK: corev1.SchemeGroupVersion.WithKind("ConfigMap"), Resource: "configmaps", Namespaced: true},
		{GVK: corev1.SchemeGroupVersion.WithKind("Pod"), Resource: "pods", Namespaced: true},
	}, nil
}

func inWorld(t *testing.T, list func() ([]controller.Kind, error), objs []client.Object, f func(c *controllertest.Cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}}}
		c := controllertest.New(t, append(objs, ns)...)
		nc, err := New(c, c, Options{Kinds: list})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- nc.Run(ctx) }()
		if err := c.Delete(context.Background(), ns); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		f(c)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func get(c client.Client) (*corev1.Namespace, error) {
	var ns corev1.Namespace
	err := c.Get(context.Background(), types.NamespacedName{Name: "shop"}, &ns)
	return &ns, err
}

func lines2(ns *corev1.Namespace) (out []string) {
	for _, c := range ns.Status.Conditions {
		out = append(out, fmt.Sprintf("%s=%s %s: %s", c.Type, c.Status, c.Reason, c.Message))
	}
	return out
}

func TestEmptiesPodsFirst(t *testing.T) {
	grace := metav1.ObjectMeta{Namespace: "shop", Name: "web"}
	pod := &corev1.Pod{ObjectMeta: grace, Spec: corev1.PodSpec{NodeName: "n1"}}
	config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Finalizers: []string{"example.com/keep"}}}
	inWorld(t, kinds, []client.Object{pod, config}, func(c *controllertest.Cluster) {
		ns, err := get(c)
		if err != nil {
			t.Fatal(err)
		}
		want := []string{
			"NamespaceDeletionDiscoveryFailure=False ResourcesDiscovered: All resources successfully discovered",
			"NamespaceDeletionGroupVersionParsingFailure=False ParsedGroupVersions: All legacy kube types successfully parsed",
			"NamespaceDeletionContentFailure=False ContentDeleted: All content successfully deleted, may be waiting on finalization",
			"NamespaceContentRemaining=True SomeResourcesRemain: Some resources are remaining: pods. has 1 resource instances",
			"NamespaceFinalizersRemaining=False ContentHasNoFinalizers: All content-preserving finalizers finished",
		}
		if diff := cmp.Diff(want, lines2(ns)); diff != "" {
			t.Errorf("conditions (-want +got):\n%s", diff)
		}
		var left corev1.ConfigMap
		if err := c.Get(context.Background(), client.ObjectKeyFromObject(config), &left); err != nil || left.DeletionTimestamp != nil {
			t.Errorf("the config map did not wait for the pod: %v", err)
		}
		none := int64(0)
		if err := c.Delete(context.Background(), pod, &client.DeleteOptions{GracePeriodSeconds: &none}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		ns, _ = get(c)
		if got := lines2(ns)[4]; got != "NamespaceFinalizersRemaining=True SomeFinalizersRemain: Some content in the namespace has finalizers remaining: example.com/keep in 1 resource instances" {
			t.Errorf("condition %q", got)
		}
		if err := c.Get(context.Background(), client.ObjectKeyFromObject(config), &left); err != nil {
			t.Fatal(err)
		}
		free := left.DeepCopy()
		free.Finalizers = nil
		if err := c.Update(context.Background(), free); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if _, err := get(c); !apierrors.IsNotFound(err) {
			t.Errorf("the namespace is still there: %v", err)
		}
	})
}

func TestUnknownKindsKeepTheNamespace(t *testing.T) {
	inWorld(t, func() ([]controller.Kind, error) {
		all, _ := kinds()
		return all, errors.New("metrics.k8s.io is down")
	}, nil, func(c *controllertest.Cluster) {
		ns, err := get(c)
		if err != nil {
			t.Fatal(err)
		}
		if got := lines2(ns)[0]; got != "NamespaceDeletionDiscoveryFailure=True DiscoveryFailed: metrics.k8s.io is down" {
			t.Errorf("condition %q", got)
		}
	})
}
