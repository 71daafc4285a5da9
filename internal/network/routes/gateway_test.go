//go:build linux

package routes

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/internal/controller/controllertest"
	"gantry.dev/gantry/internal/network/gateway"
	"gantry.dev/gantry/internal/network/nettest"
	"gantry.dev/gantry/internal/network/routes/compile"
)

// way is an API with a gateway's objects, and a feeder with a real edge.
type way struct {
	t       testing.TB
	api     *controllertest.Cluster
	opts    Options
	clients *http.Client
}

const wayPort = 8080

func newWay(t testing.TB) *way {
	t.Helper()
	nettest.Need(t)
	if err := gatewayv1.Install(scheme.Scheme); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "way")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	exact := networkingv1.PathTypePrefix
	path := func(path, service string) networkingv1.HTTPIngressPath {
		return networkingv1.HTTPIngressPath{Path: path, PathType: &exact, Backend: networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{
			Name: service, Port: networkingv1.ServiceBackendPort{Number: 80}}}}
	}
	web, sleeper := service("web", "10.96.0.20"), service("sleeper", "10.96.0.21")
	web.Spec.Ports, sleeper.Spec.Ports = []corev1.ServicePort{{Port: 80}}, []corev1.ServicePort{{Port: 80}}
	sleeper.Annotations = map[string]string{compile.AnnotationHold: "60s"}
	class := "gantry"
	api := controllertest.New(t,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}}},
		&networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Spec: networkingv1.IngressClassSpec{Controller: compile.IngressController}},
		&networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: networkingv1.IngressSpec{IngressClassName: &class,
			Rules: []networkingv1.IngressRule{{IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
				Paths: []networkingv1.HTTPIngressPath{path("/", "web"), path("/sleeper", "sleeper")}}}}}}},
		web, sleeper)
	kinds := make(chan struct{})
	close(kinds)
	w := &way{t: t, api: api, clients: &http.Client{Timeout: 30 * time.Second}, opts: Options{
		Binary: binary, Socket: filepath.Join(dir, "s"), StateDir: filepath.Join(dir, "edge"), ResolvConf: "/nonexistent",
		Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Gateway: &GatewayOptions{HTTPPort: wayPort, HTTPSPort: wayPort + 1, NodeName: "node-1", Kinds: kinds, Writer: api, Informers: api,
			Holder: func(at netip.AddrPort) (string, bool) {
				p, ok := gateway.Holder("/proc", at)
				return fmt.Sprintf("%s (pid %d)", p.Name, p.PID), ok
			}},
	}}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := Stop(ctx, w.opts.Socket); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			log, _ := os.ReadFile(w.opts.StateDir + ".log")
			t.Logf("the edge's log:\n%s", log)
		}
	})
	return w
}

func (w *way) run() (stop func()) {
	w.t.Helper()
	return runFeeder(w.t, w.api, w.api, w.opts)
}

// backend answers with its name.
func (w *way) backend(name string) netip.AddrPort {
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(out, name) }))
	w.t.Cleanup(server.Close)
	return netip.MustParseAddrPort(server.Listener.Addr().String())
}

// endpoint makes an address the only endpoint of a service.
func (w *way) endpoint(service string, at netip.AddrPort) {
	w.t.Helper()
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: ptr(""), Port: ptr(int32(at.Port()))}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{at.Addr().String()}}},
	}
	there := &discoveryv1.EndpointSlice{}
	err := w.api.Get(w.t.Context(), client.ObjectKeyFromObject(slice), there)
	if err != nil {
		err = w.api.Create(w.t.Context(), slice)
	} else {
		slice.ResourceVersion = there.ResourceVersion
		err = w.api.Update(w.t.Context(), slice)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *way) get(path string) (int, string, error) {
	response, err := w.clients.Get(fmt.Sprintf("http://127.0.0.1:%d%s", wayPort, path))
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// until asks until the answer is want.
func (w *way) until(want string) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		code, body, err := w.get("/")
		if err == nil && code == http.StatusOK && body == want {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("the answer is %d %q, %v; want %q", code, body, err, want)
		}
	}
}

// TestGatewayFed: endpoints reach the edge, which goes on while the feeder is away, and gets the whole when it is back.
func TestGatewayFed(t *testing.T) {
	w := newWay(t)
	one, two := w.backend("one"), w.backend("two")
	w.endpoint("web", one)
	stop := w.run()
	w.until("one")
	w.endpoint("web", two)
	w.until("two")

	var failed, asked atomic.Int64
	halt, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-halt:
				return
			default:
			}
			if code, body, err := w.get("/"); err != nil || code != http.StatusOK {
				failed.Add(1)
				t.Logf("answer %d %q, %v", code, body, err)
			}
			asked.Add(1)
		}
	}()
	stop()
	w.endpoint("web", one)
	for before := asked.Load(); asked.Load() < before+50 && failed.Load() == 0; { // it serves without a feeder
		time.Sleep(time.Millisecond)
	}
	stop = w.run()
	w.until("one")
	close(halt)
	<-done
	if failed.Load() > 0 {
		t.Errorf("%d of %d requests failed", failed.Load(), asked.Load())
	}
	stop()
}

// TestSleeperWakes: a request for a service without endpoints is told on the Service, and goes on when there is one.
func TestSleeperWakes(t *testing.T) {
	w := newWay(t)
	w.endpoint("web", w.backend("web"))
	defer w.run()()
	w.until("web")
	answer := make(chan string, 1)
	go func() {
		code, body, err := w.get("/sleeper")
		answer <- fmt.Sprintf("%d %s %v", code, body, err)
	}()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		svc := &corev1.Service{}
		if err := w.api.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "sleeper"}, svc); err != nil {
			t.Fatal(err)
		}
		if at, err := time.Parse(time.RFC3339Nano, svc.Annotations[compile.AnnotationWake]); err == nil && time.Since(at) < time.Minute {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("nobody wakes the service: %v", svc.Annotations)
		}
	}
	w.endpoint("sleeper", w.backend("awake"))
	if got := <-answer; got != "200 awake <nil>" {
		t.Errorf("the request that waited got %s", got)
	}
	snapshot, err := Snapshot(t.Context(), w.opts.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if page := string(Exposition(snapshot)); !strings.Contains(page, `gantry_gateway_requests_total{namespace="default",service="sleeper",port="80"} 1`) {
		t.Errorf("the counts are\n%s", page)
	}
}

// TestTakenPort: the Node says who has a port, until it is free.
func TestTakenPort(t *testing.T) {
	w := newWay(t)
	w.endpoint("web", w.backend("web"))
	taken, err := net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", wayPort+1))
	if err != nil {
		t.Fatal(err)
	}
	var said atomic.Pointer[string]
	w.opts.Gateway.Say = func(text string) { said.Store(&text) }
	defer w.run()()
	w.until("web")
	says := func(want func(string) bool) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			node := &corev1.Node{}
			if err := w.api.Get(t.Context(), client.ObjectKey{Name: "node-1"}, node); err != nil {
				t.Fatal(err)
			}
			if got := compile.ReadPorts(node.Annotations[compile.AnnotationPorts])[wayPort+1]; want(got) {
				return
			} else if time.Now().After(deadline) {
				t.Fatalf("the node says %q", got)
			}
		}
	}
	says(func(text string) bool { return strings.Contains(text, fmt.Sprintf("(pid %d)", os.Getpid())) })
	if text := said.Load(); text == nil || !strings.Contains(*text, "is taken by") {
		t.Errorf("up says %v", text)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	says(func(text string) bool { return text == "" })
}

// BenchmarkEndpointChange is the time from an endpoint's change in the API to the first answer of the new one through the
// gateway.
func BenchmarkEndpointChange(b *testing.B) {
	w := newWay(b)
	w.opts.Logger = slog.New(slog.DiscardHandler)
	names := []string{"one", "two"}
	at := []netip.AddrPort{w.backend(names[0]), w.backend(names[1])}
	w.endpoint("web", at[1])
	defer w.run()()
	w.until(names[1])
	i := 0
	for b.Loop() {
		w.endpoint("web", at[i%2])
		w.until(names[i%2])
		i++
	}
}
