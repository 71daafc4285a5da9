package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Options say what a Handler serves. Store is needed.
type Options struct {
	Store *Store
	// Allowed says whether who makes a request may do more than Need said of it: read from another repository, or see a
	// repository in the catalog. nil: everything.
	Allowed func(r *http.Request, need Need) bool
	// Project says whether a project exists: nobody pushes to one that does not. nil: every one does.
	Project func(ctx context.Context, name string) (bool, error)
	// Replica keeps the registries of other servers the same; nil: there are none.
	Replica *Replica
	// MaxWrites bounds the uploads and manifests that are taken in at once; default 64.
	MaxWrites int
	// Stall is how long a client may neither send nor take a byte; default one minute.
	Stall  time.Duration
	Logger *slog.Logger
}

// Handler serves the distribution specification 1.1 at /v2/. It asks nobody who the client is: whoever mounts it does, with
// NeedOf.
type Handler struct {
	opts   Options
	store  *Store
	log    *slog.Logger
	writes chan struct{}
}

// NewHandler checks opts and returns a Handler.
func NewHandler(opts Options) (*Handler, error) {
	if opts.Store == nil {
		return nil, errors.New("images: Options.Store is nil")
	}
	opts.MaxWrites = cmp.Or(opts.MaxWrites, 64)
	opts.Stall = cmp.Or(opts.Stall, time.Minute)
	if opts.MaxWrites < 1 || opts.Stall < 0 {
		return nil, errors.New("images: MaxWrites or Stall is negative")
	}
	if opts.Allowed == nil {
		opts.Allowed = func(*http.Request, Need) bool { return true }
	}
	if opts.Project == nil {
		opts.Project = func(context.Context, string) (bool, error) { return true, nil }
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Handler{opts: opts, store: opts.Store, log: opts.Logger, writes: make(chan struct{}, opts.MaxWrites)}, nil
}

// Verbs of the virtual resource.
const (
	VerbGet    = "get"    // pull
	VerbCreate = "create" // push
	VerbDelete = "delete"
	VerbList   = "list" // tags and catalog
)

// Need is the right that a request needs. The zero value needs none but to be known.
type Need struct{ Verb, Project, App string }

// kinds of what a path names.
const (
	partBase = iota
	partCatalog
	partTags
	partReferrers
	partManifest
	partBlob
	partUploads
	partUpload
)

// route is a path, taken apart.
type route struct {
	kind int
	repo Repository
	name string // tag, digest or upload
}

// parseRoute reads a path below /v2. The names of repositories have slashes themselves, so it reads from the end.
func parseRoute(path string) (route, *distError) {
	rest := strings.TrimPrefix(strings.TrimPrefix(path, "/v2"), "/")
	switch rest {
	case "":
		return route{kind: partBase}, nil
	case "_catalog":
		return route{kind: partCatalog}, nil
	}
	out := route{kind: -1}
	name := ""
	if before, found := strings.CutSuffix(rest, "/tags/list"); found {
		name, out.kind = before, partTags
	} else if before, found := strings.CutSuffix(strings.TrimSuffix(rest, "/"), "/blobs/uploads"); found {
		name, out.kind = before, partUploads
	} else if at := strings.LastIndexByte(rest, '/'); at > 0 {
		out.name = rest[at+1:]
		for suffix, kind := range map[string]int{"/manifests": partManifest, "/blobs": partBlob, "/blobs/uploads": partUpload, "/referrers": partReferrers} {
			if before, found := strings.CutSuffix(rest[:at], suffix); found {
				name, out.kind = before, kind
			}
		}
	}
	if out.kind < 0 {
		return out, &distError{http.StatusNotFound, "UNSUPPORTED", "there is nothing at this path", nil}
	}
	repo, err := ParseRepository(name)
	if err != nil {
		return out, &distError{http.StatusBadRequest, "NAME_INVALID", err.Error(), nil}
	}
	out.repo = repo
	return out, nil
}

// Serves reports whether a path is one of the registry's.
func Serves(path string) bool { return path == "/v2" || strings.HasPrefix(path, "/v2/") }

// NeedOf returns what right a request needs; paths that name no repository need none, because nothing is behind them.
func NeedOf(r *http.Request) Need {
	at, err := parseRoute(r.URL.Path)
	if err != nil || at.kind == partBase || at.kind == partCatalog {
		return Need{}
	}
	need := Need{Verb: VerbGet, Project: at.repo.Project, App: at.repo.App}
	switch {
	case at.kind == partTags:
		need.Verb = VerbList
	case at.kind == partUpload || at.kind == partUploads:
		need.Verb = VerbCreate
	case r.Method == http.MethodDelete:
		need.Verb = VerbDelete
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		need.Verb = VerbCreate
	}
	return need
}

// distError is an answer in the specification's form.
type distError struct {
	status  int
	code    string
	message string
	detail  any
}

// WriteError answers in the specification's form. An answer 401 says how to log in.
func WriteError(w http.ResponseWriter, status int, code, message string, detail any) {
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Detail  any    `json:"detail,omitempty"`
	}
	body, err := json.Marshal(map[string][]item{"errors": {{code, message, detail}}})
	if err != nil {
		body = []byte(`{"errors":[{"code":"UNKNOWN"}]}`)
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="gantry", charset="UTF-8"`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	at, failed := parseRoute(r.URL.Path)
	if failed == nil {
		failed = h.serve(w, r, at)
	}
	if failed != nil {
		WriteError(w, failed.status, failed.code, failed.message, failed.detail)
	}
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request, at route) *distError {
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	if !reads && r.Method != http.MethodDelete {
		select {
		case h.writes <- struct{}{}:
			defer func() { <-h.writes }()
		default:
			w.Header().Set("Retry-After", "1")
			return &distError{http.StatusTooManyRequests, "TOOMANYREQUESTS", "too many images are being pushed at once; try again", nil}
		}
		if failed := h.projectExists(r, at.repo); failed != nil {
			return failed
		}
	}
	switch at.kind {
	case partBase:
		if reads {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte("{}"))
			return nil
		}
	case partCatalog:
		if r.Method == http.MethodGet {
			return h.catalog(w, r)
		}
	case partTags:
		if r.Method == http.MethodGet {
			return h.tags(w, r, at.repo)
		}
	case partReferrers:
		if r.Method == http.MethodGet {
			return h.referrers(w, r, at)
		}
	case partManifest:
		return h.manifest(w, r, at)
	case partBlob:
		return h.blob(w, r, at)
	case partUploads:
		if r.Method == http.MethodPost {
			return h.beginUpload(w, r, at.repo)
		}
	case partUpload:
		return h.upload(w, r, at)
	}
	return unsupported()
}

func unsupported() *distError {
	return &distError{http.StatusMethodNotAllowed, "UNSUPPORTED", "the path does not have this method", nil}
}

func (h *Handler) projectExists(r *http.Request, repo Repository) *distError {
	if repo.Project == "" {
		return nil
	}
	exists, err := h.opts.Project(r.Context(), repo.Project)
	if err != nil {
		return h.failed(r, err)
	}
	if !exists {
		return &distError{http.StatusNotFound, "NAME_UNKNOWN", fmt.Sprintf("there is no project %q; make it with \"gantry project create %s\"", repo.Project, repo.Project), nil}
	}
	return nil
}

// failed turns an error of the store into an answer.
func (h *Handler) failed(r *http.Request, err error) *distError {
	missing := &MissingError{}
	switch {
	case errors.As(err, &missing):
		return &distError{http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", err.Error(), map[string]string{"digest": missing.Digest.String()}}
	case errors.Is(err, ErrManifestInvalid):
		return &distError{http.StatusBadRequest, "MANIFEST_INVALID", err.Error(), nil}
	case errors.Is(err, ErrDigest):
		return &distError{http.StatusBadRequest, "DIGEST_INVALID", err.Error(), nil}
	case errors.Is(err, ErrRange):
		return &distError{http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", err.Error(), nil}
	case errors.Is(err, ErrBusy):
		return &distError{http.StatusConflict, "BLOB_UPLOAD_INVALID", err.Error(), nil}
	case errors.Is(err, ErrNotReplicated):
		return &distError{http.StatusServiceUnavailable, "UNAVAILABLE", err.Error(), nil}
	case errors.Is(err, ErrNoSpace):
		return &distError{http.StatusInsufficientStorage, "DENIED", err.Error(), nil}
	case r.Context().Err() != nil:
		return &distError{http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "the request was cut off", nil}
	}
	h.log.Warn("registry request", "path", r.URL.Path, "method", r.Method, "error", err)
	return &distError{http.StatusInternalServerError, "UNKNOWN", err.Error(), nil}
}

// digestOf reads a digest of a path or query.
func digestOf(text string) (digest.Digest, *distError) {
	d, err := digest.Parse(text)
	if err != nil {
		return "", &distError{http.StatusBadRequest, "DIGEST_INVALID", fmt.Sprintf("%q is not a digest: %v", text, err), nil}
	}
	return d, nil
}

func writeJSON(w http.ResponseWriter, contentType string, value any) *distError {
	body, err := json.Marshal(value)
	if err != nil {
		return &distError{http.StatusInternalServerError, "UNKNOWN", err.Error(), nil}
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
	return nil
}
