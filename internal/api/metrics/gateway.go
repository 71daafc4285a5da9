package metrics

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// GatewayPath is where agents tell the counts of their node's gateway.
const GatewayPath = "/metrics/gateway"

// Names of the metrics of a Service.
const (
	RequestsTotal     = "requests_total"
	ErrorsTotal       = "errors_total"
	RequestsPerSecond = "requests_per_second"
	Concurrency       = "concurrency"
	LatencyP95        = "latency_p95_seconds"
)

// Names lists the metrics that a Service has.
func (*Gateways) Names() []string {
	return []string{RequestsTotal, ErrorsTotal, RequestsPerSecond, Concurrency, LatencyP95}
}

// Windows of rates, and how samples are kept for them.
const (
	rateWindow    = 15 * time.Second
	latencyWindow = time.Minute
	keepSamples   = latencyWindow + 15*time.Second
	leastApart    = time.Second     // between the samples of a rate
	reuse         = 2 * time.Second // who asks sooner gets the last sample
	maxPage       = 16 << 20
)

// counts are a service's on one node.
type counts struct {
	requests, errors, busy float64
	buckets                map[float64]float64 // cumulative, by upper bound
}

// sample is what all nodes said at one time.
type sample struct {
	at    time.Time
	nodes map[string]map[types.NamespacedName]*counts
}

// Gateways sums the counts of all nodes' gateways. Nothing is asked while nobody asks. It is safe for concurrent use.
type Gateways struct {
	source *Source

	mu      sync.Mutex // held while agents are asked: callers share one round
	samples []*sample  // oldest first
}

// NewGateways checks opts and returns a Gateways.
func NewGateways(opts Options) (*Gateways, error) {
	source, err := New(opts)
	if err != nil {
		return nil, err
	}
	return &Gateways{source: source}, nil
}

// Value is a metric of a Service. The window is zero for what is no rate.
func (g *Gateways) Value(ctx context.Context, service types.NamespacedName, metric string) (value float64, at time.Time, window time.Duration, err error) {
	switch metric {
	case RequestsTotal, ErrorsTotal:
		last, _, err := g.pair(ctx, 0)
		if err != nil {
			return 0, at, 0, err
		}
		total := last.total(service)
		if metric == RequestsTotal {
			return total.requests, last.at, 0, nil
		}
		return total.errors, last.at, 0, nil
	case RequestsPerSecond, Concurrency:
		last, first, err := g.pair(ctx, rateWindow)
		if err != nil {
			return 0, at, 0, err
		}
		d, took := difference(first, last, service), last.at.Sub(first.at)
		if metric == Concurrency {
			return d.busy / took.Seconds(), last.at, took, nil
		}
		return d.requests / took.Seconds(), last.at, took, nil
	case LatencyP95:
		last, first, err := g.pair(ctx, latencyWindow)
		if err != nil {
			return 0, at, 0, err
		}
		return quantile(difference(first, last, service).buckets, 0.95), last.at, last.at.Sub(first.at), nil
	}
	return 0, at, 0, fmt.Errorf("metrics: a Service has no %q", metric)
}

// pair returns the newest sample and, for a window, the one that lies about that much before it: the youngest that is old
// enough, else the oldest there is. The very first time it waits for a second one.
func (g *Gateways) pair(ctx context.Context, window time.Duration) (last, first *sample, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if last, err = g.sampleLocked(ctx); err != nil || window == 0 {
		return last, nil, err
	}
	for {
		for _, s := range g.samples {
			age := last.at.Sub(s.at)
			if age >= leastApart && (first == nil || age >= window-time.Second) {
				first = s
			}
		}
		if first != nil {
			return last, first, nil
		}
		timer := time.NewTimer(leastApart - last.at.Sub(g.samples[0].at))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, nil, ctx.Err()
		case <-timer.C:
		}
		if last, err = g.takeLocked(ctx); err != nil {
			return nil, nil, err
		}
	}
}

// sampleLocked returns a sample that is new enough.
func (g *Gateways) sampleLocked(ctx context.Context) (*sample, error) {
	if n := len(g.samples); n > 0 && time.Since(g.samples[n-1].at) < reuse {
		return g.samples[n-1], nil
	}
	return g.takeLocked(ctx)
}

// takeLocked asks all nodes.
func (g *Gateways) takeLocked(ctx context.Context) (*sample, error) {
	var nodes corev1.NodeList
	if err := g.source.opts.Reader.List(ctx, &nodes); err != nil {
		return nil, fmt.Errorf("listing nodes: %w", err)
	}
	s := &sample{nodes: map[string]map[types.NamespacedName]*counts{}}
	var mu sync.Mutex
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(nodesAtOnce)
	for i := range nodes.Items {
		node := &nodes.Items[i]
		if lost(node) {
			continue
		}
		group.Go(func() error {
			page, err := g.source.fetch(groupCtx, node, GatewayPath, maxPage)
			if err != nil {
				g.source.opts.Log.LogAttrs(groupCtx, slog.LevelDebug, "cannot learn what a gateway counts", slog.String("nodeName", node.Name), slog.Any("error", err))
				return nil // a node that does not answer is not there
			}
			parsed := parsePage(page)
			mu.Lock()
			defer mu.Unlock()
			s.nodes[node.Name] = parsed
			return nil
		})
	}
	_ = group.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	s.at = time.Now()
	g.samples = slices.DeleteFunc(g.samples, func(old *sample) bool { return s.at.Sub(old.at) > keepSamples })
	g.samples = append(g.samples, s)
	return s, nil
}

// fetch reads a page of one agent.
func (s *Source) fetch(ctx context.Context, node *corev1.Node, path string, limit int64) ([]byte, error) {
	address, ok := AddressOf(node)
	if !ok {
		return nil, errors.New("the node has no address")
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := s.opts.Transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the agent answered %s", response.Status)
	}
	return io.ReadAll(io.LimitReader(response.Body, limit))
}

// total sums a service over the nodes.
func (s *sample) total(service types.NamespacedName) counts {
	var out counts
	for _, node := range s.nodes {
		if c := node[service]; c != nil {
			out.requests += c.requests
			out.errors += c.errors
		}
	}
	return out
}

// difference sums what came between two samples. A gateway that began anew counts from zero.
func difference(first, last *sample, service types.NamespacedName) counts {
	out := counts{buckets: map[float64]float64{}}
	for name, node := range last.nodes {
		after := node[service]
		if after == nil {
			continue
		}
		before := first.nodes[name][service]
		if before == nil || before.requests > after.requests {
			before = &counts{}
		}
		out.requests += after.requests - before.requests
		out.errors += after.errors - before.errors
		out.busy += max(after.busy-before.busy, 0)
		for le, n := range after.buckets {
			out.buckets[le] += n - before.buckets[le]
		}
	}
	return out
}

// quantile estimates a quantile from cumulative buckets, as Prometheus does: values lie evenly within a bucket.
func quantile(buckets map[float64]float64, q float64) float64 {
	bounds := make([]float64, 0, len(buckets))
	for le := range buckets {
		bounds = append(bounds, le)
	}
	slices.SortFunc(bounds, cmp.Compare[float64])
	if len(bounds) == 0 || buckets[bounds[len(bounds)-1]] == 0 {
		return 0
	}
	rank := q * buckets[bounds[len(bounds)-1]]
	low, below := 0.0, 0.0
	for _, le := range bounds {
		if n := buckets[le]; n >= rank {
			if math.IsInf(le, 1) || n == below {
				return low
			}
			return low + (le-low)*(rank-below)/(n-below)
		}
		low, below = le, buckets[le]
	}
	return low
}

// parsePage reads what an agent says. Ports of a Service are added up; lines that are not understood are passed over.
func parsePage(page []byte) map[types.NamespacedName]*counts {
	out := map[types.NamespacedName]*counts{}
	lines := bufio.NewScanner(bytes.NewReader(page))
	for lines.Scan() {
		name, labels, value, ok := parseLine(lines.Text())
		if !ok || labels["service"] == "" {
			continue
		}
		key := types.NamespacedName{Namespace: labels["namespace"], Name: labels["service"]}
		c := out[key]
		if c == nil {
			c = &counts{buckets: map[float64]float64{}}
			out[key] = c
		}
		switch name {
		case "gantry_gateway_requests_total":
			c.requests += value
		case "gantry_gateway_errors_total":
			c.errors += value
		case "gantry_gateway_busy_seconds_total":
			c.busy += value
		case "gantry_gateway_request_duration_seconds_bucket":
			if le, err := strconv.ParseFloat(labels["le"], 64); err == nil {
				c.buckets[le] += value
			}
		}
	}
	return out
}

// parseLine reads NAME{LABEL="VALUE",...} NUMBER, where values need no escapes.
func parseLine(line string) (name string, labels map[string]string, value float64, ok bool) {
	if strings.HasPrefix(line, "#") {
		return "", nil, 0, false
	}
	name, rest, found := strings.Cut(line, "{")
	inside, number, closed := strings.Cut(rest, "} ")
	if !found || !closed {
		return "", nil, 0, false
	}
	labels = map[string]string{}
	for _, pair := range strings.Split(inside, ",") {
		key, quoted, _ := strings.Cut(pair, "=")
		labels[key] = strings.Trim(quoted, `"`)
	}
	value, err := strconv.ParseFloat(number, 64)
	return name, labels, value, err == nil
}
