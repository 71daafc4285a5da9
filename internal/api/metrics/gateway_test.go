package metrics_test

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/api/metrics"
)

// gateways answers for nodes by their address.
type gateways struct {
	mu    sync.Mutex
	pages map[string]string
	asked int
}

func (g *gateways) RoundTrip(r *http.Request) (*http.Response, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked++
	page, ok := g.pages[r.URL.Host]
	if !ok || r.URL.Path != metrics.GatewayPath {
		return nil, fmt.Errorf("nobody listens at %s", r.URL)
	}
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(page))}, nil
}

func (g *gateways) set(host, page string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pages[host] = page
}

// page is what an agent says of default/web, on two ports.
func page(requests, errors int, busy float64, fast, slow int) string {
	const labels = `{namespace="default",service="web",port="80"}`
	return fmt.Sprintf("# TYPE gantry_gateway_requests_total counter\ngantry_gateway_requests_total%[1]s %[2]d\n"+
		"gantry_gateway_requests_total{namespace=\"default\",service=\"web\",port=\"90\"} 0\ngantry_gateway_errors_total%[1]s %[3]d\n"+
		"gantry_gateway_busy_seconds_total%[1]s %[4]g\n"+
		"gantry_gateway_request_duration_seconds_bucket{namespace=\"default\",service=\"web\",port=\"80\",le=\"0.1\"} %[5]d\n"+
		"gantry_gateway_request_duration_seconds_bucket{namespace=\"default\",service=\"web\",port=\"80\",le=\"1\"} %[6]d\n"+
		"gantry_gateway_request_duration_seconds_bucket{namespace=\"default\",service=\"web\",port=\"80\",le=\"+Inf\"} %[6]d\ngantry_gateway_connections 3\n",
		labels, requests, errors, busy, fast, fast+slow)
}

func TestGateways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		agents := &gateways{pages: map[string]string{"10.0.0.1:10250": page(1000, 10, 5, 100, 0), "10.0.0.2:10250": page(500, 0, 0, 0, 0)}}
		reader := objects{nodes: []corev1.Node{node("a", "10.0.0.1", corev1.ConditionTrue), node("b", "10.0.0.2", corev1.ConditionTrue), node("c", "10.0.0.3", corev1.ConditionUnknown)}}
		source, err := metrics.NewGateways(metrics.Options{Reader: reader, Transport: agents})
		if err != nil {
			t.Fatal(err)
		}
		web := types.NamespacedName{Namespace: "default", Name: "web"}
		expect := func(metric string, want float64, wantWindow time.Duration) {
			t.Helper()
			got, at, window, err := source.Value(t.Context(), web, metric)
			if err != nil || math.Abs(got-want) > 1e-9 || window != wantWindow || time.Since(at) > 2*time.Second {
				t.Errorf("%s = %g over %v, %v; want %g over %v", metric, got, window, err, want, wantWindow)
			}
		}
		expect(metrics.RequestsTotal, 1500, 0)
		expect(metrics.ErrorsTotal, 10, 0)
		expect(metrics.RequestsPerSecond, 0, time.Second) // the first time it waits for a second sample
		time.Sleep(15 * time.Second)
		// One gateway began anew and has counted 30 since.
		agents.set("10.0.0.1:10250", page(1300, 10, 35, 190, 10))
		agents.set("10.0.0.2:10250", page(30, 0, 0, 0, 0))
		expect(metrics.RequestsPerSecond, 330.0/15, 15*time.Second)
		expect(metrics.Concurrency, 30.0/15, 15*time.Second)
		expect(metrics.LatencyP95, 0.55, 16*time.Second) // 90 of 100 below 0.1 s, the others evenly up to 1 s
		before := agents.asked
		expect(metrics.RequestsTotal, 1330, 0)
		if agents.asked != before {
			t.Error("agents were asked again at once")
		}
		if _, _, _, err := source.Value(t.Context(), web, "smell"); err == nil {
			t.Error("an unknown metric has a value")
		}
		got, _, _, err := source.Value(t.Context(), types.NamespacedName{Namespace: "default", Name: "quiet"}, metrics.LatencyP95)
		if err != nil || got != 0 {
			t.Errorf("a Service without requests has %g, %v", got, err)
		}
	})
}
