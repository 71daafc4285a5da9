package deploytest

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"strings"
	"sync"
)

// Registry is as much of a registry as an upload needs, in memory.
type Registry struct {
	mu      sync.Mutex
	content map[string][]byte // by "PROJECT/APP@DIGEST"
}

func newRegistry() *Registry { return &Registry{content: map[string][]byte{}} }

// Has says whether a repository has content.
func (r *Registry) Has(repository, digest string) bool { return r.Content(repository, digest) != nil }

// Content is what a repository has, nil if it has not.
func (r *Registry) Content(repository, digest string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.content[repository+"@"+digest]
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	switch {
	case req.Method == http.MethodPost && strings.HasSuffix(path, "/blobs/uploads/"):
		w.Header().Set("Location", "/v2/"+path+"1?state=a")
		w.WriteHeader(http.StatusAccepted)
	case req.Method == http.MethodHead:
		repository, digest, _ := strings.Cut(path, "/blobs/")
		if !r.Has(repository, digest) {
			w.WriteHeader(http.StatusNotFound)
		}
	case req.Method == http.MethodPut:
		repository, digest, manifest := strings.Cut(path, "/manifests/")
		if !manifest {
			repository, _, _ = strings.Cut(path, "/blobs/uploads/")
			digest = req.URL.Query().Get("digest")
		}
		data, err := io.ReadAll(req.Body)
		if sum := sha256.Sum256(data); err != nil || "sha256:"+hex.EncodeToString(sum[:]) != digest {
			http.Error(w, `{"errors":[{"code":"DIGEST_INVALID","message":"the digest is another one"}]}`, http.StatusBadRequest)
			return
		}
		r.mu.Lock()
		r.content[repository+"@"+digest] = data
		r.mu.Unlock()
		w.WriteHeader(http.StatusCreated)
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}
