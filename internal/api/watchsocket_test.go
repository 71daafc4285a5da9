package api

import (
	"crypto/tls"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// dialSocket opens a WebSocket as user root.
func dialSocket(t *testing.T, c *cluster, path string, header ...string) *websocket.Conn {
	t.Helper()
	if c.addr == "" {
		c.listen(t)
	}
	certPEM, keyPEM := c.pki.leaf(t, "root", "system:masters")
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	config, err := websocket.NewConfig("wss://"+c.addr+path, "https://page.example")
	if err != nil {
		t.Fatal(err)
	}
	config.TlsConfig = &tls.Config{RootCAs: c.pki.pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	for i := 0; i+1 < len(header); i += 2 {
		config.Header.Set(header[i], header[i+1])
	}
	conn, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatalf("WebSocket to %s: %v", path, err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestWatchOverWebSocket(t *testing.T) {
	c := start(t, Options{})
	c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
	conn := dialSocket(t, c, "/api/v1/namespaces/default/configmaps?watch=1")
	next := func() (kind, name string) {
		t.Helper()
		var text string
		if err := websocket.Message.Receive(conn, &text); err != nil {
			t.Fatal(err)
		}
		var event struct {
			Type   string
			Object corev1.ConfigMap
		}
		if err := json.Unmarshal([]byte(text), &event); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		return event.Type, event.Object.Name
	}
	if kind, name := next(); kind != "ADDED" || name != "a" {
		t.Errorf("first event = %s %s", kind, name)
	}
	if err := websocket.Message.Send(conn, strings.Repeat("noise", 1000)); err != nil { // is ignored
		t.Fatal(err)
	}
	c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "b"}})
	if kind, name := next(); kind != "ADDED" || name != "b" {
		t.Errorf("second event = %s %s", kind, name)
	}
}

func TestWatchOverWebSocketProtobuf(t *testing.T) {
	c := start(t, Options{})
	c.mustCreate(t, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
	conn := dialSocket(t, c, "/api/v1/namespaces/default/configmaps?watch=1", "Accept", "application/vnd.kubernetes.protobuf;stream=watch")
	var data []byte
	if err := websocket.Message.Receive(conn, &data); err != nil {
		t.Fatal(err)
	}
	var event metav1.WatchEvent
	if err := event.Unmarshal(data); err != nil || event.Type != "ADDED" || !strings.HasPrefix(string(event.Object.Raw), "k8s\x00") {
		t.Errorf("event = %q, %v", data, err)
	}
}

// TestWatchOverWebSocketEnds: at its timeout the server closes; when the client leaves, the watch is given up.
func TestWatchOverWebSocketEnds(t *testing.T) {
	c := start(t, Options{})
	conn := dialSocket(t, c, "/api/v1/configmaps?watch=1&timeoutSeconds=1")
	var text string
	if err := websocket.Message.Receive(conn, &text); err == nil {
		t.Errorf("after the timeout: %q", text)
	}
	expired := dialSocket(t, c, "/api/v1/configmaps?watch=1&resourceVersion=1&timeoutSeconds=2")
	if err := websocket.Message.Receive(expired, &text); err == nil && !strings.Contains(text, `"ERROR"`) {
		t.Errorf("from revision 1: %q", text)
	}
}
