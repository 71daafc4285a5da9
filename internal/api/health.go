package api

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Check is one named condition of the server's health.
type Check struct {
	Name  string
	Live  bool                        // also part of /livez; every check is part of /healthz and /readyz
	Probe func(context.Context) error // nil error: well; must return soon after its context ends
}

// probeTimeout bounds all checks of one request.
const probeTimeout = 10 * time.Second

// health answers /healthz, /livez, /readyz and each of them for one check, as upstream words them.
func (s *Server) health(q *query, endpoint, only string) int {
	ctx, cancel := context.WithTimeout(q.r.Context(), probeTimeout)
	defer cancel()
	values := q.r.URL.Query()
	excluded := values["exclude"]
	var report bytes.Buffer
	failed, matched := false, only == ""
	run := func(name string, probe func(context.Context) error) {
		if only != "" && only != name {
			return
		}
		matched = true
		if slices.Contains(excluded, name) {
			fmt.Fprintf(&report, "[+]%s excluded: ok\n", name)
			return
		}
		if err := probe(ctx); err != nil {
			failed = true
			s.opts.Log.Warn("health check failed", "endpoint", endpoint, "check", name, "error", err)
			fmt.Fprintf(&report, "[-]%s failed: reason withheld\n", name)
			return
		}
		fmt.Fprintf(&report, "[+]%s ok\n", name)
	}
	run("ping", func(context.Context) error { return nil })
	for _, check := range s.opts.Checks {
		if endpoint != "livez" || check.Live {
			run(check.Name, check.Probe)
		}
	}
	if !matched {
		return s.notFoundPath(q)
	}
	header := q.w.Header()
	header.Set("Content-Type", "text/plain; charset=utf-8")
	header.Set("X-Content-Type-Options", "nosniff")
	if failed {
		http.Error(q.w, report.String()+endpoint+" check failed", http.StatusInternalServerError)
		return http.StatusInternalServerError
	}
	if _, verbose := values["verbose"]; verbose && only == "" {
		fmt.Fprintf(&report, "%s check passed\n", endpoint)
		return s.plain(q, report.Bytes())
	}
	return s.plain(q, []byte("ok"))
}

// plain sends text whose content type is set.
func (s *Server) plain(q *query, text []byte) int {
	q.w.WriteHeader(http.StatusOK)
	_, _ = q.w.Write(text)
	return http.StatusOK
}

// healthPath splits "/livez/etcd" into its endpoint and check; ok is false for any other path.
func healthPath(path string) (endpoint, check string, ok bool) {
	endpoint, check, _ = strings.Cut(strings.Trim(path, "/"), "/")
	switch endpoint {
	case "healthz", "livez", "readyz":
		return endpoint, check, true
	}
	return "", "", false
}
