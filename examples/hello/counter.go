package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
	counterName       = "hello-counter"
	counterKey        = "requests"
	// attempts bounds the tries of one request when other replicas write at the same time.
	attempts = 20
	// addWithin bounds the time that a visitor waits for the count.
	addWithin = 3 * time.Second
)

// memoryCounter counts for this process alone.
type memoryCounter struct{ count atomic.Int64 }

func (m *memoryCounter) add(context.Context) (int64, bool) { return m.count.Add(1), false }

// counterFor returns a counter in the cluster, or one in memory where there is no cluster.
func counterFor(getenv func(string) string, logger *slog.Logger) counter {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	ca, err := os.ReadFile(filepath.Join(serviceAccountDir, "ca.crt"))
	if host == "" || err != nil {
		logger.Info("no cluster around: counting in memory")
		return &memoryCounter{}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		logger.Warn("the cluster's certificate cannot be read: counting in memory")
		return &memoryCounter{}
	}
	namespace := getenv("POD_NAMESPACE")
	if text, err := os.ReadFile(filepath.Join(serviceAccountDir, "namespace")); err == nil {
		namespace = strings.TrimSpace(string(text))
	}
	return &clusterCounter{
		url: "https://" + net.JoinHostPort(host, orElse(port, "443")) + "/api/v1/namespaces/" + namespace + "/configmaps",
		token: func() (string, error) { // read anew each time: the kubelet replaces it
			text, err := os.ReadFile(filepath.Join(serviceAccountDir, "token"))
			return strings.TrimSpace(string(text)), err
		},
		client: &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
		}},
		logger: logger,
	}
}

// configMap is the part of a ConfigMap that the counter needs.
type configMap struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   configMapMetadata `json:"metadata"`
	Data       map[string]string `json:"data"`
}

type configMapMetadata struct {
	Name            string `json:"name"`
	ResourceVersion string `json:"resourceVersion,omitempty"`
}

// clusterCounter keeps the count in a ConfigMap that all replicas change.
type clusterCounter struct {
	url    string // of the namespace's ConfigMaps
	token  func() (string, error)
	client *http.Client
	logger *slog.Logger
	own    memoryCounter // stands in while the API cannot be reached
}

var (
	errNotFound = errors.New("not found")
	errConflict = errors.New("somebody else was quicker")
)

// add reads the count and writes it back, one higher. The resourceVersion in the write makes the API
// refuse it when another replica wrote in between; then it starts over.
func (c *clusterCounter) add(ctx context.Context) (int64, bool) {
	own, _ := c.own.add(ctx)
	ctx, cancel := context.WithTimeout(ctx, addWithin)
	defer cancel()
	for attempt := range attempts {
		count, err := c.try(ctx)
		if err == nil {
			return count, true
		}
		if !errors.Is(err, errConflict) {
			c.logger.Warn("the count cannot be kept in the cluster", "err", err)
			break
		}
		pause := time.Duration(rand.Int64N(int64(2*time.Millisecond) << min(attempt, 6)))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	return own, false
}

func (c *clusterCounter) try(ctx context.Context) (int64, error) {
	var current configMap
	err := c.call(ctx, http.MethodGet, c.url+"/"+counterName, nil, &current)
	if errors.Is(err, errNotFound) {
		fresh := configMap{"v1", "ConfigMap", configMapMetadata{Name: counterName}, map[string]string{counterKey: "1"}}
		return 1, c.call(ctx, http.MethodPost, c.url, fresh, nil)
	}
	if err != nil {
		return 0, err
	}
	count, err := strconv.ParseInt(current.Data[counterKey], 10, 64)
	if err != nil {
		count = 0 // somebody wrote nonsense there; begin anew
	}
	count++
	current.APIVersion, current.Kind = "v1", "ConfigMap"
	if current.Data == nil {
		current.Data = map[string]string{}
	}
	current.Data[counterKey] = strconv.FormatInt(count, 10)
	return count, c.call(ctx, http.MethodPut, c.url+"/"+counterName, current, nil)
}

// call makes one request of the API.
func (c *clusterCounter) call(ctx context.Context, method, url string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		body = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, url, err)
	}
	token, err := c.token()
	if err != nil {
		return fmt.Errorf("read token: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Accept", "application/json")
	if in != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.client.Do(request)
	if err != nil {
		return fmt.Errorf("ask the API: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	switch {
	case err != nil:
		return fmt.Errorf("read the API's answer: %w", err)
	case response.StatusCode == http.StatusNotFound && method == http.MethodGet:
		return errNotFound
	case response.StatusCode == http.StatusConflict:
		return errConflict
	case response.StatusCode/100 != 2:
		return fmt.Errorf("%s %s: %s: %.200s", method, url, response.Status, text)
	case out != nil:
		if err := json.Unmarshal(text, out); err != nil {
			return fmt.Errorf("read the API's answer: %w", err)
		}
	}
	return nil
}
