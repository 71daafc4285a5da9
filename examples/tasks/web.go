package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"os"
	"strconv"
	"time"
)

//go:embed web
var webFiles embed.FS

// maxBody bounds what a request may send.
const maxBody = 16 << 10

// keeper is what the page and the API need of the store.
type keeper interface {
	list(context.Context) ([]task, error)
	totals(context.Context) (totals, error)
	digests(context.Context) ([]digest, error)
	get(context.Context, int64) (task, error)
	create(context.Context, string) (task, error)
	update(context.Context, int64, change) (task, error)
	remove(context.Context, int64) error
	ping(context.Context) error
}

// pages are the files that the browser gets.
type pages struct {
	list  *template.Template
	style []byte
	tag   string // of the style, a part of its address
	host  string
}

func newApp(s keeper, logger *slog.Logger) (*app, error) {
	style, err := webFiles.ReadFile("web/style.css")
	if err != nil {
		return nil, fmt.Errorf("read the style: %w", err)
	}
	list, err := template.New("list.html").Funcs(template.FuncMap{"ago": ago}).ParseFS(webFiles, "web/list.html")
	if err != nil {
		return nil, fmt.Errorf("read the page: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	sum := sha256.Sum256(style)
	return &app{store: s, logger: logger, pages: &pages{list, style, hex.EncodeToString(sum[:6]), host}}, nil
}

func (a *app) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.page)
	mux.HandleFunc("GET /style.css", a.style)
	mux.HandleFunc("POST /tasks", a.form(func(r *http.Request, _ int64) error {
		_, err := a.store.create(r.Context(), r.PostForm.Get("title"))
		return err
	}))
	mux.HandleFunc("POST /tasks/{id}/toggle", a.form(func(r *http.Request, id int64) error {
		done := r.PostForm.Get("done") == "true"
		_, err := a.store.update(r.Context(), id, change{Done: &done})
		return err
	}))
	mux.HandleFunc("POST /tasks/{id}/delete", a.form(func(r *http.Request, id int64) error { return a.store.remove(r.Context(), id) }))

	mux.HandleFunc("GET /api/tasks", a.json(func(r *http.Request, _ int64) (any, int, error) {
		tasks, err := a.store.list(r.Context())
		return tasks, http.StatusOK, err
	}))
	mux.HandleFunc("POST /api/tasks", a.json(func(r *http.Request, _ int64) (any, int, error) {
		var c change
		if err := decode(r, &c); err != nil || c.Title == nil {
			return nil, 0, errors.Join(errTitle, err)
		}
		t, err := a.store.create(r.Context(), *c.Title)
		return t, http.StatusCreated, err
	}))
	mux.HandleFunc("GET /api/tasks/{id}", a.json(func(r *http.Request, id int64) (any, int, error) {
		t, err := a.store.get(r.Context(), id)
		return t, http.StatusOK, err
	}))
	mux.HandleFunc("PATCH /api/tasks/{id}", a.json(func(r *http.Request, id int64) (any, int, error) {
		var c change
		if err := decode(r, &c); err != nil {
			return nil, 0, err
		}
		t, err := a.store.update(r.Context(), id, c)
		return t, http.StatusOK, err
	}))
	mux.HandleFunc("DELETE /api/tasks/{id}", a.json(func(r *http.Request, id int64) (any, int, error) {
		return nil, http.StatusNoContent, a.store.remove(r.Context(), id)
	}))
	mux.HandleFunc("GET /api/digests", a.json(func(r *http.Request, _ int64) (any, int, error) {
		all, err := a.store.digests(r.Context())
		return all, http.StatusOK, err
	}))
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, version+"\n") })
	mux.HandleFunc("GET /healthz", a.health)
	return http.NewCrossOriginProtection().Handler(mux)
}

// health says whether a request could be answered now.
func (a *app) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	if err := a.store.ping(ctx); err != nil {
		http.Error(w, "the database does not answer: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}

// view is what the page is filled with.
type view struct {
	Tasks               []task
	Totals              totals
	Digests             []digest
	Style, Host         string
	Version, Problem    string
	Percent, TasksShown int
}

func (a *app) page(w http.ResponseWriter, r *http.Request) {
	tasks, err := a.store.list(r.Context())
	if err != nil {
		a.fail(w, r, err)
		return
	}
	sums, err := a.store.totals(r.Context())
	if err != nil {
		a.fail(w, r, err)
		return
	}
	days, err := a.store.digests(r.Context())
	if err != nil {
		a.fail(w, r, err)
		return
	}
	v := view{Tasks: tasks, Totals: sums, Digests: days, Style: a.pages.tag, Host: a.pages.host, Version: version, TasksShown: len(tasks)}
	if all := sums.Open + sums.Done; all > 0 {
		v.Percent = sums.Done * 100 / all
	}
	if r.URL.Query().Has("title") {
		v.Problem = errTitle.Error()
	}
	var out bytes.Buffer
	if err := a.pages.list.Execute(&out, v); err != nil {
		a.fail(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	_, _ = w.Write(out.Bytes())
}

func (a *app) style(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	_, _ = w.Write(a.pages.style)
}

// form answers a form of the page: what it asks for is done, and the browser goes back to the page.
func (a *app) form(do func(*http.Request, int64) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		id, err := idOf(r)
		if err == nil {
			if err = r.ParseForm(); err != nil {
				err = errors.Join(errBody, err)
			}
		}
		if err == nil {
			err = do(r, id)
		}
		switch {
		case errors.Is(err, errTitle):
			http.Redirect(w, r, "/?title", http.StatusSeeOther)
		case err == nil, errors.Is(err, errNotFound): // somebody else was quicker
			http.Redirect(w, r, "/", http.StatusSeeOther)
		default:
			a.fail(w, r, err)
		}
	}
}

// json answers a request of the API.
func (a *app) json(do func(*http.Request, int64) (any, int, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		id, err := idOf(r)
		var answer any
		var status int
		if err == nil {
			answer, status, err = do(r, id)
		}
		if err != nil {
			status = statusOf(err)
			answer = map[string]string{"error": err.Error()}
			if status == http.StatusInternalServerError {
				a.logger.Error("the request failed", "method", r.Method, "path", r.URL.Path, "error", err.Error())
				answer = map[string]string{"error": "the request could not be answered"}
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		if status != http.StatusNoContent {
			_ = json.NewEncoder(w).Encode(answer)
		}
	}
}

func (a *app) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := statusOf(err)
	if status == http.StatusInternalServerError {
		a.logger.Error("the request failed", "method", r.Method, "path", r.URL.Path, "error", err.Error())
		http.Error(w, "This could not be answered. Please try again.", status)
		return
	}
	http.Error(w, err.Error(), status)
}

// errBody is what a request is answered with whose body cannot be read.
var errBody = errors.New("the body cannot be read")

func statusOf(err error) int {
	switch {
	case errors.Is(err, errNotFound):
		return http.StatusNotFound
	case errors.Is(err, errTitle), errors.Is(err, errBody):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

// idOf is the id in the path; 0 if the path has none.
func idOf(r *http.Request) (int64, error) {
	text := r.PathValue("id")
	if text == "" {
		return 0, nil
	}
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id < 1 {
		return 0, errNotFound
	}
	return id, nil
}

func decode(r *http.Request, into any) error {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return fmt.Errorf("%w: its type is not application/json", errBody)
	}
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("%w: %w", errBody, err)
	}
	return nil
}

// ago says how long something is past, for people.
func ago(t time.Time) string {
	switch d := time.Since(t); {
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 24*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	default:
		return t.Format("2 January")
	}
}
