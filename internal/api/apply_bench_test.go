package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func appliedConfigMap(revision int) any {
	return &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"app": "bench", "tier": "config"}},
		Data:       map[string]string{"revision": fmt.Sprint(revision), "app.yaml": strings.Repeat("key: value\n", 30)},
	}
}

func appliedDeployment(revision int) any {
	replicas, labels := int32(revision%3), map[string]string{"app": "web"}
	return &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: labels, Annotations: map[string]string{"revision": fmt.Sprint(revision)}},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
				Name: "web", Image: "registry.example/bench/web:1.0", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				Env: []corev1.EnvVar{{Name: "MODE", Value: "production"}, {Name: "LISTEN", Value: ":8080"}},
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("16Mi"),
				}},
				ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromString("http")}}},
			}}}},
		},
	}
}

// BenchmarkApply is a server-side apply through the handler, of a manifest that changes a value each time.
func BenchmarkApply(b *testing.B) {
	c := start(b, Options{})
	for _, kind := range []struct {
		path string
		make func(int) any
	}{
		{"/api/v1/namespaces/default/configmaps/a", appliedConfigMap},
		{"/apis/apps/v1/namespaces/default/deployments/a", appliedDeployment},
	} {
		_, plural, _ := strings.Cut(kind.path, "default/")
		b.Run(strings.TrimSuffix(plural, "/a"), func(b *testing.B) {
			state, w := rootTLS(b, c), &discard{header: http.Header{}}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				body, err := json.Marshal(kind.make(i))
				if err != nil {
					b.Fatal(err)
				}
				req := httptest.NewRequestWithContext(context.Background(), "PATCH", kind.path+"?fieldManager=bench", stringBody(string(body)))
				req.Header.Set("Content-Type", "application/apply-patch+yaml")
				req.TLS = state
				clear(w.header)
				c.ServeHTTP(w, req)
			}
			if w.code != 200 && w.code != 201 {
				b.Fatal(w.code)
			}
		})
	}
}

// BenchmarkPatchPod is a merge patch of one annotation of a pod.
func BenchmarkPatchPod(b *testing.B) {
	c := start(b, Options{})
	pod := testPod("a")
	spec := appliedDeployment(1).(*appsv1.Deployment).Spec.Template.Spec
	pod.Spec.Containers = spec.Containers
	pod.Spec.NodeName = "node"
	c.mustCreate(b, "pods", "default", pod)
	state, w := rootTLS(b, c), &discard{header: http.Header{}}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		req := httptest.NewRequestWithContext(context.Background(), "PATCH", "/api/v1/namespaces/default/pods/a",
			stringBody(fmt.Sprintf(`{"metadata":{"annotations":{"revision":"%d"}}}`, i)))
		req.Header.Set("Content-Type", "application/merge-patch+json")
		req.TLS = state
		clear(w.header)
		c.ServeHTTP(w, req)
	}
	if w.code != 200 {
		b.Fatal(w.code)
	}
}
