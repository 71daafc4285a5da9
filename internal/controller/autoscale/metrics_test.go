package autoscale

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// mapped is a client of which only the mapper is used.
type mapped struct {
	client.Client
	mapper meta.RESTMapper
}

func (m mapped) RESTMapper() meta.RESTMapper { return m.mapper }

// answers has a body a path.
type answers map[string]string

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	body, code := a[r.URL.Path], http.StatusOK
	if body == "" {
		body, code = fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","code":404,"message":"no %s"}`, r.URL.Path), http.StatusNotFound
	}
	return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

// TestMetricsOfOtherServers asks API servers that serve custom.metrics.k8s.io and external.metrics.k8s.io.
func TestMetricsOfOtherServers(t *testing.T) {
	const base = "/apis/custom.metrics.k8s.io/v1beta2"
	value := func(kind, name string) string {
		return fmt.Sprintf(`{"kind":"MetricValueList","apiVersion":"custom.metrics.k8s.io/v1beta2","items":[{"describedObject":{"kind":%q,"namespace":"default","name":%q},"metric":{"name":"m"},"timestamp":"2026-01-01T00:00:00Z","value":"12500m"}]}`, kind, name)
	}
	transport := answers{
		"/apis": `{"kind":"APIGroupList","apiVersion":"v1","groups":[{"name":"custom.metrics.k8s.io","versions":[{"groupVersion":"custom.metrics.k8s.io/v1beta2","version":"v1beta2"}],"preferredVersion":{"groupVersion":"custom.metrics.k8s.io/v1beta2","version":"v1beta2"}}]}`,
		"/api":  `{"kind":"APIVersions","versions":["v1"]}`,
		base + "/namespaces/default/pods/*/requests":                   value("Pod", "a"),
		base + "/namespaces/default/services/web/requests":             value("Service", "web"),
		"/apis/external.metrics.k8s.io/v1beta1/namespaces/default/lag": `{"kind":"ExternalMetricValueList","apiVersion":"external.metrics.k8s.io/v1beta1","items":[{"metricName":"lag","timestamp":"2026-01-01T00:00:00Z","value":"7"}]}`,
	}
	mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{corev1.SchemeGroupVersion})
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Pod"), meta.RESTScopeNamespace)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Service"), meta.RESTScopeNamespace)
	c := &Controller{client: mapped{mapper: mapper}}
	measures, _, err := c.metrics(&rest.Config{Host: "https://test.invalid", Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	pods, _, err := measures.GetRawMetric("requests", "default", labels.Everything(), labels.Everything())
	if err != nil || pods["a"].Value != 12500 {
		t.Errorf("pods' metric is %v, %v; want 12500", pods, err)
	}
	object, _, err := measures.GetObjectMetric("requests", "default", &autoscalingv2.CrossVersionObjectReference{Kind: "Service", Name: "web", APIVersion: "v1"}, labels.Everything())
	if err != nil || object != 12500 {
		t.Errorf("the object's metric is %d, %v; want 12500", object, err)
	}
	external, _, err := measures.GetExternalMetric("lag", "default", labels.Everything())
	if err != nil || len(external) != 1 || external[0] != 7000 {
		t.Errorf("the external metric is %v, %v; want 7000", external, err)
	}
}
