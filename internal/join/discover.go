package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
)

// clusterInfoPath is where each server tells who signs for the cluster, to everybody.
const clusterInfoPath = "/api/v1/namespaces/kube-public/configmaps/cluster-info"

// wellKnownCA tells the same where nobody may read without credentials.
const wellKnownCA = "/.well-known/gantry/ca.crt"

// discoverLimit is how long an unknown server may take for each answer.
const discoverLimit = 10 * time.Second

// maxAnswer bounds what is read of a server that is not believed yet.
const maxAnswer = 1 << 20

// Cluster is a cluster that is believed.
type Cluster struct {
	CA    *x509.Certificate
	CAPEM []byte
}

// Pool holds the cluster's authority alone.
func (c *Cluster) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.CA)
	return pool
}

// Discover asks the server at address who signs for its cluster, and believes it only if the authority's key has the pin
// and has signed for the server too. Nothing of the token but its pin is used.
func Discover(ctx context.Context, address, pin string) (*Cluster, error) {
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: discoverLimit}).DialContext,
		TLSHandshakeTimeout: discoverLimit, ResponseHeaderTimeout: discoverLimit,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}, //nolint:gosec // the pin says whom to believe
	}
	defer transport.CloseIdleConnections()
	text, err := clusterCA(ctx, transport, address)
	if err != nil {
		return nil, fmt.Errorf("asking the server at %s about its cluster: %w; is the address right, and does nothing in between drop its port?", address, err)
	}
	ca, err := parseCA(text)
	if err != nil {
		return nil, fmt.Errorf("what answers at %s is no server of a cluster: %w", address, err)
	}
	if Pin(ca) != pin {
		return nil, fmt.Errorf("the server at %s is not of the cluster that the token is for: the pin in the token is of another authority; "+
			"check the address, or make a token there with \"gantry token create\"", address)
	}
	return &Cluster{CA: ca, CAPEM: text}, nil
}

// clusterCA reads the authority's certificate.
func clusterCA(ctx context.Context, transport http.RoundTripper, address string) ([]byte, error) {
	code, body, err := fetch(ctx, transport, "https://"+address+clusterInfoPath)
	if err != nil {
		return nil, err
	}
	if code != http.StatusOK {
		code, body, err = fetch(ctx, transport, "https://"+address+wellKnownCA)
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("it answers %s", http.StatusText(code))
		}
		return body, err
	}
	var info corev1.ConfigMap
	if err := json.Unmarshal(body, &info); err != nil {
		return nil, fmt.Errorf("reading its cluster-info: %w", err)
	}
	config, err := clientcmd.Load([]byte(info.Data["kubeconfig"]))
	if err != nil {
		return nil, fmt.Errorf("reading its cluster-info: %w", err)
	}
	for _, cluster := range config.Clusters {
		return cluster.CertificateAuthorityData, nil
	}
	return nil, errors.New("its cluster-info names no authority")
}

func fetch(ctx context.Context, transport http.RoundTripper, url string) (int, []byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, fmt.Errorf("making a request: %w", err)
	}
	request.Header.Set("Accept", "application/json")
	response, err := transport.RoundTrip(request)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	return response.StatusCode, body, err
}
