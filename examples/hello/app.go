package main

import (
	"bytes"
	"context"
	_ "embed" // for the page
	"encoding/json"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

//go:embed page.html
var pageText string

// identity is what the page shows about the replica that answers.
type identity struct {
	Pod       string `json:"pod"`
	Namespace string `json:"namespace"`
	Node      string `json:"node"`
	Version   string `json:"version"`
}

// whoAmI reads the identity from the variables that the manifest sets.
func whoAmI(getenv func(string) string) identity {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return identity{
		Pod:       orElse(getenv("POD_NAME"), host),
		Namespace: orElse(getenv("POD_NAMESPACE"), "none"),
		Node:      orElse(getenv("NODE_NAME"), "this machine"),
		Version:   orElse(getenv("APP_VERSION"), "1.0"),
	}
}

func orElse(value, otherwise string) string {
	if value != "" {
		return value
	}
	return otherwise
}

// answer is one answer, as JSON and as what the page's template is filled with.
type answer struct {
	identity
	Count  int64  `json:"count"`
	Shared bool   `json:"shared"` // all replicas count together
	Uptime string `json:"uptime"`
	Hue    int    `json:"hue"` // the pod's colour, so that one sees who answered
}

// counter counts requests.
type counter interface {
	// add counts one more and returns the new count, and whether it is shared by all replicas.
	add(ctx context.Context) (count int64, shared bool)
}

// app serves the page. It is an http.Handler.
type app struct {
	who      identity
	counter  counter
	page     *template.Template
	mux      *http.ServeMux
	started  time.Time
	draining atomic.Bool
}

func newApp(who identity, c counter, logger *slog.Logger) (*app, error) {
	page, err := template.New("page").Parse(pageText)
	if err != nil {
		return nil, fmt.Errorf("parse page: %w", err)
	}
	a := &app{who: who, counter: c, page: page, mux: http.NewServeMux(), started: time.Now()}
	a.mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		if err := a.page.Execute(&body, a.answer(r.Context())); err != nil {
			logger.Error("page not made", "err", err)
			http.Error(w, "the page could not be made", http.StatusInternalServerError)
			return
		}
		send(w, "text/html; charset=utf-8", body.Bytes())
	})
	a.mux.HandleFunc("GET /hello.json", func(w http.ResponseWriter, r *http.Request) {
		body, err := json.Marshal(a.answer(r.Context()))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		send(w, "application/json", append(body, '\n'))
	})
	a.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if a.draining.Load() {
			http.Error(w, "stopping", http.StatusServiceUnavailable)
			return
		}
		send(w, "text/plain; charset=utf-8", []byte("ok\n"))
	})
	return a, nil
}

// drain makes the health check fail, so that no new requests are sent here.
func (a *app) drain() { a.draining.Store(true) }

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

func (a *app) answer(ctx context.Context) answer {
	count, shared := a.counter.add(ctx)
	return answer{identity: a.who, Count: count, Shared: shared, Uptime: uptime(time.Since(a.started)), Hue: hue(a.who.Pod)}
}

func send(w http.ResponseWriter, contentType string, body []byte) {
	header := w.Header()
	header.Set("Content-Type", contentType)
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	// A kept connection would stay with one pod; the next request may go to the other.
	header.Set("Connection", "close")
	_, _ = w.Write(body) // the browser may be gone
}

// hue turns a name into a colour, in degrees.
func hue(name string) int {
	sum := uint32(2166136261) // FNV-1a
	for _, b := range []byte(name) {
		sum = (sum ^ uint32(b)) * 16777619
	}
	return int(sum % 360)
}

func uptime(d time.Duration) string {
	d = d.Round(time.Second)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d d %d h", int(d.Hours())/24, int(d.Hours())%24)
}
