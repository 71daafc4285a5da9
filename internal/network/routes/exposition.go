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
		stats := s.Services[id]
		writeHistogram(&out, latency, seriesLabels(id), stats.Latency, stats.Seconds)
	}
	writeRoutes(&out, s.Routes)
	fmt.Fprintf(&out, "# HELP gantry_gateway_connections Connections of clients.\n# TYPE gantry_gateway_connections gauge\ngantry_gateway_connections %d\n", s.Connections)
	out.WriteString("# HELP gantry_gateway_refused_total Connections and requests that a limit refused.\n# TYPE gantry_gateway_refused_total counter\n")
	for _, limit := range slices.Sorted(maps.Keys(s.Refused)) {
		fmt.Fprintf(&out, "gantry_gateway_refused_total{limit=%q} %d\n", limit, s.Refused[limit])
	}
	return out.Bytes()
}

// float writes a number as shortly as it is exact.
func float(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

// writeHistogram writes one series of a histogram.
func writeHistogram(out *bytes.Buffer, name, labels string, counts []uint64, seconds float64) {
	sum := uint64(0)
	for i, n := range counts {
		sum += n
		le := "+Inf"
		if bounds := gateway.LatencyBounds(); i < len(bounds) {
			le = float(bounds[i])
		}
		fmt.Fprintf(out, "%s_bucket{%s,le=%q} %d\n", name, labels, le, sum)
	}
	fmt.Fprintf(out, "%s_sum{%s} %s\n%s_count{%s} %d\n", name, labels, float(seconds), name, labels, sum)
}

// writeRoutes writes what is counted of each HTTPRoute, GRPCRoute and Ingress.
func writeRoutes(out *bytes.Buffer, routes map[string]gateway.RouteStats) {
	owners := slices.Sorted(maps.Keys(routes))
	head := func(name, kind, help string) {
		fmt.Fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
	head("gantry_gateway_route_requests_total", "counter", "Requests that fitted a route, by the first digit of the answer's status.")
	for _, owner := range owners {
		for _, code := range slices.Sorted(maps.Keys(routes[owner].Codes)) {
			fmt.Fprintf(out, "gantry_gateway_route_requests_total{%s,code=%q} %d\n", routeLabels(owner), code, routes[owner].Codes[code])
		}
	}
	for _, counter := range []struct {
		name, help string
		value      func(gateway.RouteStats) uint64
	}{
		{"gantry_gateway_route_errors_total", "Requests of a route that were answered with 5xx or not at all.", func(s gateway.RouteStats) uint64 { return s.Errors }},
		{"gantry_gateway_route_received_bytes_total", "Bytes of requests of a route.", func(s gateway.RouteStats) uint64 { return s.BytesIn }},
		{"gantry_gateway_route_sent_bytes_total", "Bytes of answers of a route.", func(s gateway.RouteStats) uint64 { return s.BytesOut }},
	} {
		head(counter.name, "counter", counter.help)
		for _, owner := range owners {
			fmt.Fprintf(out, "%s{%s} %d\n", counter.name, routeLabels(owner), counter.value(routes[owner]))
		}
	}
	const latency = "gantry_gateway_route_request_duration_seconds"
	head(latency, "histogram", "Time from the begin of a route's request to its answer's end.")
	for _, owner := range owners {
		writeHistogram(out, latency, routeLabels(owner), routes[owner].Latency, routes[owner].Seconds)
	}
}

// routeLabels are those of the object that routes are of, as "HTTPRoute/namespace/name".
func routeLabels(owner string) string {
	kind, rest, _ := strings.Cut(owner, "/")
	namespace, name, _ := strings.Cut(rest, "/")
	return fmt.Sprintf("kind=%q,namespace=%q,route=%q", kind, namespace, name)
}

// seriesLabels are those of a service in the tables. Names of objects need no escapes.
func seriesLabels(id string) string {
	key := compile.ServiceKey(id)
	_, port, _ := strings.Cut(id, ":")
	return fmt.Sprintf("namespace=%q,service=%q,port=%q", key.Namespace, key.Name, port)
}
