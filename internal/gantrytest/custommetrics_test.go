package gantrytest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// counting is a gateway that counts 100 requests a second for default/web.
type counting struct{}

func (counting) Names() []string { return []string{"requests_per_second", "requests_total"} }

func (counting) Value(_ context.Context, service types.NamespacedName, _ string) (float64, time.Time, time.Duration, error) {
	if service.String() != "default/web" {
		return 0, time.Now(), 0, fmt.Errorf("nobody counts %s", service)
	}
	return 100.5, time.Now(), 15 * time.Second, nil
}

// TestAutoscalerByRequests: an autoscaler counts with a metric of a Service that gateways measure.
func TestAutoscalerByRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Start(t, Options{CustomMetrics: counting{}})
		defer c.Stop()
		labels := map[string]string{"app": "web"}
		deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web"}}}},
		}}
		service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80}}}}
		target := resource.MustParse("30")
		scaler := &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "web"}, MaxReplicas: 10,
			Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ObjectMetricSourceType, Object: &autoscalingv2.ObjectMetricSource{
				DescribedObject: autoscalingv2.CrossVersionObjectReference{APIVersion: "v1", Kind: "Service", Name: "web"},
				Metric:          autoscalingv2.MetricIdentifier{Name: "requests_per_second"},
				Target:          autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: &target},
			}}},
		}}
		for _, obj := range []client.Object{deployment, service, scaler} {
			if err := c.Client.Create(t.Context(), obj); err != nil {
				t.Fatal(err)
			}
		}
		c.Eventually("there are four of 30 requests each", func() error {
			if err := c.Client.Get(t.Context(), client.ObjectKeyFromObject(deployment), deployment); err != nil {
				return err
			}
			if *deployment.Spec.Replicas != 4 {
				err := c.Client.Get(t.Context(), client.ObjectKeyFromObject(scaler), scaler)
				return fmt.Errorf("%d replicas; the autoscaler says %+v, %v", *deployment.Spec.Replicas, scaler.Status.Conditions, err)
			}
			return nil
		})
	})
}

// TestCustomMetricsPaths holds what clients see of custom.metrics.k8s.io.
func TestCustomMetricsPaths(t *testing.T) {
	c := Start(t, Options{CustomMetrics: counting{}, NoScheduler: true})
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Labels: map[string]string{"a": "b"}}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
	if err := c.Client.Create(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	ask := &http.Client{Transport: c.Config("root", "system:masters").Transport}
	for path, want := range map[string]string{
		"": `"name":"services/requests_per_second"`,
		"/namespaces/default/services/web/requests_per_second":              `"value":"100500m"`,
		"/namespaces/default/services/*/requests_total?labelSelector=a%3Db": `"name":"web"`,
		"/namespaces/default/services/*/requests_total?labelSelector=a%3Dc": `"items":[]`,
		"/namespaces/default/services/web/smell":                            `"reason":"NotFound"`,
		"/namespaces/default/services/gone/requests_total":                  `"reason":"NotFound"`,
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://gantry.test/apis/custom.metrics.k8s.io/v1beta2"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept", "application/json")
		response, err := ask.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil || !strings.Contains(string(got), want) || !json.Valid(got) {
			t.Errorf("%s answers %s, %v; want %s", path, got, err, want)
		}
	}
}
