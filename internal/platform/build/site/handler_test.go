package site

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

func TestHandler(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"index.html": "home", "about.html": "about", "docs/index.html": "docs", "app.1a2b3c4d5e.js": "script", "app.1a2b3c4d5e.js.br": "brotli", "app.1a2b3c4d5e.js.gz": "gzip",
		".env": "secret", ".well-known/x.txt": "known", "empty/keep.txt": "kept", "404.html": "lost",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "out.txt")); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for name, tc := range map[string]struct {
		method, path string
		header       map[string]string
		spa          bool
		code         int
		body         string
		want         map[string]string
	}{
		"home":               {path: "/", code: 200, body: "home", want: map[string]string{"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-cache"}},
		"page without .html": {path: "/about", code: 200, body: "about"},
		"folder":             {path: "/docs/", code: 200, body: "docs"},
		"folder, no slash":   {path: "/docs?x=1", code: 301, want: map[string]string{"Location": "./docs/?x=1"}},
		"another host":       {path: "//docs", code: 301, want: map[string]string{"Location": "./docs/"}},
		"no listing":         {path: "/empty/", code: 404, body: "lost"},
		"hidden":             {path: "/.env", code: 404, body: "lost"},
		"well-known":         {path: "/.well-known/x.txt", code: 200, body: "known"},
		"out of the folder":  {path: "/../../etc/passwd", code: 404, body: "lost"},
		"link out":           {path: "/out.txt", code: 404, body: "lost"},
		"brotli":             {path: "/app.1a2b3c4d5e.js", header: map[string]string{"Accept-Encoding": "gzip, br"}, code: 200, body: "brotli", want: map[string]string{"Content-Encoding": "br", "Content-Type": "text/javascript; charset=utf-8", "Vary": "Accept-Encoding", "Cache-Control": "public, max-age=31536000, immutable"}},
		"gzip":               {path: "/app.1a2b3c4d5e.js", header: map[string]string{"Accept-Encoding": "gzip, br;q=0"}, code: 200, body: "gzip"},
		"plain":              {path: "/app.1a2b3c4d5e.js", code: 200, body: "script", want: map[string]string{"Content-Encoding": ""}},
		"range":              {path: "/about.html", header: map[string]string{"Range": "bytes=1-2"}, code: 206, body: "bo"},
		"head":               {method: "HEAD", path: "/", code: 200},
		"post":               {method: "POST", path: "/", code: 405, want: map[string]string{"Allow": "GET, HEAD"}},
		"spa":                {path: "/users/7", spa: true, code: 200, body: "home"},
		"spa, a file":        {path: "/none.js", spa: true, code: 404, body: "lost"},
	} {
		t.Run(name, func(t *testing.T) {
			method := tc.method
			if method == "" {
				method = http.MethodGet
			}
			r := httptest.NewRequest(method, "http://site"+tc.path, nil)
			for key, value := range tc.header {
				r.Header.Set(key, value)
			}
			w := httptest.NewRecorder()
			Handler(root.FS(), Options{SPA: tc.spa}).ServeHTTP(w, r)
			if w.Code != tc.code || tc.body != "" && w.Body.String() != tc.body {
				t.Errorf("%s %s = %d %q, want %d %q", method, tc.path, w.Code, w.Body, tc.code, tc.body)
			}
			for key, value := range tc.want {
				if w.Header().Get(key) != value {
					t.Errorf("%s is %q, want %q", key, w.Header().Get(key), value)
				}
			}
		})
	}
}

func TestEntityTag(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "index.html"), []byte("home"), 0o644); err != nil {
		t.Fatal(err)
	}
	handler := Handler(os.DirFS(dir), Options{})
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	tag := w.Header().Get("Etag")
	if len(tag) < 10 || tag[0] != '"' {
		t.Fatalf("the entity tag is %q, want a strong one", tag)
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("If-None-Match", tag)
	w = httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	if w.Code != http.StatusNotModified {
		t.Errorf("with the tag the answer is %d, want 304", w.Code)
	}
}
