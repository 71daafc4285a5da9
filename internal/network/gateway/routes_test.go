package gateway_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"gantry.dev/gantry/internal/network/gateway"
)

// Each case is a request and what comes of it; the routes together show the order of precedence.
func TestRoutesAndFilters(t *testing.T) {
	text := func(s string) *string { return &s }
	to := []gateway.Backend{{Service: "a/web:80", Weight: 1}}
	says := func(body string) *gateway.Response {
		return &gateway.Response{Status: 200, Type: "text/plain", Body: body}
	}
	r := start(t, func(table *gateway.Table) {
		table.Settings.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}
		table.Challenges = map[string]string{"token": "token.key"}
		table.Routes = map[string][]gateway.Route{
			"R/a/order": {
				{Index: 0, Hosts: []string{"order.example"}, Response: says("all")},
				{Index: 1, Hosts: []string{"order.example"}, Path: gateway.PathMatch{Value: "/a"}, Response: says("prefix")},
				{Index: 2, Hosts: []string{"order.example"}, Path: gateway.PathMatch{Value: "/a/b"}, Response: says("longer prefix")},
				{Index: 3, Hosts: []string{"order.example"}, Path: gateway.PathMatch{Type: gateway.PathExact, Value: "/a/b"}, Response: says("exact")},
				{Index: 4, Hosts: []string{"order.example"}, Path: gateway.PathMatch{Value: "/a"}, Method: "POST", Response: says("method")},
				{Index: 5, Hosts: []string{"order.example"}, Path: gateway.PathMatch{Value: "/a"}, Headers: []gateway.ValueMatch{{Name: "x-h", Value: "1"}}, Response: says("header")},
				{Index: 6, Hosts: []string{"order.example"}, Path: gateway.PathMatch{Value: "/a"}, Query: []gateway.ValueMatch{{Name: "q", Value: "[0-9]+", Regex: true}}, Response: says("query")},
				{Index: 7, Hosts: []string{"order.example"}, Path: gateway.PathMatch{Type: gateway.PathRegex, Value: "/v[0-9]/.*"}, Response: says("regex")},
				{Index: 8, Hosts: []string{"*.order.example"}, Response: says("wildcard")},
				{Index: 9, Hosts: []string{"*.deep.order.example"}, Response: says("longer wildcard")},
			},
			"R/a/default": {{Fallback: true, Response: says("fallback")}},
			"R/a/filters": {
				{Hosts: []string{"f.example"}, Path: gateway.PathMatch{Value: "/prefix"}, Backends: to, Filters: []gateway.Filter{
					{Rewrite: &gateway.Rewrite{Host: "inner.example", Prefix: text("/new")}},
					{RequestHeaders: &gateway.HeaderChange{Set: []gateway.Header{{Name: "X-Test", Value: "set"}}}},
					{ResponseHeaders: &gateway.HeaderChange{Add: []gateway.Header{{Name: "X-Added", Value: "yes"}}, Remove: []string{"X-Backend"}}}}},
				{Hosts: []string{"f.example"}, Path: gateway.PathMatch{Value: "/whole"}, Backends: to, Filters: []gateway.Filter{{Rewrite: &gateway.Rewrite{Path: text("/x%20y")}}}},
				{Hosts: []string{"f.example"}, Path: gateway.PathMatch{Value: "/away"}, Filters: []gateway.Filter{{Redirect: &gateway.Redirect{Scheme: "https", Host: "other.example", Prefix: text("/there"), Status: 301}}}},
				{Hosts: []string{"f.example"}, Path: gateway.PathMatch{Value: "/bad"}, Backends: []gateway.Backend{{Weight: 1, Status: 500}}},
				{Hosts: []string{"f.example"}, Path: gateway.PathMatch{Value: "/zero"}, Backends: []gateway.Backend{{Service: "a/none:80"}, {Service: "a/web:80", Weight: 1}}},
			},
		}
	}, backend(t, echo))
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for name, tc := range map[string]struct {
		method, host, path, header string
		status                     int
		want                       string
	}{
		"all":             {"GET", "order.example", "/ab", "", 200, "all"},
		"prefix":          {"GET", "order.example:8080", "/a/c", "", 200, "prefix"},
		"longer prefix":   {"GET", "ORDER.example", "/a/b/c", "", 200, "longer prefix"},
		"exact":           {"POST", "order.example", "/a/b", "", 200, "exact"},
		"method":          {"POST", "order.example", "/a", "", 200, "method"},
		"header":          {"GET", "order.example", "/a?q=1", "X-H: 1", 200, "header"},
		"query":           {"GET", "order.example", "/a?q=12", "X-H: 2", 200, "query"},
		"query not":       {"GET", "order.example", "/a?q=x", "", 200, "prefix"},
		"regex":           {"GET", "order.example", "/v1/x", "", 200, "regex"},
		"wildcard":        {"GET", "x.y.order.example", "/", "", 200, "wildcard"},
		"longer wildcard": {"GET", "x.deep.order.example", "/", "", 200, "longer wildcard"},
		"fallback":        {"GET", "unknown.example", "/", "", 200, "fallback"},
		"challenge":       {"GET", "unknown.example", "/.well-known/acme-challenge/token", "", 200, "token.key"},
		"rewritten":       {"GET", "f.example", "/prefix/p?q=1", "", 200, "GET /new/p?q=1 set host=inner.example for=127.0.0.1 proto=http fhost=f.example"},
		"whole path":      {"GET", "f.example", "/whole/p", "", 200, "GET /x%20y "},
		"redirected":      {"GET", "f.example", "/away/p?q=1", "", 301, "https://other.example/there/p?q=1"},
		"bad reference":   {"GET", "f.example", "/bad", "", 500, "500"},
		"weight of zero":  {"GET", "f.example", "/zero", "", 200, "GET /zero"},
		"not trusted":     {"GET", "f.example", "/zero", "X-Forwarded-For: 6.6.6.6", 200, "for=127.0.0.1 "},
	} {
		t.Run(name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), tc.method, "http://"+r.at+tc.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Host = tc.host
			if key, value, ok := strings.Cut(tc.header, ": "); ok {
				request.Header.Set(key, value)
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			if got := response.Header.Get("Location") + read(t, response); response.StatusCode != tc.status || !strings.Contains(got, tc.want) {
				t.Errorf("%d %q, want %d %q", response.StatusCode, got, tc.status, tc.want)
			}
			if name == "rewritten" && (response.Header.Get("X-Added") != "yes" || response.Header.Get("X-Backend") != "") {
				t.Errorf("answer's header %v", response.Header)
			}
		})
	}
	trust := r.table.Settings
	trust.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	secure := append(r.table.Listeners[:0:0], r.table.Listeners...)
	secure[0].RedirectHTTPS = secure[1].Port
	if err := r.g.Update(gateway.Delta{Settings: &trust}); err != nil {
		t.Fatal(err)
	}
	if out := r.raw("GET /zero HTTP/1.1\r\nHost: f.example\r\nX-Forwarded-For: 5.5.5.5, 6.6.6.6\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n"); !strings.Contains(out, "for=5.5.5.5, 6.6.6.6, 127.0.0.1 proto=https") {
		t.Errorf("behind a trusted proxy: %q", out)
	}
	r.eventually("the client behind a trusted proxy in the log", func() bool {
		log := r.g.Ask(gateway.Query{What: gateway.QueryLog, Limit: 1}).Log
		return len(log) == 1 && log[0].Client == "6.6.6.6"
	})
	if err := r.g.Update(gateway.Delta{Listeners: &secure}); err != nil {
		t.Fatal(err)
	}
	if out := r.raw("GET /x?y HTTP/1.1\r\nHost: f.example\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(out, "HTTP/1.1 301") || !strings.Contains(out, fmt.Sprintf("Location: https://f.example:%d/x?y", secure[1].Port)) {
		t.Errorf("redirect to https: %q", out)
	}
}
