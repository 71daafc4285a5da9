package gantrytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// authority signs the certificates of a cluster's clients.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotAfter: time.Now().Add(100 * 365 * 24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a := &authority{key: key}
	a.cert = a.sign(t, template, template, key)
	return a
}

func (a *authority) sign(t testing.TB, template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// pool holds the authority's certificate.
func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// Config is how a client-go client speaks to the API over HTTP as a user, without a socket. It
// is for requests that end: an answer is passed on when it is complete.
func (c *Cluster) Config(user string, groups ...string) *rest.Config {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	cert := c.authority.sign(c.t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: user, Organization: groups},
		NotAfter: time.Now().Add(365 * 24 * time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, c.authority.cert, key)
	return &rest.Config{Host: "https://gantry.test", QPS: -1, Transport: direct{c.Handler, cert}}
}

// TokenConfig is Config for whoever has a token instead of a certificate.
func (c *Cluster) TokenConfig(token string) *rest.Config {
	return &rest.Config{Host: "https://gantry.test", QPS: -1, Transport: direct{handler: c.Handler}, BearerToken: token}
}

// CertConfig is Config for whoever has that certificate.
func (c *Cluster) CertConfig(cert *x509.Certificate) *rest.Config {
	return &rest.Config{Host: "https://gantry.test", QPS: -1, Transport: direct{c.Handler, cert}}
}

// direct hands requests to a handler. It implements http.RoundTripper.
type direct struct {
	handler http.Handler
	cert    *x509.Certificate
}

// RoundTrip implements http.RoundTripper.
func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	in := r.Clone(r.Context())
	in.TLS = &tls.ConnectionState{}
	if d.cert != nil {
		in.TLS.PeerCertificates = []*x509.Certificate{d.cert}
	}
	in.RequestURI = r.URL.RequestURI()
	if in.Body == nil {
		in.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	d.handler.ServeHTTP(w, in)
	return w.Result(), nil
}
