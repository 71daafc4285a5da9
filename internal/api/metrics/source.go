package metrics

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Bounds of asking the nodes.
const (
	nodesAtOnce   = 16
	maxSummary    = 16 << 20
	agentPort     = 10250
	summaryPath   = "/stats/summary?only_cpu_and_memory=true"
	nominalWindow = 15 * time.Second // over which agents compute rates
)

// Options tells New how to reach the agents. Reader and Transport are required.
type Options struct {
	Reader    client.Reader     // of Nodes and Pods
	Transport http.RoundTripper // to agents, with a client certificate that they believe
	MaxAge    time.Duration     // how old an answer may become; default 10s
	Timeout   time.Duration     // for one agent; default 5s
	Log       *slog.Logger      // default: discards
}

// Source asks the agents. It is safe for concurrent use.
type Source struct {
	opts Options

	mu       sync.Mutex // held while agents are asked: callers share one round
	at       time.Time
	measured map[string]*statsapi.Summary // by node
}

// New checks opts and returns a Source.
func New(opts Options) (*Source, error) {
	if opts.Reader == nil || opts.Transport == nil {
		return nil, errors.New("metrics: Reader and Transport are required")
	}
	opts.MaxAge = cmp.Or(opts.MaxAge, 10*time.Second)
	opts.Timeout = cmp.Or(opts.Timeout, 5*time.Second)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Source{opts: opts}, nil
}

// summaries returns what each node that answered uses.
func (s *Source) summaries(ctx context.Context, nodes []corev1.Node) (map[string]*statsapi.Summary, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.measured != nil && time.Since(s.at) < s.opts.MaxAge {
		return s.measured, nil
	}
	var mu sync.Mutex
	measured := make(map[string]*statsapi.Summary, len(nodes))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(nodesAtOnce)
	for i := range nodes {
		node := &nodes[i]
		if lost(node) {
			continue
		}
		group.Go(func() error {
			summary, err := s.ask(groupCtx, node)
			if err != nil {
				s.opts.Log.Warn("cannot learn what a node uses", "nodeName", node.Name, "error", err)
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			measured[node.Name] = summary
			return nil
		})
	}
	_ = group.Wait() // a node that does not answer is not there
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	s.at, s.measured = time.Now(), measured
	return measured, nil
}

// lost reports whether nothing was heard of a node for a while: asking would only take time.
func lost(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown
	})
}

// ask reads the summary of one node.
func (s *Source) ask(ctx context.Context, node *corev1.Node) (*statsapi.Summary, error) {
	address, ok := AddressOf(node)
	if !ok {
		return nil, errors.New("the node has no address")
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+summaryPath, nil)
	if err != nil {
		return nil, err
	}
	response, err := s.opts.Transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the agent answered %s", response.Status)
	}
	summary := new(statsapi.Summary)
	if err := json.NewDecoder(io.LimitReader(response.Body, maxSummary)).Decode(summary); err != nil {
		return nil, fmt.Errorf("reading the agent's answer: %w", err)
	}
	return summary, nil
}

// AddressOf is where the agent of a node listens.
func AddressOf(node *corev1.Node) (string, bool) {
	port := cmp.Or(node.Status.DaemonEndpoints.KubeletEndpoint.Port, agentPort)
	for _, want := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP, corev1.NodeHostName} {
		for _, a := range node.Status.Addresses {
			if a.Type == want {
				return net.JoinHostPort(a.Address, strconv.Itoa(int(port))), true
			}
		}
	}
	return "", false
}
