package deploytest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"gantry.dev/gantry/api/crds"
	"gantry.dev/gantry/internal/gantrytest"
	"gantry.dev/gantry/internal/platform/deploy"
)

// Platform is a running cluster with a platform that is played.
type Platform struct {
	Cluster    *deploy.Cluster // as an administrator
	Config     *rest.Config
	Kubeconfig string // the text of one
	Registry   *Registry

	client client.Client
	users  map[string]*x509.Certificate // by token
}

// Start runs a platform until the test ends.
func Start(t testing.TB) *Platform {
	t.Helper()
	ca := newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	control := gantrytest.Start(t, gantrytest.Options{ClientCAs: pool, Nodes: 1, WithoutControllers: []string{"gantry-app", "gantry-build"}})
	p := &Platform{client: control.Client, Registry: newRegistry(), users: map[string]*x509.Certificate{
		"admin": ca.user(t, "admin", "system:masters"), "nobody": ca.user(t, "nobody"),
	}}
	install(t, control)
	server := httptest.NewUnstartedServer(p.handler(control.Handler))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	p.Config = &rest.Config{Host: server.URL, BearerToken: "admin", TLSClientConfig: rest.TLSClientConfig{CAData: cert}}
	encoded, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "gantry",
		"clusters": []any{map[string]any{"name": "gantry", "cluster": map[string]any{"server": server.URL, "certificate-authority-data": cert}}},
		"users": []any{
			map[string]any{"name": "admin", "user": map[string]any{"token": "admin"}}, map[string]any{"name": "nobody", "user": map[string]any{"token": "nobody"}},
		},
		"contexts": []any{
			map[string]any{"name": "gantry", "context": map[string]any{"cluster": "gantry", "user": "admin"}},
			map[string]any{"name": "weak", "context": map[string]any{"cluster": "gantry", "user": "nobody"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.Kubeconfig = string(encoded)
	if p.Cluster, err = deploy.Connect(p.Config); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { p.play(ctx) })
	t.Cleanup(func() { cancel(); group.Wait() })
	return p
}

// handler gives requests with a known token the certificate of its user, and answers for what no control plane has.
func (p *Platform) handler(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v2/") {
			p.Registry.ServeHTTP(w, r)
			return
		}
		if strings.HasPrefix(r.URL.Path, "/apis/build.gantry.dev/") {
			_, _ = fmt.Fprintln(w, `{"type":"log","step":"1/1","text":"RUN make\n"}`)
			return
		}
		if strings.Contains(r.URL.Path, "/pods/") && strings.HasSuffix(r.URL.Path, "/log") {
			parts := strings.Split(r.URL.Path, "/")
			_, _ = fmt.Fprintf(w, "2026-11-21T10:00:00.5Z hello from %s\n", parts[len(parts)-2])
			return
		}
		if cert := p.users[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]; cert != nil {
			r.Header.Del("Authorization")
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		}
		api.ServeHTTP(w, r)
	})
}

// install makes the definitions of gantry.dev and waits until they are served.
func install(t testing.TB, control *gantrytest.Cluster) {
	t.Helper()
	names, err := fs.Glob(crds.Files, "*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := fs.ReadFile(crds.Files, name)
		if err != nil {
			t.Fatal(err)
		}
		definition := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(text, definition); err != nil {
			t.Fatal(err)
		}
		if err := control.Client.Create(t.Context(), definition); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	for _, kind := range []string{"AppList", "ReleaseList", "BuildList"} {
		list := &unstructured.UnstructuredList{}
		list.SetAPIVersion("gantry.dev/v1alpha1")
		list.SetKind(kind)
		control.Eventually(kind+" served", func() error { return control.Client.List(t.Context(), list) })
	}
	project := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "team"}}
	if err := control.Client.Create(t.Context(), project); err != nil {
		t.Fatal(err)
	}
}

// authority signs the certificates of users.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	a.cert = a.sign(t, template, template, key)
	return a
}

func (a *authority) sign(t testing.TB, template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
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

func (a *authority) user(t testing.TB, name string, groups ...string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return a.sign(t, &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name, Organization: groups},
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, a.cert, key)
}
