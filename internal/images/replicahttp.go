package images

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// ReplicaPath is below what servers ask each other's registries. Only servers may.
const ReplicaPath = "/gantry/v1/images/"

// What is below it. The query names repository, digest and the server that asks ("from").
const (
	stateAt   = ReplicaPath + "state"   // GET: what one repository or all of them hold
	blobAt    = ReplicaPath + "blob"    // GET: content
	changedAt = ReplicaPath + "changed" // POST: fetch what is new there, then answer
)

// states asks a server what it holds, of one repository or of all. With the tag of the last answer, it comes back if
// nothing has changed.
func (r *Replica) states(ctx context.Context, peer Peer, repository, last string) ([]State, string, error) {
	query := url.Values{}
	if repository != "" {
		query.Set("repository", repository)
	}
	answer, err := r.ask(ctx, peer, http.MethodGet, stateAt, query, last)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode == http.StatusNotModified {
		return nil, last, nil
	}
	var states []State
	if err := json.NewDecoder(io.LimitReader(answer.Body, stateLimit)).Decode(&states); err != nil {
		return nil, "", fmt.Errorf("read what %s holds: %w", peer.Name, err)
	}
	return states, answer.Header.Get("ETag"), nil
}

// open reads content of another server.
func (r *Replica) open(ctx context.Context, peer Peer, repo Repository, d digest.Digest) (io.ReadCloser, int64, error) {
	answer, err := r.ask(ctx, peer, http.MethodGet, blobAt, url.Values{"repository": {repo.Name}, "digest": {d.String()}}, "")
	if err != nil {
		return nil, 0, err
	}
	return answer.Body, answer.ContentLength, nil
}

// tell has a server fetch a repository's state, or only one blob of it, from this one.
func (r *Replica) tell(ctx context.Context, peer Peer, repo Repository, d digest.Digest) error {
	query := url.Values{"repository": {repo.Name}, "from": {r.opts.Self}}
	if d != "" {
		query.Set("digest", d.String())
	}
	answer, err := r.ask(ctx, peer, http.MethodPost, changedAt, query, "")
	if err != nil {
		return fmt.Errorf("%s: %w", peer.Name, err)
	}
	drop(answer)
	return nil
}

func (r *Replica) ask(ctx context.Context, peer Peer, method, path string, query url.Values, last string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, peer.URL+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("asking a server: %w", err)
	}
	if last != "" {
		request.Header.Set("If-None-Match", last)
	}
	answer, err := peer.HTTP.Do(request)
	if err == nil && answer.StatusCode != http.StatusOK && answer.StatusCode != http.StatusNotModified {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
		_ = answer.Body.Close()
		err = &Error{Status: answer.StatusCode, Message: fmt.Sprintf("server %s answers %d: %s", peer.Name, answer.StatusCode, bytes.TrimSpace(text))}
	}
	r.missed(peer, err)
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// Serve returns what answers the other servers, below ReplicaPath. Whoever mounts it makes sure that only they ask.
func (r *Replica) Serve() http.Handler {
	random := make([]byte, 8)
	_, _ = rand.Read(random) // never fails
	process := hex.EncodeToString(random)
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		var err error
		switch {
		case request.URL.Path == stateAt && request.Method == http.MethodGet:
			err = r.serveState(w, request, process)
		case request.URL.Path == blobAt && request.Method == http.MethodGet:
			err = r.serveBlob(w, request)
		case request.URL.Path == changedAt && request.Method == http.MethodPost:
			err = r.serveChanged(w, request)
		default:
			err = &Error{Status: http.StatusNotFound, Message: "there is nothing at this path"}
		}
		if err == nil {
			return
		}
		code := http.StatusInternalServerError
		if failed, ok := errors.AsType[*Error](err); ok {
			code = failed.Status
		} else if errors.Is(err, ErrNotFound) {
			code = http.StatusNotFound
		} else if errors.Is(err, ErrNoSpace) {
			code = http.StatusInsufficientStorage
		}
		http.Error(w, err.Error(), code)
	})
}

func queryRepository(request *http.Request) (Repository, error) {
	repo, err := ParseRepository(request.URL.Query().Get("repository"))
	if err != nil {
		return Repository{}, &Error{Status: http.StatusBadRequest, Message: err.Error()}
	}
	return repo, nil
}

func (r *Replica) serveState(w http.ResponseWriter, request *http.Request, process string) error {
	var states []State
	if request.URL.Query().Get("repository") != "" {
		repo, err := queryRepository(request)
		if err != nil {
			return err
		}
		state, err := r.store.State(repo)
		if err != nil {
			return err
		}
		states = []State{state}
	} else {
		tag := func(version uint64) string { return `"` + process + "-" + strconv.FormatUint(version, 10) + `"` }
		if request.Header.Get("If-None-Match") == tag(r.store.changes.Load()) {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
		all, version, err := r.store.States()
		if err != nil {
			return err
		}
		states = all
		w.Header().Set("ETag", tag(version))
	}
	if states == nil {
		states = []State{}
	}
	body, err := json.Marshal(states)
	if err != nil {
		return fmt.Errorf("tell what is held: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // one that is gone does not read it
	return nil
}

func (r *Replica) serveBlob(w http.ResponseWriter, request *http.Request) error {
	repo, err := queryRepository(request)
	if err != nil {
		return err
	}
	d, failed := digestOf(request.URL.Query().Get("digest"))
	if failed != nil {
		return &Error{Status: failed.status, Message: failed.message}
	}
	blob, err := r.store.OpenBlob(repo, d)
	if err != nil {
		return err
	}
	defer func() { _ = blob.Close() }()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(blob.Size, 10))
	_, _ = io.Copy(w, blob)
	return nil
}

func (r *Replica) serveChanged(w http.ResponseWriter, request *http.Request) error {
	repo, err := queryRepository(request)
	if err != nil {
		return err
	}
	from := strings.TrimSpace(request.URL.Query().Get("from"))
	peer, ok := r.peer(from)
	if !ok {
		return &Error{Status: http.StatusConflict, Message: fmt.Sprintf("no server %q is known here", from)}
	}
	ctx := request.Context()
	if text := request.URL.Query().Get("digest"); text != "" {
		d, failed := digestOf(text)
		if failed != nil {
			return &Error{Status: failed.status, Message: failed.message}
		}
		if err := r.blob(ctx, peer, repo, d); err != nil {
			return err
		}
	} else if err := r.freshen(ctx, peer, repo); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}
