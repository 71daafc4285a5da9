package aggregate_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	genericserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/options"
	utilcompatibility "k8s.io/apiserver/pkg/util/compatibility"
	clientrest "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/metrics/pkg/apis/metrics"
	"k8s.io/metrics/pkg/apis/metrics/install"

	"gantry.dev/gantry/internal/gantrytest"

	generated "k8s.io/kubernetes/pkg/generated/openapi"
)

// ca signs certificates.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newCA(t *testing.T, name string) *ca {
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &ca{cert, key, pool}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (c *ca) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
}

func (c *ca) leaf(t *testing.T, subject pkix.Name, names ...string) (certPEM, keyPEM []byte) {
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: subject, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: names,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := x509.MarshalECPrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
}

func (c *ca) pair(t *testing.T, subject pkix.Name, names ...string) tls.Certificate {
	pair, err := tls.X509KeyPair(c.leaf(t, subject, names...))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// stage is a cluster that is reached over TLS.
type stage struct {
	*gantrytest.Cluster
	clients, proxies *ca
	address          string
}

func newStage(t *testing.T) *stage {
	s := &stage{clients: newCA(t, "clients"), proxies: newCA(t, "proxies")}
	own := s.proxies.pair(t, pkix.Name{CommonName: "front-proxy-client"})
	s.Cluster = gantrytest.Start(t, gantrytest.Options{ClientCAs: s.clients.pool, RootCA: s.clients.pem(), FrontProxy: &gantrytest.FrontProxy{
		CA: s.proxies.pem(), Pool: func() *x509.CertPool { return s.proxies.pool }, Name: "front-proxy-client",
		Certificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil },
	}})
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert,
		Certificates: []tls.Certificate{s.clients.pair(t, pkix.Name{CommonName: "apiserver"})}, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	web := &http.Server{Handler: s.Handler, ReadHeaderTimeout: time.Minute, BaseContext: func(net.Listener) context.Context { return ctx }}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = web.Serve(listener) }()
	t.Cleanup(func() {
		cancel()
		_ = web.Close()
		<-ended
	})
	s.address = listener.Addr().String()
	return s
}

// config is a client's configuration with a certificate of its own.
func (s *stage) config(t *testing.T, user string, groups ...string) *clientrest.Config {
	certPEM, keyPEM := s.clients.leaf(t, pkix.Name{CommonName: user, Organization: groups})
	return &clientrest.Config{Host: "https://" + s.address, QPS: -1,
		TLSClientConfig: clientrest.TLSClientConfig{CAData: s.clients.pem(), CertData: certPEM, KeyData: keyPEM}}
}

// allow binds a role to a user.
func (s *stage) allow(t *testing.T, user, clusterRole, role string) {
	subject := []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: user}}
	if clusterRole != "" {
		if err := s.Client.Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: user + "-" + clusterRole}, Subjects: subject,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: clusterRole}}); err != nil {
			t.Fatal(err)
		}
	}
	if role != "" {
		if err := s.Client.Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: user + "-" + role}, Subjects: subject,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role}}); err != nil {
			t.Fatal(err)
		}
	}
}

// nodeMetrics is the storage of a metrics server: it answers who asked.
type nodeMetrics struct {
	rest.TableConvertor
}

func (nodeMetrics) New() runtime.Object     { return &metrics.NodeMetrics{} }
func (nodeMetrics) NewList() runtime.Object { return &metrics.NodeMetricsList{} }
func (nodeMetrics) Destroy()                {}
func (nodeMetrics) NamespaceScoped() bool   { return false }
func (nodeMetrics) GetSingularName() string { return "node" }
func (nodeMetrics) Kind() string            { return "NodeMetrics" }
func (n nodeMetrics) one(ctx context.Context, name string) metrics.NodeMetrics {
	who, _ := request.UserFrom(ctx)
	return metrics.NodeMetrics{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{
		"user": who.GetName(), "groups": slices.Sorted(slices.Values(who.GetGroups()))[0], "extra": strconv.Itoa(len(who.GetExtra())),
	}}}
}

func (n nodeMetrics) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	one := n.one(ctx, name)
	return &one, nil
}

func (n nodeMetrics) List(ctx context.Context, _ *metainternal.ListOptions) (runtime.Object, error) {
	return &metrics.NodeMetricsList{Items: []metrics.NodeMetrics{n.one(ctx, "n1"), n.one(ctx, "n2")}}, nil
}

func (n nodeMetrics) Watch(ctx context.Context, _ *metainternal.ListOptions) (watch.Interface, error) {
	one := n.one(ctx, "n1")
	fake := watch.NewFakeWithChanSize(1, false)
	fake.Add(&one)
	return fake, nil
}

// runExtension runs an API server made of upstream's library, as metrics-server is, that asks Gantry who may do what.
// It returns its port. kubeconfig is the server's own access.
func runExtension(t *testing.T, s *stage, serving tls.Certificate) int {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	scheme.AddUnversionedTypes(schema.GroupVersion{Version: "v1"}, &metav1.Status{}, &metav1.APIVersions{}, &metav1.APIGroupList{}, &metav1.APIGroup{}, &metav1.APIResourceList{})
	codecs := serializer.NewCodecFactory(scheme)
	config := genericserver.NewRecommendedConfig(codecs)
	config.EffectiveVersion = utilcompatibility.DefaultBuildEffectiveVersion()
	config.OpenAPIConfig = genericserver.DefaultOpenAPIConfig(generated.GetOpenAPIDefinitions, openapinamer.NewDefinitionNamer(scheme))
	config.OpenAPIV3Config = genericserver.DefaultOpenAPIV3Config(generated.GetOpenAPIDefinitions, openapinamer.NewDefinitionNamer(scheme))

	kubeconfig := s.kubeconfig(t, "metrics-server")
	secure := options.NewSecureServingOptions()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	writePair(t, serving, certFile, keyFile)
	secure.Listener, secure.BindPort = listener, listener.Addr().(*net.TCPAddr).Port
	secure.ServerCert.CertKey = options.CertKey{CertFile: certFile, KeyFile: keyFile}
	loopback := secure.WithLoopback()
	authn, authz := options.NewDelegatingAuthenticationOptions(), options.NewDelegatingAuthorizationOptions()
	authn.RemoteKubeConfigFile, authz.RemoteKubeConfigFile = kubeconfig, kubeconfig
	for what, err := range map[string]error{
		"serving": loopback.ApplyTo(&config.SecureServing, &config.LoopbackClientConfig),
		"authn":   authn.ApplyTo(&config.Authentication, config.SecureServing, config.OpenAPIConfig),
		"authz":   authz.ApplyTo(&config.Authorization),
	} {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	config.SharedInformerFactory = nil
	config.FlowControl = nil
	built, err := config.Config.Complete(nil).New("metrics", genericserver.NewEmptyDelegate())
	if err != nil {
		t.Fatal(err)
	}
	group := genericserver.NewDefaultAPIGroupInfo(metrics.GroupName, scheme, runtime.NewParameterCodec(scheme), codecs)
	group.VersionedResourcesStorageMap["v1beta1"] = map[string]rest.Storage{
		"nodes": nodeMetrics{TableConvertor: rest.NewDefaultTableConvertor(schema.GroupResource{Group: metrics.GroupName, Resource: "nodes"})},
	}
	if err := built.InstallAPIGroup(&group); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- built.PrepareRun().RunWithContext(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("extension: %v", err)
		}
	})
	return secure.BindPort
}

func writePair(t *testing.T, pair tls.Certificate, certFile, keyFile string) {
	raw, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, keyFile: {Type: "PRIVATE KEY", Bytes: raw},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// kubeconfig writes a user's access into a file.
func (s *stage) kubeconfig(t *testing.T, user string) string {
	access := s.config(t, user)
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: access.Host, CertificateAuthorityData: access.CAData}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificateData: access.CertData, ClientKeyData: access.KeyData}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	return file
}
