package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"gantry.dev/gantry/internal/platform/app/render"
)

const (
	answerLimit = 1 << 20
	askTimeout  = 5 * time.Second
)

// API asks the parts of the API that a client.Client has no words for: logs of containers, and custom metrics. It
// implements Logs and Metrics.
type API struct {
	// HTTP does requests as the controller's account.
	HTTP *http.Client
	// Host is the address of the API, such as "https://127.0.0.1:6443".
	Host string
}

// Tail implements Logs.
func (a *API) Tail(ctx context.Context, namespace, pod string, before bool) (string, error) {
	query := url.Values{"container": {render.ContainerName}, "tailLines": {fmt.Sprint(logLines)}, "limitBytes": {fmt.Sprint(16 * logBytes)}}
	path := "/api/v1/namespaces/" + namespace + "/pods/" + pod + "/log?"
	if before {
		query.Set("previous", "true")
		if text, _, err := a.get(ctx, path+query.Encode()); err == nil {
			return string(text), nil
		}
		query.Del("previous") // it is the current one's, then
	}
	text, _, err := a.get(ctx, path+query.Encode())
	return string(text), err
}

// Counts implements Metrics.
func (a *API) Counts(ctx context.Context, namespace, service string) (Counts, error) {
	var out Counts
	requests, err := a.metric(ctx, namespace, service, "requests_total")
	if err != nil {
		return out, err
	}
	failures, err := a.metric(ctx, namespace, service, "errors_total")
	if err != nil {
		return out, err
	}
	concurrency, err := a.metric(ctx, namespace, service, render.MetricConcurrency)
	if err != nil {
		return out, err
	}
	out.Requests, out.Errors, out.Concurrency = int64(requests), int64(failures), concurrency
	if p95, err := a.metric(ctx, namespace, service, "latency_p95_seconds"); err == nil { // there may have been no request
		out.P95 = time.Duration(p95 * float64(time.Second))
	}
	return out, nil
}

// metric is the value of one metric of a Service.
func (a *API) metric(ctx context.Context, namespace, service, metric string) (float64, error) {
	path := "/apis/custom.metrics.k8s.io/v1beta2/namespaces/" + namespace + "/services/" + service + "/" + metric
	body, code, err := a.get(ctx, path)
	switch {
	case code == http.StatusNotFound && strings.Contains(string(body), `"details"`):
		return 0, nil // served, and the Service is not there yet
	case code == http.StatusNotFound, code == http.StatusForbidden:
		return 0, ErrNoMetrics // what is served and does not answer for the moment is another error
	case err != nil:
		return 0, err
	}
	var list struct {
		Items []struct {
			Value resource.Quantity `json:"value"`
		} `json:"items"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return 0, fmt.Errorf("reading the metric %s of %s/%s: %w", metric, namespace, service, err)
	}
	sum := 0.0
	for i := range list.Items {
		sum += list.Items[i].Value.AsApproximateFloat64()
	}
	return sum, nil
}

func (a *API) get(ctx context.Context, path string) (body []byte, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.Host+path, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("asking for %s: %w", path, err)
	}
	request.Header.Set("Accept", "application/json, */*")
	answer, err := a.HTTP.Do(request)
	if err != nil {
		return nil, 0, fmt.Errorf("asking for %s: %w", path, err)
	}
	body, err = io.ReadAll(io.LimitReader(answer.Body, answerLimit))
	err = errors.Join(err, answer.Body.Close())
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("asking for %s: %s", path, answer.Status)
	}
	return body, answer.StatusCode, err
}
