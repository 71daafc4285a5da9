package gantrytest

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

func deployment(name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example.test/app:1"}}},
			},
		},
	}
}

// boundPods counts the pods that have a node.
func boundPods(t *testing.T, c *Cluster) int {
	t.Helper()
	var pods corev1.PodList
	if err := c.Client.List(t.Context(), &pods, ctrlclient.InNamespace("default")); err != nil {
		t.Fatal(err)
	}
	bound := 0
	for _, pod := range pods.Items {
		if pod.Spec.NodeName != "" {
			bound++
		}
	}
	return bound
}

func wantBound(t *testing.T, c *Cluster, want int) {
	t.Helper()
	c.Eventually("pods bound", func() error {
		if got := boundPods(t, c); got != want {
			return fmt.Errorf("%d pods have a node, want %d", got, want)
		}
		return nil
	})
}

func TestADeploymentBecomesBoundPods(t *testing.T) {
	c := Start(t, Options{Nodes: 3})
	if err := c.Client.Create(t.Context(), deployment("web", 10)); err != nil {
		t.Fatal(err)
	}
	wantBound(t, c, 10)
}

func TestADayInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Start(t, Options{Nodes: 2})
		defer c.Stop()
		if err := c.Client.Create(t.Context(), deployment("web", 4)); err != nil {
			t.Fatal(err)
		}
		wantBound(t, c, 4)
		var events corev1.EventList
		if err := c.Client.List(t.Context(), &events); err != nil || len(events.Items) == 0 {
			t.Fatalf("%d events, %v; want some", len(events.Items), err)
		}
		<-time.After(24 * time.Hour)
		if got := boundPods(t, c); got != 4 {
			t.Errorf("%d pods after a day, want 4", got)
		}
		if err := c.Client.List(t.Context(), &events); err != nil || len(events.Items) != 0 {
			t.Errorf("%d events after a day, %v; want none", len(events.Items), err)
		}
	})
}
