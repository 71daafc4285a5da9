package api

import (
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts requests under upstream's names, so that dashboards made for Kubernetes work.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inflight *prometheus.GaugeVec
	dropped  *prometheus.CounterVec

	mu    sync.RWMutex // guards known
	known map[series]observer
}

// series is the labels of one kind of request.
type series struct {
	group, version, resource, subresource, verb, scope string
	code                                               int
}

// observer is the metrics of one series, looked up once.
type observer struct {
	count    prometheus.Counter
	duration prometheus.Observer
}

// maxSeries bounds the series kept; a client cannot make more by inventing paths, since those have no resource.
const maxSeries = 10000

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	labels := []string{"verb", "group", "version", "resource", "subresource", "scope", "component"}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_request_total",
			Help: "Counter of apiserver requests broken out for each verb, group, version, resource, scope, component, and HTTP response code."},
			append(labels, "code")),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "apiserver_request_duration_seconds",
			Help:    "Response latency distribution in seconds for each verb, group, version, resource, subresource, scope and component.",
			Buckets: []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}}, labels),
		inflight: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "apiserver_longrunning_requests",
			Help: "Gauge of all active long-running apiserver requests broken out by verb and resource."}, []string{"verb", "resource"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_dropped_requests_total",
			Help: "Requests refused because too many were being served."}, []string{"verb"}),
		known: map[series]observer{},
	}
	for _, collector := range []prometheus.Collector{m.requests, m.duration, m.inflight, m.dropped} {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(collector); err != nil && !errors.As(err, &already) {
			return nil, err
		}
	}
	return m, nil
}

// observe counts one finished request.
func (m *metrics) observe(q *query, code int) {
	key := series{verb: metricVerb(q), code: code, scope: "resource"}
	switch {
	case !q.path.IsResourceRequest || q.endpoint == nil:
		key.scope = ""
	default:
		key.group, key.version, key.resource, key.subresource = q.path.APIGroup, q.path.APIVersion, q.path.Resource, q.path.Subresource
		if q.path.Name == "" {
			key.scope = "namespace"
			if q.path.Namespace == "" {
				key.scope = "cluster"
			}
		}
	}
	o := m.of(key)
	o.count.Inc()
	if !q.path.longRunning() {
		o.duration.Observe(time.Since(q.start).Seconds())
	}
}

func (m *metrics) of(key series) observer {
	m.mu.RLock()
	o, found := m.known[key]
	m.mu.RUnlock()
	if found {
		return o
	}
	o = observer{
		count: m.requests.WithLabelValues(key.verb, key.group, key.version, key.resource, key.subresource, key.scope, "apiserver", strconv.Itoa(key.code)),
		duration: m.duration.WithLabelValues(key.verb, key.group, key.version, key.resource, key.subresource, key.scope,
			"apiserver"),
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.known) < maxSeries {
		m.known[key] = o
	}
	return o
}

// metricVerb is the verb as metrics name it.
func metricVerb(q *query) string {
	switch q.path.Verb {
	case "get":
		return "GET"
	case "list":
		return "LIST"
	case "watch":
		return "WATCH"
	case "create", "post":
		if q.path.longRunning() {
			return "CONNECT"
		}
		return "POST"
	case "update", "put":
		return "PUT"
	case "patch":
		if q.applies {
			return "APPLY"
		}
		return "PATCH"
	case "delete":
		return "DELETE"
	case "deletecollection":
		return "DELETECOLLECTION"
	}
	return "OTHER"
}
