package aggregate_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"gantry.dev/gantry/internal/api/aggregate"
	"gantry.dev/gantry/internal/controller/controllertest"
)

// behindService runs an aggregator before a server that is an endpoint of service ext/api at port 8443.
func behindService(t *testing.T, handler http.Handler, change func(*apiregistrationv1.APIServiceSpec)) (*aggregate.Aggregator, *aggregate.Target) {
	t.Helper()
	serving, proxies := newCA(t, "serving"), newCA(t, "proxies")
	backend := httptest.NewUnstartedServer(handler)
	backend.TLS = &tls.Config{Certificates: []tls.Certificate{serving.pair(t, pkix.Name{CommonName: "api"}, "api.ext.svc")}, ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs: proxies.pool, MinVersion: tls.VersionTLS12}
	backend.StartTLS()
	t.Cleanup(backend.Close)
	port, number, name, yes, no := int32(443), int32(8443), "https", true, false
	spec := apiregistrationv1.APIServiceSpec{Group: "ext.example.com", Version: "v1", GroupPriorityMinimum: 1, VersionPriority: 1, CABundle: serving.pem(),
		Service: &apiregistrationv1.ServiceReference{Namespace: "ext", Name: "api", Port: &port}}
	if change != nil {
		change(&spec)
	}
	cluster := controllertest.New(t)
	if err := apiregistrationv1.AddToScheme(cluster.Scheme()); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ext", Name: "api"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.7", Ports: []corev1.ServicePort{{Name: name, Port: port}}}}); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Create(t.Context(), &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ext", Name: "api-1", Labels: map[string]string{discoveryv1.LabelServiceName: "api"}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.244.0.8"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}},
			{Addresses: []string{"10.244.0.9"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}},
		Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &number}}}); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Create(t.Context(), &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: "v1.ext.example.com"}, Spec: spec,
		Status: apiregistrationv1.APIServiceStatus{Conditions: []apiregistrationv1.APIServiceCondition{{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue}}}}); err != nil {
		t.Fatal(err)
	}
	own := proxies.pair(t, pkix.Name{CommonName: "front-proxy-client"})
	a, err := aggregate.New(aggregate.Options{Reader: cluster,
		Certificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil },
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "10.244.0.9:8443" {
				return nil, fmt.Errorf("the aggregator dials %s", address)
			}
			return (&net.Dialer{}).DialContext(ctx, network, backend.Listener.Addr().String())
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	known, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- a.Run(ctx, cluster, func() { close(known) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	<-known
	target := a.Target(schema.GroupVersion{Group: "ext.example.com", Version: "v1"})
	if target == nil {
		t.Fatal("there is no target")
	}
	return a, target
}

func echo(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "" {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		fmt.Fprintf(buffered, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = buffered.Flush()
		line, _ := buffered.ReadString('\n')
		fmt.Fprintf(buffered, "%s says %s", r.Header.Get("X-Remote-User"), line)
		_ = buffered.Flush()
		return
	}
	if r.URL.Path == "/apis/ext.example.com/v1/moved" {
		http.Redirect(w, r, "/apis/ext.example.com/v1/there", http.StatusFound)
		return
	}
	fmt.Fprintf(w, "%s %s host=%s cert=%s user=%s groups=%v team=%s as=%q auth=%q", r.Method, r.URL.RequestURI(), r.Host, r.TLS.PeerCertificates[0].Subject.CommonName,
		r.Header.Get("X-Remote-User"), r.Header["X-Remote-Group"], r.Header.Get("X-Remote-Extra-Team"), r.Header.Get("Impersonate-User"), r.Header.Get("Authorization"))
}

func who() user.Info {
	return &user.DefaultInfo{Name: "ann", Groups: []string{"dev", "ops"}, Extra: map[string][]string{"team": {"red"}}}
}

// TestTarget: a request goes to a ready endpoint, as the caller and nobody else.
func TestTarget(t *testing.T) {
	a, target := behindService(t, http.HandlerFunc(echo), nil)
	request := httptest.NewRequestWithContext(t.Context(), http.MethodPut, "/apis/ext.example.com/v1/things/x?a=1", strings.NewReader("data"))
	request.Header.Set("Authorization", "Bearer secret")
	request.Header.Set("Impersonate-User", "root")
	request.Header.Add("X-Remote-Group", "system:masters")
	w := httptest.NewRecorder()
	code := target.Serve(w, request, who())
	want := `PUT /apis/ext.example.com/v1/things/x?a=1 host=10.244.0.9:8443 cert=front-proxy-client user=ann groups=[dev ops] team=red as="" auth=""`
	if code != http.StatusOK || w.Body.String() != want {
		t.Errorf("%d %s\nwant %s", code, w.Body, want)
	}
	w = httptest.NewRecorder()
	if code := target.Serve(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/apis/ext.example.com/v1/moved", nil), who()); code != http.StatusFound ||
		w.Header().Get("Location") != "/apis/ext.example.com/v1/there" {
		t.Errorf("a redirect: %d %s", code, w.Header().Get("Location"))
	}
	service := &apiregistrationv1.APIService{Spec: apiregistrationv1.APIServiceSpec{Group: "ext.example.com", Version: "v1", InsecureSkipTLSVerify: true,
		Service: &apiregistrationv1.ServiceReference{Namespace: "ext", Name: "api"}}}
	if err := a.Check(t.Context(), service); err != nil {
		t.Errorf("Check = %v", err)
	}
	service.Spec.Service.Name = "none"
	if err := a.Check(t.Context(), service); err == nil {
		t.Error("a service that is not there passes the check")
	}
}

// TestTargetUpgrade: an upgraded connection is passed on, as the caller.
func TestTargetUpgrade(t *testing.T) {
	_, target := behindService(t, http.HandlerFunc(echo), nil)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { target.Serve(w, r, who()) }))
	defer front.Close()
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(t.Context(), "tcp", front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "GET /apis/ext.example.com/v1/things/x/exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-Remote-User: root\r\n\r\n")
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", response, err)
	}
	fmt.Fprint(conn, "hello\n")
	if line, err := reader.ReadString('\n'); line != "ann says hello\n" {
		t.Errorf("the connection says %q, %v", line, err)
	}
}

// TestTargetTLS: a server is believed only with the certificate that the APIService asks for.
func TestTargetTLS(t *testing.T) {
	other := newCA(t, "other").pem()
	for name, tc := range map[string]struct {
		change func(*apiregistrationv1.APIServiceSpec)
		code   int
		says   string
	}{
		"another CA":         {func(s *apiregistrationv1.APIServiceSpec) { s.CABundle = other }, 503, "certificate signed by unknown authority"},
		"no CA":              {func(s *apiregistrationv1.APIServiceSpec) { s.CABundle = nil }, 503, "certificate"},
		"no certificates":    {func(s *apiregistrationv1.APIServiceSpec) { s.CABundle = []byte("x") }, 500, "unable to load root certificates"},
		"no verification":    {func(s *apiregistrationv1.APIServiceSpec) { s.CABundle, s.InsecureSkipTLSVerify = nil, true }, 200, "user=ann"},
		"service is missing": {func(s *apiregistrationv1.APIServiceSpec) { s.Service.Name = "none" }, 503, "service unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			_, target := behindService(t, http.HandlerFunc(echo), tc.change)
			w := httptest.NewRecorder()
			code := target.Serve(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/apis/ext.example.com/v1/things", nil), who())
			if code != tc.code || w.Code != tc.code || !strings.Contains(w.Body.String(), tc.says) {
				t.Errorf("%d %d %s; want %d %q", code, w.Code, w.Body, tc.code, tc.says)
			}
		})
	}
}

func TestSort(t *testing.T) {
	version := func(group, name string, groupPriority, priority int32) aggregate.Version {
		return aggregate.Version{GroupVersion: schema.GroupVersion{Group: group, Version: name}, GroupPriority: groupPriority, Priority: priority}
	}
	versions := []aggregate.Version{version("z", "v1", 10, 1), version("b", "v1beta1", 5, 9), version("b", "v1", 100, 9), version("b", "v2", 1, 9),
		version("b", "v1alpha1", 1, 20), version("a", "v1", 10, 1)}
	aggregate.Sort(versions)
	var got []string
	for _, v := range versions {
		got = append(got, v.String())
	}
	if want := "b/v1alpha1 b/v2 b/v1 b/v1beta1 a/v1 z/v1"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}
