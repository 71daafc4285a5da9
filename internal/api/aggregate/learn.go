package aggregate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/endpoints"
	"k8s.io/client-go/transport"
)

const (
	fetchTimeout  = 5 * time.Second
	fetchMaxBytes = 32 << 20 // of one document; OpenAPI's are the largest
	learners      = 4        // servers asked at once
	retryDelay    = 2 * time.Second
)

// learned is what the server of an APIService said about it.
type learned struct {
	resources []apidiscovery.APIResourceDiscovery
	stale     bool // the last attempt failed
}

// learnLocked asks the loop to learn about an APIService. a.mu is held.
func (a *Aggregator) learnLocked(name string) {
	a.stale[name] = true
	select {
	case a.dirty <- struct{}{}:
	default:
	}
}

// learnLoop keeps what is known of other servers fresh until ctx ends.
func (a *Aggregator) learnLoop(ctx context.Context) {
	refresh := time.NewTicker(a.opts.Refresh)
	defer refresh.Stop()
	for {
		var retry <-chan time.Time
		if a.learnStale(ctx) {
			retry = time.After(min(retryDelay, a.opts.Refresh))
		}
		select {
		case <-ctx.Done():
			return
		case <-a.dirty:
		case <-retry:
		case <-refresh.C:
			a.mu.Lock()
			for name, service := range a.services {
				a.stale[name] = service.Spec.Service != nil
			}
			a.mu.Unlock()
		}
	}
}

// learnStale asks the servers of all APIServices that changed; failed reports that some have to be asked again.
func (a *Aggregator) learnStale(ctx context.Context) (failed bool) {
	a.mu.Lock()
	targets := a.table.Load().targets
	var todo []*Target
	for _, target := range targets {
		if a.stale[target.name] {
			todo = append(todo, target)
		}
	}
	clear(a.stale)
	a.mu.Unlock()
	var group sync.WaitGroup
	places := make(chan struct{}, learners)
	var mu sync.Mutex // guards failed
	for _, target := range todo {
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			if !a.learn(ctx, target) {
				mu.Lock()
				failed = true
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return failed
}

// learn asks one server and keeps its answer; what it said before stays, marked as stale, while it does not answer.
func (a *Aggregator) learn(ctx context.Context, target *Target) bool {
	resources, err := target.discover(ctx)
	if err != nil && ctx.Err() == nil {
		a.opts.Log.LogAttrs(ctx, slog.LevelDebug, "learning what another API server has", slog.String("apiService", target.name), slog.Any("error", err))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.services[target.name] == nil {
		return true
	}
	was, known := a.learned[target.name]
	next := learned{resources: resources, stale: err != nil}
	if err != nil {
		next.resources = was.resources
		if target.available { // else its becoming available starts the next attempt
			a.stale[target.name] = true
		}
	}
	a.learned[target.name] = next
	if !known || was.stale != next.stale || !equalJSON(was.resources, next.resources) {
		a.rebuildLocked()
	}
	return err == nil || !target.available
}

func equalJSON(x, y any) bool {
	a, errA := json.Marshal(x)
	b, errB := json.Marshal(y)
	return errA == nil && errB == nil && slices.Equal(a, b)
}

// discoveryOf is what discovery shows of a group version of another server.
func (l learned) discoveryOf(version string) apidiscovery.APIVersionDiscovery {
	out := apidiscovery.APIVersionDiscovery{Version: version, Freshness: apidiscovery.DiscoveryFreshnessCurrent, Resources: l.resources}
	if l.stale {
		out.Freshness = apidiscovery.DiscoveryFreshnessStale
	}
	return out
}

// discover fetches the resources of the target's group version: from the aggregated document or, from older servers,
// from that of the version.
func (t *Target) discover(ctx context.Context) ([]apidiscovery.APIResourceDiscovery, error) {
	const aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	data, header, err := t.Fetch(ctx, "/apis", aggregated)
	if _, params, bad := mime.ParseMediaType(header.Get("Content-Type")); err == nil && bad == nil && params["as"] == "APIGroupDiscoveryList" {
		var list apidiscovery.APIGroupDiscoveryList
		if err := json.Unmarshal(data, &list); err != nil {
			return nil, fmt.Errorf("reading the discovery document: %w", err)
		}
		for i := range list.Items {
			if list.Items[i].Name != t.spec.Group {
				continue
			}
			for _, version := range list.Items[i].Versions {
				if version.Version == t.spec.Version {
					return version.Resources, nil
				}
			}
		}
		return nil, nil // it answers, and does not have the version
	}
	if errors.Is(err, errUnavailable) {
		return nil, err
	}
	if data, _, err = t.Fetch(ctx, "/apis/"+t.spec.Group+"/"+t.spec.Version, "application/json"); err != nil {
		return nil, err
	}
	var list metav1.APIResourceList
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("reading the discovery document: %w", err)
	}
	resources, err := endpoints.ConvertGroupVersionIntoToDiscovery(list.APIResources)
	if err != nil {
		return nil, fmt.Errorf("reading the discovery document: %w", err)
	}
	return resources, nil
}

// errUnavailable says that a server cannot be asked now.
var errUnavailable = errors.New("the API server is unavailable")

// Fetch gets a document from the server as the aggregator itself. Header is never nil.
func (t *Target) Fetch(ctx context.Context, path, accept string) (data []byte, header http.Header, err error) {
	header = http.Header{}
	if t.err != nil {
		return nil, header, fmt.Errorf("%w: %w", errUnavailable, t.err)
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	endpoint, err := resolve(ctx, t.opts.Reader, t.spec.Service)
	if err != nil {
		return nil, header, fmt.Errorf("%w: %w", errUnavailable, err)
	}
	location := url.URL{Scheme: "https", Host: endpoint.Host, Path: path}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, location.String(), nil)
	if err != nil {
		return nil, header, fmt.Errorf("fetching %s: %w", path, err)
	}
	request.Header.Set("Accept", accept)
	transport.SetAuthProxyHeaders(request, "system:kube-aggregator", "", []string{"system:masters"}, nil)
	response, err := t.transport.RoundTrip(request)
	if err != nil {
		return nil, header, fmt.Errorf("%w: %w", errUnavailable, err)
	}
	defer func() { _ = response.Body.Close() }() // was read, or is of no use
	if response.StatusCode != http.StatusOK {
		err := fmt.Errorf("fetching %s: %s", path, response.Status)
		if response.StatusCode == http.StatusServiceUnavailable {
			err = fmt.Errorf("%w: %w", errUnavailable, err)
		}
		return nil, response.Header, err
	}
	data, err = io.ReadAll(io.LimitReader(response.Body, fetchMaxBytes+1))
	if err == nil && len(data) > fetchMaxBytes {
		err = fmt.Errorf("fetching %s: larger than %d bytes", path, fetchMaxBytes)
	}
	return data, response.Header, err
}
