package gateway_test

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"gantry.dev/gantry/internal/network/gateway"
)

// A WebSocket that says nothing is left alone: it stays for many times every limit that a gateway has, so for hours with
// the limits that are usual, and takes bytes both ways afterwards.
func TestTunnelIdle(t *testing.T) {
	const limit = 30 * time.Millisecond
	r := start(t, func(t *gateway.Table) {
		t.Settings.Limits = gateway.Limits{HeaderTimeout: limit, BodyStall: limit, Idle: limit}
		t.Routes["HTTPRoute/a/web"][0].RequestTimeout = limit * 10
		t.Routes["HTTPRoute/a/web"][0].BackendTimeout = limit * 10
	}, backend(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = buf.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_ = buf.Flush()
		_, _ = io.Copy(conn, buf)
	}))
	open := map[string]func() (net.Conn, error){
		"http": func() (net.Conn, error) { return net.Dial("tcp", r.at) },
		"https": func() (net.Conn, error) {
			return tls.Dial("tcp", r.tlsAt, &tls.Config{InsecureSkipVerify: true, ServerName: "a.example"})
		},
	}
	for name, dial := range open {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_, _ = io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			from := bufio.NewReader(conn)
			response, err := http.ReadResponse(from, nil)
			if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("answer %v, %v", response, err)
			}
			for _, word := range []string{"hello", "still here", "and again"} {
				<-time.After(40 * limit) // nothing is waited for: this is the silence
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				if _, err := io.WriteString(conn, word); err != nil {
					t.Fatalf("after a silence: %v", err)
				}
				echoed := make([]byte, len(word))
				if _, err := io.ReadFull(from, echoed); err != nil || string(echoed) != word {
					t.Fatalf("after a silence: %q, %v", echoed, err)
				}
			}
		})
	}
}
