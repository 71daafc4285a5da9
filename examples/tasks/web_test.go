package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// memory is a keeper without a database.
type memory struct {
	mu    sync.Mutex
	tasks []task
	err   error // what every call returns, if it is set
}

func (m *memory) list(context.Context) ([]task, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]task{}, m.tasks...), m.err
}

func (m *memory) totals(context.Context) (totals, error) { return totals{Open: len(m.tasks)}, m.err }
func (m *memory) digests(context.Context) ([]digest, error) {
	return []digest{{"2026-01-02", 3, 1}}, m.err
}
func (m *memory) ping(context.Context) error { return m.err }

func (m *memory) get(_ context.Context, id int64) (task, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if id > int64(len(m.tasks)) {
		return task{}, errors.Join(errNotFound, m.err)
	}
	return m.tasks[id-1], m.err
}

func (m *memory) create(_ context.Context, title string) (task, error) {
	title, err := checkTitle(title)
	if err = errors.Join(err, m.err); err != nil {
		return task{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t := task{ID: int64(len(m.tasks) + 1), Title: title, Created: time.Now()}
	m.tasks = append(m.tasks, t)
	return t, nil
}

func (m *memory) update(ctx context.Context, id int64, c change) (task, error) {
	t, err := m.get(ctx, id)
	if err == nil && c.Done != nil {
		t.Done = *c.Done
		m.tasks[id-1] = t
	}
	return t, err
}

func (m *memory) remove(ctx context.Context, id int64) error {
	_, err := m.get(ctx, id)
	return err
}

func newTestServer(t *testing.T, m *memory) *httptest.Server {
	t.Helper()
	a, err := newApp(m, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(a.logged(a.routes()))
	t.Cleanup(server.Close)
	return server
}

func ask(t *testing.T, method, url, kind, body string, headers ...string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", kind)
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.Header.Get("X-Tasks-Version") != version {
		t.Errorf("%s %s does not name the version", method, url)
	}
	return response.StatusCode, string(text)
}

const (
	jsonType = "application/json"
	formType = "application/x-www-form-urlencoded"
)

func TestRequests(t *testing.T) {
	server := newTestServer(t, &memory{})
	for _, tc := range []struct {
		name, method, path, kind, body string
		status                         int
		want                           string
	}{
		{"empty list", "GET", "/api/tasks", "", "", 200, "[]\n"},
		{"empty page", "GET", "/", "", "", 200, "A clear desk"},
		{"create", "POST", "/api/tasks", jsonType, `{"title":"  buy   <b>milk</b> "}`, 201, `"id":1`},
		{"no title", "POST", "/api/tasks", jsonType, `{}`, 400, "1 to 200"},
		{"blank title", "POST", "/api/tasks", jsonType, `{"title":" \t "}`, 400, "1 to 200"},
		{"long title", "POST", "/api/tasks", jsonType, `{"title":"` + strings.Repeat("ä", 201) + `"}`, 400, "1 to 200"},
		{"wrong key", "POST", "/api/tasks", jsonType, `{"titel":"x"}`, 400, "titel"},
		{"not JSON", "POST", "/api/tasks", formType, `title=x`, 400, jsonType},
		{"endless body", "POST", "/api/tasks", jsonType, `{"title":"` + strings.Repeat("x", maxBody) + `"}`, 400, "too large"},
		{"get", "GET", "/api/tasks/1", "", "", 200, `"title":"buy`},
		{"get none", "GET", "/api/tasks/7", "", "", 404, "no such task"},
		{"get a word", "GET", "/api/tasks/one", "", "", 404, "no such task"},
		{"finish", "PATCH", "/api/tasks/1", jsonType, `{"done":true}`, 200, `"done":true`},
		{"page escapes", "GET", "/", "", "", 200, "buy &lt;b&gt;milk"},
		{"form creates", "POST", "/tasks", formType, "title=bread", 200, "bread"},
		{"form without title", "POST", "/tasks", formType, "title=+", 200, `role="alert"`},
		{"form toggles", "POST", "/tasks/2/toggle", formType, "done=true", 200, `class="done"`},
		{"form of a task that is gone", "POST", "/tasks/99/delete", formType, "", 200, "bread"},
		{"delete", "DELETE", "/api/tasks/1", "", "", 204, ""},
		{"digests", "GET", "/api/digests", "", "", 200, "2026-01-02"},
		{"style", "GET", "/style.css", "", "", 200, ":root"},
		{"version", "GET", "/version", "", "", 200, version},
		{"health", "GET", "/healthz", "", "", 200, "ok"},
		{"unknown", "GET", "/nothing", "", "", 404, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, body := ask(t, tc.method, server.URL+tc.path, tc.kind, tc.body)
			if status != tc.status || !strings.Contains(body, tc.want) {
				t.Errorf("%s %s: %d %s, want %d with %q", tc.method, tc.path, status, body, tc.status, tc.want)
			}
		})
	}
}

func TestFailures(t *testing.T) {
	server := newTestServer(t, &memory{err: errors.New("secret detail")})
	for _, path := range []string{"/", "/api/tasks", "/api/digests"} {
		if status, body := ask(t, "GET", server.URL+path, "", ""); status != 500 || strings.Contains(body, "secret") {
			t.Errorf("%s without a database: %d %s", path, status, body)
		}
	}
	if status, _ := ask(t, "GET", server.URL+"/healthz", "", ""); status != 503 {
		t.Errorf("healthz without a database: %d", status)
	}
}

func TestOtherSites(t *testing.T) {
	m := &memory{}
	server := newTestServer(t, m)
	status, _ := ask(t, "POST", server.URL+"/tasks", formType, "title=x", "Sec-Fetch-Site", "cross-site")
	if status != 403 || len(m.tasks) != 0 {
		t.Errorf("a form of another site: %d, %d tasks", status, len(m.tasks))
	}
}

func TestSettings(t *testing.T) {
	for name, tc := range map[string]struct {
		env  map[string]string
		want string
	}{
		"no database": {map[string]string{}, "DATABASE_URL"},
		"wrong time":  {map[string]string{"DATABASE_URL": "postgres://x", "WORK_EVERY": "often"}, "WORK_EVERY"},
		"no time":     {map[string]string{"DATABASE_URL": "postgres://x", "ARCHIVE_AFTER": "0s"}, "ARCHIVE_AFTER"},
		"all that is": {map[string]string{"DATABASE_URL": "postgres://x", "PORT": "3000", "WORK_EVERY": "1s"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readSettings(func(key string) string { return tc.env[key] })
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	if err := run(t.Context(), []string{"dance"}, func(string) string { return "postgres://x" }, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("an unknown command is taken")
	}
}
