package cli

import (
	"strings"
	"testing"
	"time"
)

func TestExplainRequest(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	of := func(change func(*requestEntry)) *requestEntry {
		e := &requestEntry{Time: at, RequestID: "7f", Client: "203.0.113.9", Method: "GET", Scheme: "https", Host: "shop.example.com", Path: "/cart", Protocol: "HTTP/2.0",
			Seconds: 0.0315, Service: "default/shop-web:80", Pod: "shop-web-1", Endpoint: "10.0.0.7:80", Labels: map[string]string{"app": "shop", "process": "web", "release": "7"}}
		change(e)
		return e
	}
	for name, tc := range map[string]struct {
		entry *requestEntry
		want  []string
	}{
		"well": {of(func(e *requestEntry) { e.Status = 200 }), []string{
			"GET https://shop.example.com/cart was answered 200 OK, 2m ago, and nothing was wrong on the way", "it took 31.5ms", "of app shop process web v7", "pod shop-web-1 at 10.0.0.7:80"}},
		"its own error": {of(func(e *requestEntry) { e.Status, e.Reason = 500, "UpstreamError" }), []string{"the application itself", "→ see what it wrote then: gantry logs -a shop --since "}},
		"refused": {of(func(e *requestEntry) {
			e.Status, e.Reason, e.Detail, e.Tries = 502, "ConnectFailed", "connection refused", 3
		}), []string{
			"502 Bad Gateway, 2m ago, because no pod took the connection", "the last of 3 tries", "reason ConnectFailed: connection refused", "→ listen on 0.0.0.0", "gantry why app/shop"}},
		"held":      {of(func(e *requestEntry) { e.Status, e.Reason, e.Held = 503, "HoldExpired", 0.03 }), []string{"asleep", "30ms of it waiting for the application to wake", "scale: {min: 1}"}},
		"no answer": {of(func(e *requestEntry) { e.Reason = "ClientGone" }), []string{"had no answer", "the client went away"}},
		"no route": {of(func(e *requestEntry) {
			e.Status, e.Reason, e.Service, e.Pod, e.Endpoint, e.Labels = 404, "NoRoute", "", "", "", nil
		}), []string{"nothing is served at this host and path", "gantry domain set shop.example.com"}},
		"not HTTP": {&requestEntry{Time: at, RequestID: "7f", Client: "203.0.113.9", Status: 400, Reason: "BadRequest"}, []string{"a request was answered 400", "not valid HTTP"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := explainRequest(tc.entry, at.Add(2*time.Minute))
			text := w.Summary + "\n  " + strings.Join(w.Facts, "\n  ") + "\n→ " + strings.Join(w.Do, "\n→ ")
			for _, want := range tc.want {
				if !strings.Contains(text, want) {
					t.Errorf("want %q in\n%s", want, text)
				}
			}
			if tc.entry.Reason != "" && tc.entry.Reason != "ClientGone" && len(w.Do) == 0 {
				t.Error("nothing to do is said")
			}
		})
	}
}
