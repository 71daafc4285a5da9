package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	protocols "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/kubernetes"
	clientportforward "k8s.io/client-go/tools/portforward"
	clientcommand "k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// fakeAgent answers as a node's agent does, over SPDY.
type fakeAgent struct{ t testing.TB }

func (f fakeAgent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const idle, setup = time.Minute, 10 * time.Second
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch parts[0] {
	case "containerLogs":
		fmt.Fprintf(w, "log of %s, tail %s", strings.Join(parts[1:], "/"), r.URL.Query().Get("tailLines"))
	case "exec":
		opts, err := remotecommand.NewOptions(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		remotecommand.ServeExec(w, r, f, parts[2], "", parts[3], r.URL.Query()["command"], opts, idle, setup, protocols.SupportedStreamingProtocols)
	case "portForward":
		portforward.ServePortForward(w, r, f, parts[2], "", nil, idle, setup, portforward.SupportedProtocols)
	default:
		http.NotFound(w, r)
	}
}

// ExecInContainer echoes its input in capitals.
func (f fakeAgent) ExecInContainer(_ context.Context, name, _, container string, cmd []string, in io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s/%s %v %s", name, container, cmd, strings.ToUpper(string(text)))
	return err
}

// PortForward echoes.
func (f fakeAgent) PortForward(_ context.Context, _, _ string, _ int32, stream io.ReadWriteCloser) error {
	buffer := make([]byte, 64)
	n, err := stream.Read(buffer)
	if err != nil {
		return err
	}
	_, err = stream.Write(bytes.ToUpper(buffer[:n]))
	return err
}

// withAgent runs an API with one node, whose agent is fake, and a pod on it.
func withAgent(t testing.TB) *cluster {
	t.Helper()
	agent := httptest.NewTLSServer(fakeAgent{t})
	t.Cleanup(agent.Close)
	host, port, _ := net.SplitHostPort(agent.Listener.Addr().String())
	number, _ := strconv.Atoi(port)
	c := start(t, Options{AgentTransport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}) //nolint:gosec // a fake on loopback
	c.mustCreate(t, "nodes", "", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "worker"}, Status: corev1.NodeStatus{
		Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: host}},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(number)}}}})
	pod := testPod("web")
	pod.Spec.NodeName = "worker"
	c.mustCreate(t, "pods", "default", pod)
	c.mustCreate(t, "pods", "default", testPod("pending"))
	pods := c.registry.Resource(corev1.SchemeGroupVersion.WithResource("pods"))
	entry, err := pods.Get(t.Context(), "default", "web", "")
	if err != nil {
		t.Fatal(err)
	}
	next := entry.Object.DeepCopyObject().(*corev1.Pod)
	next.Status.Phase = corev1.PodRunning
	if _, _, err := pods.Update(t.Context(), "default", "web", "status", next, "test", &metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLogs(t *testing.T) {
	c := withAgent(t)
	clients, err := kubernetes.NewForConfig(c.config(t, "ann", ""))
	if err != nil {
		t.Fatal(err)
	}
	tail := int64(7)
	data, err := clients.CoreV1().Pods("default").GetLogs("web", &corev1.PodLogOptions{TailLines: &tail}).DoRaw(t.Context())
	if err != nil || string(data) != "log of default/web/c, tail 7" {
		t.Errorf("GetLogs = %q, %v", data, err)
	}
	_, err = clients.CoreV1().Pods("default").GetLogs("web", &corev1.PodLogOptions{Container: "none"}).Stream(t.Context())
	if !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), "container none is not valid for pod web") {
		t.Errorf("log of no container: %v", err)
	}
}

func TestExec(t *testing.T) {
	c := withAgent(t)
	config := c.config(t, "ann", "")
	target, _ := url.Parse("https://" + c.addr + "/api/v1/namespaces/default/pods/web/exec")
	target.RawQuery = url.Values{"command": {"echo", "x"}, "stdin": {"true"}, "stdout": {"true"}}.Encode()
	for name, dial := range map[string]func() (clientcommand.Executor, error){
		"spdy": func() (clientcommand.Executor, error) { return clientcommand.NewSPDYExecutor(config, "POST", target) },
		"websocket": func() (clientcommand.Executor, error) {
			return clientcommand.NewWebSocketExecutor(config, "GET", target.String())
		},
	} {
		t.Run(name, func(t *testing.T) {
			executor, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err = executor.StreamWithContext(t.Context(), clientcommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out})
			if err != nil || out.String() != "web/c [echo x] HELLO" {
				t.Errorf("exec said %q, %v", &out, err)
			}
		})
	}
	target.Path = "/api/v1/namespaces/default/pods/pending/exec"
	executor, err := clientcommand.NewSPDYExecutor(config, "POST", target)
	if err != nil {
		t.Fatal(err)
	}
	err = executor.StreamWithContext(t.Context(), clientcommand.StreamOptions{Stdout: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "pod pending does not have a host assigned") {
		t.Errorf("exec in a pending pod: %v", err)
	}
}

func TestPortForward(t *testing.T) {
	c := withAgent(t)
	config := c.config(t, "ann", "")
	target, _ := url.Parse("https://" + c.addr + "/api/v1/namespaces/default/pods/web/portforward")
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		t.Fatal(err)
	}
	tunnel, err := clientportforward.NewSPDYOverWebsocketDialer(target, config)
	if err != nil {
		t.Fatal(err)
	}
	dialers := map[string]func() (*clientportforward.PortForwarder, chan struct{}, chan struct{}, error){
		"spdy": func() (*clientportforward.PortForwarder, chan struct{}, chan struct{}, error) {
			stop, ready := make(chan struct{}), make(chan struct{})
			f, err := clientportforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", target), []string{"0:80"}, stop, ready, io.Discard, io.Discard)
			return f, stop, ready, err
		},
		"websocket": func() (*clientportforward.PortForwarder, chan struct{}, chan struct{}, error) {
			stop, ready := make(chan struct{}), make(chan struct{})
			f, err := clientportforward.New(tunnel, []string{"0:80"}, stop, ready, io.Discard, io.Discard)
			return f, stop, ready, err
		},
	}
	for name, dial := range dialers {
		t.Run(name, func(t *testing.T) {
			forwarder, stop, ready, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- forwarder.ForwardPorts() }()
			select {
			case <-ready:
			case err := <-ended:
				t.Fatal(err)
			}
			ports, err := forwarder.GetPorts()
			if err != nil {
				t.Fatal(err)
			}
			conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(ports[0].Local))))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write([]byte("ping"))
			answer := make([]byte, 4)
			if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "PING" {
				t.Errorf("got %q, %v", answer, err)
			}
			_ = conn.Close()
			close(stop)
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestServiceProxy(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s auth=%q", r.Method, r.URL.RequestURI(), r.Header.Get("Authorization"))
	}))
	t.Cleanup(backend.Close)
	// Addresses of pods are what the API says; the transport decides where the connection ends.
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, backend.Listener.Addr().String())
	}
	c := start(t, Options{ProxyTransport: &http.Transport{DialContext: dial}})
	pod := testPod("web")
	c.mustCreate(t, "pods", "default", pod)
	pods := c.registry.Resource(corev1.SchemeGroupVersion.WithResource("pods"))
	entry, _ := pods.Get(t.Context(), "default", "web", "")
	next := entry.Object.DeepCopyObject().(*corev1.Pod)
	next.Status.PodIP, next.Status.PodIPs = "10.244.0.9", []corev1.PodIP{{IP: "10.244.0.9"}}
	if _, _, err := pods.Update(t.Context(), "default", "web", "status", next, "test", &metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.mustCreate(t, "services", "default", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}})
	c.mustCreate(t, "endpoints", "default", &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Subsets: []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: "10.244.0.9", TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "web"}}},
			Ports: []corev1.EndpointPort{{Name: "http", Port: 8080}}}}})
	for path, want := range map[string]string{
		"/api/v1/namespaces/default/services/web:80/proxy/a/b/?q=1": `GET /a/b/?q=1 auth=""`,
		"/api/v1/namespaces/default/services/web:http/proxy/":       `GET / auth=""`,
		"/api/v1/namespaces/default/pods/web:8080/proxy/x":          `GET /x auth=""`,
	} {
		if w := c.do(t, "root", "GET", path, nil, "Authorization", "Basic secret"); w.Body.String() != want {
			t.Errorf("%s: %d %s, want %s", path, w.Code, w.Body, want)
		}
	}
	if w := c.do(t, "root", "GET", "/api/v1/namespaces/default/services/web:81/proxy/", nil); w.Code != 503 || !strings.Contains(w.Body.String(), `no service port 81 found for service \"web\"`) {
		t.Errorf("unknown port: %d %s", w.Code, w.Body)
	}
}
