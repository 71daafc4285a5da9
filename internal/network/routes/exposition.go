package routes

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"gantry.dev/gantry/internal/network/gateway"
	"gantry.dev/gantry/internal/network/routes/compile"
)

// Exposition is a snapshot in the text format of Prometheus. Ports of one Service have series of their own.
func Exposition(s *gateway.Snapshot) []byte {
	var out bytes.Buffer
	ids := slices.Sorted(maps.Keys(s.Services))
	family := func(name, kind, help string, value func(*gateway.ServiceStats) string) {
		fmt.Fprintf(&out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		for _, id := range ids {
			stats := s.Services[id]
			fmt.Fprintf(&out, "%s{%s} %s\n", name, seriesLabels(id), value(&stats))
		}
	}
	count := func(n uint64) string { return strconv.FormatUint(n, 10) }
	float := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	family("gantry_gateway_requests_total", "counter", "Requests that the gateway took for a Service.", func(s *gateway.ServiceStats) string { return count(s.Requests) })
	family("gantry_gateway_errors_total", "counter", "Requests that were answered with 5xx or not at all.", func(s *gateway.ServiceStats) string { return count(s.Errors) })
	family("gantry_gateway_received_bytes_total", "counter", "Bytes of requests.", func(s *gateway.ServiceStats) string { return count(s.BytesIn) })
	family("gantry_gateway_sent_bytes_total", "counter", "Bytes of answers.", func(s *gateway.ServiceStats) string { return count(s.BytesOut) })
	family("gantry_gateway_retries_total", "counter", "Requests tried again on another endpoint.", func(s *gateway.ServiceStats) string { return count(s.Retries) })
	family("gantry_gateway_ejections_total", "counter", "Endpoints that were left out for a while because they failed.", func(s *gateway.ServiceStats) string { return count(s.Ejections) })
	family("gantry_gateway_requests_in_flight", "gauge", "Requests that are under way, those held included.", func(s *gateway.ServiceStats) string { return strconv.FormatInt(s.InFlight, 10) })
	family("gantry_gateway_requests_held", "gauge", "Requests that wait for an endpoint.", func(s *gateway.ServiceStats) string { return strconv.FormatInt(s.Held, 10) })
	family("gantry_gateway_busy_seconds_total", "counter", "Sum of the time that requests were under way: its rate is the concurrency.", func(s *gateway.ServiceStats) string { return float(s.Busy) })
	const latency = "gantry_gateway_request_duration_seconds"
	fmt.Fprintf(&out, "# HELP %s Time from a request's begin to its answer's end.\n# TYPE %s histogram\n", latency, latency)
	for _, id := range ids {
		stats, labels, sum := s.Services[id], seriesLabels(id), uint64(0)
		for i, n := range stats.Latency {
			sum += n
			le := "+Inf"
			if bounds := gateway.LatencyBounds(); i < len(bounds) {
				le = float(bounds[i])
			}
			fmt.Fprintf(&out, "%s_bucket{%s,le=%q} %d\n", latency, labels, le, sum)
		}
		fmt.Fprintf(&out, "%s_sum{%s} %s\n%s_count{%s} %d\n", latency, labels, float(stats.Seconds), latency, labels, sum)
	}
	fmt.Fprintf(&out, "# HELP gantry_gateway_connections Connections of clients.\n# TYPE gantry_gateway_connections gauge\ngantry_gateway_connections %d\n", s.Connections)
	out.WriteString("# HELP gantry_gateway_refused_total Connections and requests that a limit refused.\n# TYPE gantry_gateway_refused_total counter\n")
	for _, limit := range slices.Sorted(maps.Keys(s.Refused)) {
		fmt.Fprintf(&out, "gantry_gateway_refused_total{limit=%q} %d\n", limit, s.Refused[limit])
	}
	return out.Bytes()
}

// seriesLabels are those of a service in the tables. Names of objects need no escapes.
func seriesLabels(id string) string {
	key := compile.ServiceKey(id)
	_, port, _ := strings.Cut(id, ":")
	return fmt.Sprintf("namespace=%q,service=%q,port=%q", key.Namespace, key.Name, port)
}
