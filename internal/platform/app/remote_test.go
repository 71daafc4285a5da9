package app

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestAPI(t *testing.T) {
	served := map[string]string{"requests_total": "1200", "errors_total": "3", "concurrency": "500m", "latency_p95_seconds": "80m"}
	status := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status != 0 {
			http.Error(w, map[int]string{404: "404 page not found", 503: "busy"}[status], status)
			return
		}
		parts := strings.Split(r.URL.Path, "/")
		switch {
		case strings.HasSuffix(r.URL.Path, "/log") && r.URL.Query().Get("previous") == "true":
			http.Error(w, "there is none", http.StatusBadRequest)
		case strings.HasSuffix(r.URL.Path, "/log"):
			fmt.Fprint(w, "one\ntwo\n")
		case strings.Contains(r.URL.Path, "/services/gone/"):
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"kind":"Status","details":{"name":"gone"}}`)
		default:
			fmt.Fprintf(w, `{"items":[{"value":%q}]}`, served[parts[len(parts)-1]])
		}
	}))
	defer server.Close()
	api := &API{HTTP: server.Client(), Host: server.URL}
	got, err := api.Counts(t.Context(), "default", "shop-web")
	if want := (Counts{Requests: 1200, Errors: 3, Concurrency: 0.5, P95: 80 * time.Millisecond}); got != want || err != nil {
		t.Errorf("Counts = %+v, %v; want %+v", got, err, want)
	}
	if got, err := api.Counts(t.Context(), "default", "gone"); got != (Counts{}) || err != nil {
		t.Errorf("Counts of no Service = %+v, %v", got, err)
	}
	if text, err := api.Tail(t.Context(), "default", "shop-web-1", true); text != "one\ntwo\n" || err != nil {
		t.Errorf("Tail = %q, %v", text, err)
	}
	status = http.StatusNotFound
	if _, err := api.Counts(t.Context(), "default", "shop-web"); !errors.Is(err, ErrNoMetrics) {
		t.Errorf("Counts where it is not served = %v", err)
	}
	status = http.StatusServiceUnavailable
	if _, err := api.Counts(t.Context(), "default", "shop-web"); err == nil || errors.Is(err, ErrNoMetrics) {
		t.Errorf("Counts from who is busy = %v", err)
	}
}

func TestLastLines(t *testing.T) {
	if got := lastLines(strings.Repeat("x\n", 30) + "end\n"); strings.Count(got, "\n") != logLines-1 || !strings.HasSuffix(got, "end") {
		t.Errorf("lastLines = %q", got)
	}
	if got := lastLines(strings.Repeat("é", 5000)); len(got) > logBytes {
		t.Errorf("lastLines has %d bytes", len(got))
	}
}
