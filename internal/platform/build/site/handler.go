package site

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"
)

// Options say how a site is served.
type Options struct {
	SPA bool // a path without a file gets /index.html, as applications that route in the browser want
}

// Handler serves the files of tree, which must not change and whose files can be sought.
func Handler(tree fs.FS, opts Options) http.Handler {
	return &site{tree: tree, opts: opts}
}

type site struct {
	tree fs.FS
	opts Options
	tags sync.Map // entity tag by the file's name
}

// ServeHTTP implements http.Handler.
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	name, redirect, ok := s.resolve(r.URL.Path)
	switch {
	case redirect != "":
		// Only the path of this very request with a slash: no host can get into it.
		target := (&relative{path: redirect, query: r.URL.RawQuery}).String()
		w.Header().Set("Location", target)
		w.WriteHeader(http.StatusMovedPermanently)
	case ok:
		s.serve(w, r, name, http.StatusOK)
	case s.opts.SPA && path.Ext(r.URL.Path) == "" && s.isFile("index.html"):
		s.serve(w, r, "index.html", http.StatusOK)
	case s.isFile("404.html"):
		s.serve(w, r, "404.html", http.StatusNotFound)
	default:
		http.Error(w, "not found", http.StatusNotFound)
	}
}

// relative is a redirect within the site.
type relative struct{ path, query string }

// String writes it so that no browser takes "//host" for another site.
func (r *relative) String() string {
	target := "./" + path.Base(r.path) + "/"
	if r.query != "" {
		target += "?" + r.query
	}
	return target
}

// resolve finds the file of a URL's path: itself, name.html, or the index.html of a folder.
func (s *site) resolve(url string) (name, redirect string, ok bool) {
	if strings.ContainsRune(url, 0) {
		return "", "", false
	}
	name = strings.TrimPrefix(path.Clean("/"+url), "/")
	if name == "" {
		name = "."
	}
	for part := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(part, ".") && part != "." && part != ".well-known" {
			return "", "", false
		}
	}
	info, err := fs.Stat(s.tree, name)
	switch {
	case err == nil && info.IsDir():
		index := path.Join(name, "index.html")
		if !s.isFile(index) {
			return "", "", false
		}
		if !strings.HasSuffix(url, "/") && name != "." {
			return "", "/" + name, false
		}
		return index, "", true
	case err == nil:
		return name, "", info.Mode().IsRegular() && !strings.HasSuffix(url, "/")
	case s.isFile(name + ".html"):
		return name + ".html", "", true
	}
	return "", "", false
}

func (s *site) isFile(name string) bool {
	info, err := fs.Stat(s.tree, name)
	return err == nil && info.Mode().IsRegular()
}

// serve answers with a file, or with its compressed copy if the client takes that.
func (s *site) serve(w http.ResponseWriter, r *http.Request, name string, status int) {
	header := w.Header()
	header.Set("Content-Type", contentType(name))
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", cacheControl(name))
	stored := name
	for _, encoding := range []struct{ name, suffix string }{{"br", ".br"}, {"gzip", ".gz"}} {
		if !s.isFile(name + encoding.suffix) {
			continue
		}
		header.Set("Vary", "Accept-Encoding")
		if stored == name && accepts(r.Header.Get("Accept-Encoding"), encoding.name) {
			stored = name + encoding.suffix
			header.Set("Content-Encoding", encoding.name)
		}
	}
	file, err := s.tree.Open(stored)
	if err != nil {
		http.Error(w, "cannot read the file", http.StatusInternalServerError)
		return
	}
	defer file.Close()
	seeker, ok := file.(io.ReadSeeker)
	if !ok {
		http.Error(w, "cannot read the file", http.StatusInternalServerError)
		return
	}
	tag, err := s.tag(stored, seeker)
	if err != nil {
		http.Error(w, "cannot read the file", http.StatusInternalServerError)
		return
	}
	header.Set("Etag", tag)
	if status != http.StatusOK {
		header.Del("Etag")
		w = &withStatus{ResponseWriter: w, status: status}
		r.Header.Del("Range")
		r.Header.Del("If-None-Match")
	}
	http.ServeContent(w, r, name, time.Time{}, seeker)
}

// withStatus answers with a status of its own.
type withStatus struct {
	http.ResponseWriter

	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *withStatus) WriteHeader(int) { w.ResponseWriter.WriteHeader(w.status) }

// tag is the strong entity tag of a file: a hash of what is sent.
func (s *site) tag(name string, file io.ReadSeeker) (string, error) {
	if known, ok := s.tags.Load(name); ok {
		if tag, ok := known.(string); ok {
			return tag, nil
		}
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	tag := `"` + base64.RawURLEncoding.EncodeToString(hash.Sum(nil)[:18]) + `"`
	s.tags.Store(name, tag)
	return tag, nil
}

// cacheControl lets browsers keep files whose name holds a hash of their content.
func cacheControl(name string) string {
	base := strings.TrimSuffix(path.Base(name), path.Ext(name))
	for part := range strings.FieldsFuncSeq(base, func(r rune) bool { return r == '.' || r == '-' || r == '_' }) {
		if len(part) >= 8 && strings.ContainsAny(part, "0123456789") && path.Ext(name) != ".html" {
			return "public, max-age=31536000, immutable"
		}
	}
	return "no-cache"
}

// accepts reports whether an Accept-Encoding names an encoding without refusing it.
func accepts(header, encoding string) bool {
	for part := range strings.SplitSeq(header, ",") {
		name, weight, _ := strings.Cut(strings.TrimSpace(part), ";")
		if strings.EqualFold(strings.TrimSpace(name), encoding) {
			weight = strings.TrimPrefix(strings.ReplaceAll(weight, " ", ""), "q=")
			return strings.Trim(weight, "0.") != "" || weight == ""
		}
	}
	return false
}

// contentType is by the extension; the image has no list of the system's.
func contentType(name string) string {
	ext := strings.ToLower(path.Ext(name))
	types := map[string]string{
		".html": "text/html; charset=utf-8", ".htm": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
		".js": "text/javascript; charset=utf-8", ".mjs": "text/javascript; charset=utf-8", ".json": "application/json", ".map": "application/json",
		".txt": "text/plain; charset=utf-8", ".md": "text/markdown; charset=utf-8", ".xml": "text/xml; charset=utf-8", ".csv": "text/csv; charset=utf-8",
		".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp",
		".avif": "image/avif", ".ico": "image/x-icon", ".woff": "font/woff", ".woff2": "font/woff2", ".ttf": "font/ttf", ".otf": "font/otf",
		".wasm": "application/wasm", ".pdf": "application/pdf", ".webmanifest": "application/manifest+json", ".zip": "application/zip",
		".mp4": "video/mp4", ".webm": "video/webm", ".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".wav": "audio/wav", ".gz": "application/gzip",
	}
	return cmp.Or(types[ext], mime.TypeByExtension(ext), "application/octet-stream")
}

// errUsage says how the program is called.
var errUsage = errors.New("usage: gantry-static [-dir FOLDER] [-spa] [-listen ADDRESS]")
