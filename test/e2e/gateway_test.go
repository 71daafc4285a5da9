//go:build linux

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const gatewayManifest = rolloutManifest + `
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  tls: [{hosts: [ingress.test]}]
  rules:
  - host: ingress.test
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec:
  parentRefs: [{namespace: gantry-system, name: gantry}]
  hostnames: [web.localhost]
  rules:
  - backendRefs: [{name: web, port: 80}]
`

// throughGateway is a client in a namespace that takes every name for the machine, and believes the cluster's authority.
func (c *cluster) throughGateway(t *testing.T, ns string) *http.Client {
	t.Helper()
	encoded := c.kubectl(t, "get", "secret", "-n", "gantry-system", "gateway-ca", "-o", `jsonpath={.data.ca\.crt}`)
	ca, err := base64.StdEncoding.DecodeString(encoded)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(ca) {
		t.Fatalf("the authority is %q, %v", ca, err)
	}
	dial := dialIn(ns)
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			return dial(ctx, network, net.JoinHostPort(machineIP, port))
		},
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 8,
	}}
}

// TestGateway reaches an application through Ingress and HTTPRoute, by HTTP and HTTPS, and kills Gantry under load.
func TestGateway(t *testing.T) {
	c := newCluster(t)
	c.up(t)
	c.load(t, true)
	ns := c.namespace(t, "gateway")
	eventually(t, "the Gateway is programmed", 60*time.Second, func() error {
		if r := c.try(t, "wait", "-n", "gantry-system", "gateway/gantry", "--for=condition=Programmed", "--timeout=1s"); r.code != 0 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	c.apply(t, ns, gatewayManifest)
	c.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	eventually(t, "the certificates are there", 30*time.Second, func() error {
		for _, host := range []string{"web.localhost", "ingress.test"} {
			if r := c.try(t, "get", "secret", "-n", "gantry-system", "certificate-"+host, "-o", `jsonpath={.metadata.annotations.gateway\.gantry\.dev/expires}`); r.code != 0 || r.stdout == "" {
				return fmt.Errorf("%s: %v", host, r)
			}
		}
		return nil
	})
	client := c.throughGateway(t, c.outside)
	for _, url := range []string{"http://web.localhost/", "https://web.localhost/", "http://ingress.test/", "https://ingress.test/"} {
		eventually(t, url+" answers", 20*time.Second, func() error {
			body, err := fetch(client, url)
			if err == nil && !strings.HasPrefix(body, "web-") {
				err = fmt.Errorf("it answers %q", body)
			}
			return err
		})
	}
	if out := c.kubectl(t, "get", "httproute", "-n", ns, "web", "-o", `jsonpath={.status.parents[0].conditions[?(@.type=="Accepted")].status}`); out != "True" {
		t.Errorf("the route's condition Accepted is %q", out)
	}
	eventually(t, "the Ingress has the node's address", 10*time.Second, func() error {
		if out := c.kubectl(t, "get", "ingress", "-n", ns, "web", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}"); out != machineIP {
			return fmt.Errorf("it is %q", out)
		}
		return nil
	})

	load := startLoad(client, "https://web.localhost/", 4)
	load.until(t, 200)
	c.kill(t, syscall.SIGKILL)
	load.until(t, 200)
	c.up(t)
	load.until(t, 200)
	c.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	load.stop(t)
	raw := "/apis/custom.metrics.k8s.io/v1beta2/namespaces/" + ns + "/services/web/requests_total"
	eventually(t, "the requests are counted", 20*time.Second, func() error {
		out := c.try(t, "get", "--raw", raw)
		if !strings.Contains(out.stdout, `"MetricValueList"`) || strings.Contains(out.stdout, `"value":"0"`) {
			return fmt.Errorf("%v", out)
		}
		return nil
	})
}

// loader asks for a page all the time.
type loader struct {
	asked, failed atomic.Int64
	first         atomic.Pointer[string] // what went wrong first
	halt          chan struct{}
	group         sync.WaitGroup
}

func startLoad(client *http.Client, url string, workers int) *loader {
	l := &loader{halt: make(chan struct{})}
	for range workers {
		l.group.Go(func() {
			for {
				select {
				case <-l.halt:
					return
				case <-time.After(2 * time.Millisecond): // enough to be under load, not to starve two cores
				}
				if body, err := fetch(client, url); err != nil || !strings.HasPrefix(body, "web-") {
					text := fmt.Sprintf("%q, %v", body, err)
					l.first.CompareAndSwap(nil, &text)
					l.failed.Add(1)
				}
				l.asked.Add(1)
			}
		})
	}
	return l
}

// until waits for so many more answers.
func (l *loader) until(t *testing.T, more int64) {
	t.Helper()
	want := l.asked.Load() + more
	eventually(t, "requests are answered", 60*time.Second, func() error {
		if n := l.asked.Load(); n < want {
			return fmt.Errorf("%d of %d", n, want)
		}
		return nil
	})
}

// stop ends the load. Not one request may have failed.
func (l *loader) stop(t *testing.T) {
	t.Helper()
	close(l.halt)
	l.group.Wait()
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed, the first with %s", n, l.asked.Load(), *l.first.Load())
	}
}
