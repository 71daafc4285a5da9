package gateway_test

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gantry.dev/gantry/internal/network/gateway"
)

// The id of a request is its own, but for what a proxy says that is trusted.
func TestRequestID(t *testing.T) {
	at := backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Header.Get("X-Request-Id")) })
	for name, tc := range map[string]struct {
		trusted []netip.Prefix
		sent    string
		kept    bool
	}{
		"from anyone":          {nil, "mine", false},
		"from a trusted proxy": {[]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, "mine", true},
		"not well formed":      {[]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, "mine<>", false},
		"none":                 {[]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, func(t *gateway.Table) { t.Settings.TrustedProxies = tc.trusted }, at)
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.at+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("X-Request-Id", tc.sent)
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			seen, id := read(t, response), response.Header.Get("X-Request-Id")
			if id == "" || seen != id || (id == tc.sent) != tc.kept {
				t.Errorf("the answer has id %q, the backend saw %q", id, seen)
			}
		})
	}
}

// Requests that reach nothing are many where somebody looks for holes: they do not push out what applications failed.
func TestFailuresOfServicesStay(t *testing.T) {
	r := start(t, func(t *gateway.Table) {
		t.Routes = map[string][]gateway.Route{"R/a/web": {{Path: gateway.PathMatch{Value: "/app"}, Backends: []gateway.Backend{{Service: "a/web:80", Weight: 1}}}}}
	}) // without endpoints
	failed, _ := r.get("/app")
	id := failed.Header.Get("X-Request-Id")
	r.failures(id)
	for range 1100 {
		if response, _ := r.get("/wp-login.php"); response.StatusCode != 404 {
			t.Fatalf("status %d", response.StatusCode)
		}
	}
	if f := r.failures(id); len(f) != 1 || f[0].Reason != gateway.ReasonNoEndpoint || f[0].Detail == "" || f[0].Route == "" {
		t.Errorf("the failure after many strays: %+v", f)
	}
	if all := r.g.Ask(gateway.Query{What: gateway.QueryFailures}).Failures; len(all) != 251 {
		t.Errorf("%d failures are remembered, want 251", len(all))
	}
}

// Who reads the whole log gets it in order, page by page.
func TestLogFromItsBegin(t *testing.T) {
	r := start(t, nil, backend(t, echo))
	begun := time.Now()
	for range 25 {
		r.get("/page")
	}
	var ids []string
	q := gateway.Query{What: gateway.QueryLog, Oldest: true, Limit: 10, Since: begun, Labels: map[string]string{"app": "shop"}}
	for pages := 0; ; pages++ {
		page := r.g.Ask(q).Log
		if len(page) == 0 && len(ids) < 25 && pages < 1000 {
			time.Sleep(time.Millisecond) // the last requests' lines come after their answers
			continue
		}
		for i := range page {
			if page[i].Sequence <= q.After {
				t.Fatalf("line %d comes after %d", page[i].Sequence, q.After)
			}
			q.After = page[i].Sequence
			ids = append(ids, page[i].RequestID)
		}
		if len(page) == 0 {
			break
		}
	}
	if len(ids) != 25 {
		t.Errorf("%d lines were read, want 25", len(ids))
	}
	if later := r.g.Ask(gateway.Query{What: gateway.QueryLog, Oldest: true, Since: time.Now().Add(time.Hour)}).Log; len(later) != 0 {
		t.Errorf("%d lines from the future", len(later))
	}
}

// What net/http refuses by itself has an id, by which it is found.
func TestRefusalHasID(t *testing.T) {
	r := start(t, nil, backend(t, echo))
	conn, err := net.Dial("tcp", r.at)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
	out, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(out), "X-Request-Id: ")
	id, _, _ := strings.Cut(rest, "\r\n")
	if !found || !strings.HasPrefix(string(out), "HTTP/1.1 400 ") {
		t.Fatalf("answer %q", out)
	}
	if f := r.failures(id); f[0].Reason != gateway.ReasonBadRequest || f[0].Status != 400 || !strings.HasPrefix(f[0].Detail, "400") {
		t.Errorf("noted %+v", f)
	}
}
