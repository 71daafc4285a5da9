package api

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// proxied is an API with a pod "web" and a service before it. Connections to the pod's port 8080 end at the plain
// backend, those to 8443 at the same one over TLS.
func proxied(t *testing.T, backend http.Handler) *cluster {
	t.Helper()
	plain, secure := httptest.NewServer(backend), httptest.NewTLSServer(backend)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	transport, ok := newProxyTransport().(*http.Transport)
	if !ok {
		t.Fatal("the transport of proxies has another type")
	}
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		switch address {
		case "10.244.0.9:8080", "10.244.0.9:80":
			address = plain.Listener.Addr().String()
		case "10.244.0.9:8443":
			address = secure.Listener.Addr().String()
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	c := start(t, Options{ProxyTransport: transport})
	c.mustCreate(t, "pods", "default", testPod("web"))
	pods := c.registry.Resource(corev1.SchemeGroupVersion.WithResource("pods"))
	entry, err := pods.Get(t.Context(), "default", "web", "")
	if err != nil {
		t.Fatal(err)
	}
	next := entry.Object.DeepCopyObject().(*corev1.Pod)
	next.Status.PodIP, next.Status.PodIPs = "10.244.0.9", []corev1.PodIP{{IP: "10.244.0.9"}}
	if _, _, err := pods.Update(t.Context(), "default", "web", "status", next, "test", &metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.mustCreate(t, "services", "default", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "tls", Port: 443}}}})
	address := func(namespace string) []corev1.EndpointAddress {
		return []corev1.EndpointAddress{{IP: "10.244.0.9", TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: "web"}}}
	}
	ports := []corev1.EndpointPort{{Name: "http", Port: 8080}, {Name: "tls", Port: 8443}}
	c.mustCreate(t, "endpoints", "default", &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Subsets: []corev1.EndpointSubset{{Addresses: address("default"), Ports: ports}}})
	c.mustCreate(t, "endpoints", "default", &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: "foreign"},
		Subsets: []corev1.EndpointSubset{{Addresses: address("other"), Ports: ports}}})
	return c
}

func TestProxySubresources(t *testing.T) {
	c := proxied(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/there?x=1", http.StatusFound)
		case "/page":
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, `<a href="/other">x</a>`)
		default:
			body, _ := io.ReadAll(r.Body)
			w.Header().Set("X-Backend", "yes")
			w.WriteHeader(http.StatusTeapot)
			fmt.Fprintf(w, "%s %s tls=%v body=%q for=%q user=%q as=%q", r.Method, r.URL.RequestURI(), r.TLS != nil, body,
				r.Header.Get("X-Forwarded-Uri"), r.Header.Get("X-Remote-User")+r.Header.Get("Authorization"), r.Header.Get("Impersonate-User"))
		}
	}))
	const root = "/api/v1/namespaces/default/"
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		for target, want := range map[string]string{
			"services/web:http/proxy/a%20b/?q=1&q=2": `%s /a%%20b/?q=1&q=2 tls=false body="data" for="%s" user="" as=""`,
			"services/https:web:tls/proxy/s":         `%s /s tls=true body="data" for="%s" user="" as=""`,
			"services/https:web:443/proxy/s":         `%s /s tls=true body="data" for="%s" user="" as=""`,
			"pods/web:8080/proxy/a/../b":             `%s /b tls=false body="data" for="%s" user="" as=""`,
			"pods/https:web:8443/proxy/deep/path":    `%s /deep/path tls=true body="data" for="%s" user="" as=""`,
		} {
			path, _, _ := strings.Cut(root+target, "?")
			w := c.do(t, "root", method, root+target, strings.NewReader("data"), "X-Remote-User", "admin", "Impersonate-User", "root",
				"Impersonate-Group", "system:masters")
			want = fmt.Sprintf(want, method, strings.TrimSuffix(path, "%"))
			if strings.Contains(target, "..") { // what the path means is for the backend to say; it must only not leave the proxy
				if w.Code != http.StatusTeapot {
					t.Errorf("%s %s: %d", method, target, w.Code)
				}
				continue
			}
			if w.Code != http.StatusTeapot || w.Body.String() != want || w.Header().Get("X-Backend") != "yes" {
				t.Errorf("%s %s: %d %s\nwant %s", method, target, w.Code, w.Body, want)
			}
		}
	}
	if w := c.do(t, "root", "HEAD", root+"services/web:80/proxy/x", nil); w.Code != http.StatusTeapot {
		t.Errorf("HEAD: %d", w.Code)
	}
	if w := c.do(t, "root", "GET", root+"services/web:80/proxy?x=1", nil); w.Code != http.StatusMovedPermanently || w.Header().Get("Location") != root+"services/web:80/proxy/?x=1" {
		t.Errorf("no path: %d %s", w.Code, w.Header().Get("Location"))
	}
	if w := c.do(t, "root", "GET", root+"services/web:80/proxy/moved", nil); w.Code != http.StatusFound || w.Header().Get("Location") != root+"services/web:80/proxy/there?x=1" {
		t.Errorf("redirect: %d %s", w.Code, w.Header().Get("Location"))
	}
	if w := c.do(t, "root", "GET", root+"services/web:80/proxy/page", nil); !strings.Contains(w.Body.String(), `href="`+root+`services/web:80/proxy/other"`) {
		t.Errorf("links: %s", w.Body)
	}
	for target, code := range map[string]int{
		"services/foreign:http/proxy/": 503, "services/web:none/proxy/": 503, "services/none/proxy/": 404, "services/a:b:c:d/proxy/": 400, "pods/none/proxy/": 404,
	} {
		if w := c.do(t, "root", "GET", root+target, nil); w.Code != code || !strings.Contains(w.Body.String(), `"kind":"Status"`) {
			t.Errorf("%s: %d %s, want %d", target, w.Code, w.Body, code)
		}
	}
	if w := c.do(t, "bob", "GET", root+"services/web:http/proxy/", nil); w.Code != http.StatusForbidden {
		t.Errorf("a stranger may use the proxy: %d", w.Code)
	}
}

func TestProxyUpgrade(t *testing.T) {
	c := proxied(t, websocket.Handler(func(conn *websocket.Conn) { _, _ = io.Copy(conn, conn) }))
	for _, path := range []string{"services/web:http/proxy/ws", "services/https:web:tls/proxy/ws", "pods/web:8080/proxy/ws", "pods/https:web:8443/proxy/ws"} {
		conn := dialSocket(t, c, "/api/v1/namespaces/default/"+path)
		if err := websocket.Message.Send(conn, "hello"); err != nil {
			t.Fatal(err)
		}
		var text string
		if err := websocket.Message.Receive(conn, &text); err != nil || text != "hello" {
			t.Errorf("%s: %q, %v", path, text, err)
		}
	}
}

// TestLogsOverWebSocket: a browser can follow a log.
func TestLogsOverWebSocket(t *testing.T) {
	c := withAgent(t)
	conn := dialSocket(t, c, "/api/v1/namespaces/default/pods/web/log", "Sec-Websocket-Protocol", "binary.k8s.io")
	var all string
	for all == "" { // the first message says only that the stream stands
		var text string
		if err := websocket.Message.Receive(conn, &text); err != nil {
			t.Fatal(err)
		}
		all += text
	}
	if !strings.HasPrefix(all, "log of default/web/c") {
		t.Errorf("log = %q", all)
	}
}
