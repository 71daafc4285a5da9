package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/api/auth"
	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/store"
)

// pkiSet is a CA and how to make certificates of it.
type pkiSet struct {
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newPKI(t testing.TB) *pkiSet {
	key := mustKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &pkiSet{ca: ca, key: key, pool: pool}
}

func mustKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// leaf returns a certificate and key in PEM, for a server at loopback and for a client of that name.
func (p *pkiSet) leaf(t testing.TB, name string, groups ...string) (certPEM, keyPEM []byte) {
	key := mustKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name, Organization: groups},
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, p.ca, key.Public(), p.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := x509.MarshalECPrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
}

// cluster is an API over a real store.
type cluster struct {
	*Server
	registry *registry.Registry
	store    *store.Store
	pki      *pkiSet
	certs    sync.Map // *x509.Certificate by user
	addr     string   // of the TLS listener, "" until listen
}

// registryReader reads the objects that tokens are bound to.
type registryReader struct {
	client.Reader
	registry func() *registry.Registry
}

func (r registryReader) Get(ctx context.Context, key client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	resource := map[string]string{"*v1.ServiceAccount": "serviceaccounts", "*v1.Pod": "pods", "*v1.Secret": "secrets", "*v1.Node": "nodes"}[fmt.Sprintf("%T", object)]
	entry, err := r.registry().Resource(corev1.SchemeGroupVersion.WithResource(resource)).Get(ctx, key.Namespace, key.Name, "")
	if err != nil {
		return err
	}
	switch out := object.(type) {
	case *corev1.ServiceAccount:
		*out = *entry.Object.(*corev1.ServiceAccount)
	case *corev1.Pod:
		*out = *entry.Object.(*corev1.Pod)
	case *corev1.Secret:
		*out = *entry.Object.(*corev1.Secret)
	case *corev1.Node:
		*out = *entry.Object.(*corev1.Node)
	}
	return nil
}

// start runs an API until the test ends.
func start(t testing.TB, opts Options) *cluster { return startOver(t, opts, store.Options{}) }

// startOver is start with a store of those options.
func startOver(t testing.TB, opts Options, storeOpts store.Options) *cluster {
	return startWith(t, opts, registry.Options{}, storeOpts)
}

// startWith is start with a registry and a store of those options.
func startWith(t testing.TB, opts Options, registryOpts registry.Options, storeOpts store.Options) *cluster {
	t.Helper()
	c := &cluster{pki: newPKI(t)}
	authn, err := auth.New(auth.Options{ClientCAs: func() *x509.CertPool { return c.pki.pool }, SigningKey: mustKey(t),
		Reader: registryReader{registry: func() *registry.Registry { return c.registry }}})
	if err != nil {
		t.Fatal(err)
	}
	opts.Authenticator, opts.Authorizer = authn, policied()
	registryOpts.ServiceCIDR, registryOpts.RoleGuard = netip.MustParsePrefix("10.96.0.0/16"), opts.Authorizer
	c.registry, err = registry.New(registryOpts)
	if err != nil {
		t.Fatal(err)
	}
	storeOpts.Dir, storeOpts.Kinds, storeOpts.NoFsync = t.TempDir(), c.registry.Kinds(), true
	st, err := store.New(storeOpts)
	if err != nil {
		t.Fatal(err)
	}
	c.store = st
	c.registry.Use(registry.Wiring{Store: st, IssueToken: authn.IssueToken})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- st.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("store: %v", err)
		}
	})
	<-st.Ready()
	opts.Registry, opts.Version = c.registry, version.Info{Major: "1", Minor: "36", GitVersion: "v1.36.3"}
	if c.Server, err = New(opts); err != nil {
		t.Fatal(err)
	}
	c.mustCreate(t, "namespaces", "", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	return c
}

// policied has the bootstrap policy, and ann as editor of namespace default.
func policied() *auth.Authorizer {
	a := auth.NewAuthorizer()
	roles := append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...)
	for range 3 {
		for i := range roles {
			if rules, changed, _ := auth.PlanAggregation(&roles[i], roles); changed {
				roles[i].Rules = rules
			}
		}
	}
	for i := range roles {
		a.RBAC().SetRole("", roles[i].Name, roles[i].Rules)
	}
	for _, b := range bootstrappolicy.ClusterRoleBindings() {
		a.RBAC().SetBinding("", b.Name, b.RoleRef, b.Subjects)
	}
	a.RBAC().SetBinding("default", "ann", rbacv1.RoleRef{Kind: "ClusterRole", Name: "edit"}, []rbacv1.Subject{{Kind: "User", Name: "ann"}})
	return a
}

func (c *cluster) mustCreate(t testing.TB, resource, namespace string, object runtime.Object) store.Object {
	t.Helper()
	entry, err := c.registry.Resource(corev1.SchemeGroupVersion.WithResource(resource)).Create(t.Context(), namespace, object, "test", &metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("creating %s: %v", resource, err)
	}
	return entry.Object
}

// do sends a request to the handler without a listener, as a user with that certificate.
func (c *cluster) do(t testing.TB, as, method, target string, body io.Reader, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), method, target, body)
	if as != "" {
		groups := map[string][]string{"root": {"system:masters"}, "kubernetes-admin": {"system:masters"}}[as]
		cert, ok := c.certs.Load(as)
		if !ok {
			certPEM, _ := c.pki.leaf(t, as, groups...)
			block, _ := pem.Decode(certPEM)
			parsed, _ := x509.ParseCertificate(block.Bytes)
			cert, _ = c.certs.LoadOrStore(as, parsed)
		}
		req.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert.(*x509.Certificate)}}
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	c.ServeHTTP(w, req)
	return w
}

// listen serves TLS on loopback until the test ends.
func (c *cluster) listen(t testing.TB) {
	t.Helper()
	certPEM, keyPEM := c.pki.leaf(t, "kube-apiserver")
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert,
		NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	server := &http.Server{Handler: c, ReadHeaderTimeout: time.Minute, BaseContext: func(net.Listener) context.Context { return ctx }}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		cancel()
		_ = server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	c.addr = listener.Addr().String()
}

// config is a client's configuration with a certificate of its own.
func (c *cluster) config(t testing.TB, user, contentType string, groups ...string) *rest.Config {
	t.Helper()
	if c.addr == "" {
		c.listen(t)
	}
	certPEM, keyPEM := c.pki.leaf(t, user, groups...)
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.pki.ca.Raw})
	return &rest.Config{Host: "https://" + c.addr, QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAData: caPEM, CertData: certPEM, KeyData: keyPEM},
		ContentConfig: rest.ContentConfig{ContentType: contentType}, UserAgent: "apitest/1"}
}

// transport speaks to the API over one connection as a user with a certificate.
func (c *cluster) transport(t testing.TB, user string, groups ...string) *http.Transport {
	t.Helper()
	if c.addr == "" {
		c.listen(t)
	}
	pair, err := tls.X509KeyPair(c.pki.leaf(t, user, groups...))
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{RootCAs: c.pki.pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}
