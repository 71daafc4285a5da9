package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

func rootTLS(t testing.TB, c *cluster) *tls.ConnectionState {
	certPEM, _ := c.pki.leaf(t, "root", "system:masters")
	block, _ := pem.Decode(certPEM)
	cert, _ := x509.ParseCertificate(block.Bytes)
	return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
}

func userTLS(t testing.TB, c *cluster, name string) *tls.ConnectionState {
	certPEM, _ := c.pki.leaf(t, name)
	block, _ := pem.Decode(certPEM)
	cert, _ := x509.ParseCertificate(block.Bytes)
	return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
}

// discard is an answer that goes nowhere.
type discard struct {
	header http.Header
	bytes  int
	code   int
}

func (d *discard) Header() http.Header { return d.header }
func (d *discard) Write(p []byte) (int, error) {
	d.bytes += len(p)
	return len(p), nil
}
func (d *discard) WriteHeader(code int) { d.code = code }
func (d *discard) Flush()               {}

// BenchmarkGet is what the handler costs for one object, as an ordinary user.
func BenchmarkGet(b *testing.B) {
	c := start(b, Options{})
	c.mustCreate(b, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: map[string]string{"k": "v"}})
	for name, accept := range contentTypes {
		b.Run(name, func(b *testing.B) {
			req := httptest.NewRequestWithContext(context.Background(), "GET", "/api/v1/namespaces/default/configmaps/a", nil)
			req.TLS = userTLS(b, c, "ann")
			req.Header.Set("Accept", accept+",application/json")
			req.Header.Set("User-Agent", "bench/1")
			w := &discard{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				c.ServeHTTP(w, req)
			}
			if w.code != 200 {
				b.Fatal(w.code)
			}
		})
	}
}

func BenchmarkList(b *testing.B) {
	c := start(b, Options{})
	for i := range 2000 {
		c.mustCreate(b, "pods", "default", testPod(fmt.Sprint("pod-", i)))
	}
	for _, encoding := range []string{"", "gzip"} {
		for name, accept := range contentTypes {
			b.Run(fmt.Sprintf("pods=2000/%s/encoding=%s", name, encoding), func(b *testing.B) {
				req := httptest.NewRequestWithContext(context.Background(), "GET", "/api/v1/pods", nil)
				req.TLS = rootTLS(b, c)
				req.Header.Set("Accept", accept)
				req.Header.Set("Accept-Encoding", encoding)
				w := &discard{header: http.Header{}}
				b.ReportAllocs()
				for b.Loop() {
					w.bytes = 0
					clear(w.header)
					c.ServeHTTP(w, req)
				}
				b.SetBytes(int64(w.bytes))
			})
		}
	}
}

// BenchmarkWatchEvent is what sending one event to one watcher costs.
func BenchmarkWatchEvent(b *testing.B) {
	c := start(b, Options{})
	pod := testPod("a")
	c.mustCreate(b, "pods", "default", pod)
	ep := c.routes().endpoints[corev1.SchemeGroupVersion.WithResource("pods")]
	entry, err := ep.Get(b.Context(), "default", "a", "")
	if err != nil {
		b.Fatal(err)
	}
	for name := range contentTypes {
		b.Run(name, func(b *testing.B) {
			stream := watchStream{server: c.Server, q: &query{w: &discard{header: http.Header{}}}, ep: ep}
			if name == "protobuf" {
				stream.out.format = formatProto
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := stream.object(eventModified, entry); err != nil {
					b.Fatal(err)
				}
				stream.flush()
			}
		})
	}
}

func BenchmarkCreate(b *testing.B) {
	c := start(b, Options{})
	state := rootTLS(b, c)
	w := &discard{header: http.Header{}}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		body := fmt.Sprintf(`{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"c%d"},"data":{"k":"v"}}`, i)
		req := httptest.NewRequestWithContext(context.Background(), "POST", "/api/v1/namespaces/default/configmaps", stringBody(body))
		req.TLS = state
		c.ServeHTTP(w, req)
	}
	if w.code != 201 {
		b.Fatal(w.code)
	}
}

func stringBody(s string) io.Reader { return strings.NewReader(s) }

// BenchmarkGetTLS is a GET with TLS and HTTP/2 on both sides, client and server on the same cores.
func BenchmarkGetTLS(b *testing.B) {
	c := start(b, Options{})
	for i := range 1000 {
		c.mustCreate(b, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("c", i)}, Data: map[string]string{"k": "v"}})
	}
	client, err := rest.HTTPClientFor(c.config(b, "ann", ""))
	if err != nil {
		b.Fatal(err)
	}
	var next atomic.Int64
	b.SetParallelism(16)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			res, err := client.Get(fmt.Sprintf("https://%s/api/v1/namespaces/default/configmaps/c%d", c.addr, next.Add(1)%1000))
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
			if res.StatusCode != http.StatusOK {
				b.Error(res.Status)
			}
		}
	})
}
