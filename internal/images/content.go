package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

const digestHeader = "Docker-Content-Digest"

// blob serves /v2/NAME/blobs/DIGEST.
func (h *Handler) blob(w http.ResponseWriter, r *http.Request, at route) *distError {
	d, failed := digestOf(at.name)
	if failed != nil {
		return failed
	}
	unknown := &distError{http.StatusNotFound, "BLOB_UNKNOWN", fmt.Sprintf("%s has no blob %s", at.repo.Name, d), map[string]string{"digest": d.String()}}
	switch r.Method {
	case http.MethodHead:
		// Who asks and may push will not send what is there: it must stay for a while.
		keep := h.opts.Allowed(r, Need{VerbCreate, at.repo.Project, at.repo.App})
		size, err := h.store.StatBlob(at.repo, d, keep)
		if isNotFound(err) && !keep && h.opts.Replica.Fetch(r.Context(), at.repo, d) {
			size, err = h.store.StatBlob(at.repo, d, keep)
		}
		if err != nil {
			return unknown
		}
		header := w.Header()
		header.Set("Content-Type", "application/octet-stream")
		header.Set("Content-Length", strconv.FormatInt(size, 10))
		header.Set("Accept-Ranges", "bytes")
		header.Set(digestHeader, d.String())
		w.WriteHeader(http.StatusOK)
		return nil
	case http.MethodGet:
		blob, err := h.store.OpenBlob(at.repo, d)
		if isNotFound(err) && h.opts.Replica.Fetch(r.Context(), at.repo, d) {
			blob, err = h.store.OpenBlob(at.repo, d)
		}
		if isNotFound(err) {
			return unknown
		}
		if err != nil {
			return h.failed(r, err)
		}
		defer func() { _ = blob.Close() }()
		header := w.Header()
		header.Set("Content-Type", "application/octet-stream")
		header.Set(digestHeader, d.String())
		header.Set("ETag", `"`+d.String()+`"`)
		header.Set("Cache-Control", "private, max-age=31536000, immutable")
		out := &steadyWriter{ResponseWriter: w, stall: h.opts.Stall}
		defer out.done()
		http.ServeContent(out, r, "", time.Time{}, blob) // ranges and conditions
		return nil
	case http.MethodDelete:
		err := h.store.DeleteBlob(at.repo, d)
		if isNotFound(err) {
			return unknown
		}
		if err != nil {
			return h.failed(r, err)
		}
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	return unsupported()
}

// steadyWriter lets a client take as long as it likes for an answer, as long as it takes some of it all the time.
type steadyWriter struct {
	http.ResponseWriter
	stall time.Duration
	next  time.Time // when the deadline is set again
}

// Write implements io.Writer.
func (s *steadyWriter) Write(data []byte) (int, error) {
	if now := time.Now(); now.After(s.next) {
		s.next = now.Add(s.stall / 4)
		_ = http.NewResponseController(s.ResponseWriter).SetWriteDeadline(now.Add(s.stall)) // in process there is none
	}
	return s.ResponseWriter.Write(data)
}

func (s *steadyWriter) done() {
	_ = http.NewResponseController(s.ResponseWriter).SetWriteDeadline(time.Time{})
}

// steadyReader is the same for what a client sends.
type steadyReader struct {
	r     io.Reader
	w     http.ResponseWriter
	stall time.Duration
	next  time.Time
}

// Read implements io.Reader.
func (s *steadyReader) Read(p []byte) (int, error) {
	if now := time.Now(); now.After(s.next) {
		s.next = now.Add(s.stall / 4)
		_ = http.NewResponseController(s.w).SetReadDeadline(now.Add(s.stall))
	}
	return s.r.Read(p)
}

func (h *Handler) body(w http.ResponseWriter, r *http.Request) (io.Reader, func()) {
	return &steadyReader{r: r.Body, w: w, stall: h.opts.Stall}, func() {
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	}
}

// beginUpload serves POST /v2/NAME/blobs/uploads/: a mount, a blob as a whole, or the start of chunks.
func (h *Handler) beginUpload(w http.ResponseWriter, r *http.Request, repo Repository) *distError {
	query := r.URL.Query()
	if text := query.Get("mount"); text != "" {
		d, failed := digestOf(text)
		if failed != nil {
			return failed
		}
		from, err := ParseRepository(query.Get("from"))
		if err == nil && h.opts.Allowed(r, Need{VerbGet, from.Project, from.App}) {
			err := h.store.Mount(repo, from, d)
			if isNotFound(err) && h.opts.Replica.Fetch(r.Context(), from, d) {
				err = h.store.Mount(repo, from, d)
			}
			if err == nil {
				return created(w, "/v2/"+repo.Name+"/blobs/"+d.String(), d)
			}
			if !isNotFound(err) {
				return h.failed(r, err)
			}
		} // else as the specification says: an upload begins
	}
	if text := query.Get("digest"); text != "" {
		d, failed := digestOf(text)
		if failed != nil {
			return failed
		}
		body, done := h.body(w, r)
		defer done()
		if err := h.store.PutBlob(r.Context(), repo, d, r.ContentLength, body); err != nil {
			return h.failed(r, err)
		}
		h.opts.Replica.Offer(r.Context(), repo, d)
		return created(w, "/v2/"+repo.Name+"/blobs/"+d.String(), d)
	}
	id, err := h.store.BeginUpload(repo, 0)
	if err != nil {
		return h.failed(r, err)
	}
	w.Header().Set("OCI-Chunk-Min-Length", "1")
	return progress(w, repo, id, 0, http.StatusAccepted)
}

func created(w http.ResponseWriter, location string, d digest.Digest) *distError {
	w.Header().Set("Location", location)
	w.Header().Set(digestHeader, d.String())
	w.WriteHeader(http.StatusCreated)
	return nil
}

// progress tells where to go on with an upload.
func progress(w http.ResponseWriter, repo Repository, id string, size int64, status int) *distError {
	header := w.Header()
	header.Set("Location", "/v2/"+repo.Name+"/blobs/uploads/"+id)
	header.Set("Range", "0-"+strconv.FormatInt(max(size-1, 0), 10))
	header.Set("Docker-Upload-Uuid", id)
	w.WriteHeader(status)
	return nil
}

// upload serves /v2/NAME/blobs/uploads/ID.
func (h *Handler) upload(w http.ResponseWriter, r *http.Request, at route) *distError {
	unknown := &distError{http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "there is no such upload: begin again", nil}
	fail := func(err error) *distError {
		if isNotFound(err) {
			return unknown
		}
		return h.failed(r, err)
	}
	switch r.Method {
	case http.MethodGet:
		size, err := h.store.UploadSize(at.repo, at.name)
		if err != nil {
			return fail(err)
		}
		return progress(w, at.repo, at.name, size, http.StatusNoContent)
	case http.MethodDelete:
		if err := h.store.CancelUpload(at.repo, at.name); err != nil {
			return fail(err)
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	case http.MethodPatch, http.MethodPut:
	default:
		return unsupported()
	}
	offset, failed := chunkOffset(r)
	if failed != nil {
		return failed
	}
	body, done := h.body(w, r)
	defer done()
	if r.Method == http.MethodPut {
		d, failed := digestOf(r.URL.Query().Get("digest"))
		if failed != nil {
			return failed
		}
		if err := h.store.CommitUpload(r.Context(), at.repo, at.name, d, offset, r.ContentLength, body); err != nil {
			return fail(err)
		}
		h.opts.Replica.Offer(r.Context(), at.repo, d)
		return created(w, "/v2/"+at.repo.Name+"/blobs/"+d.String(), d)
	}
	size, err := h.store.Append(r.Context(), at.repo, at.name, offset, r.ContentLength, body)
	if errors.Is(err, ErrRange) {
		w.Header().Set("Location", r.URL.Path)
		w.Header().Set("Range", "0-"+strconv.FormatInt(max(size-1, 0), 10))
	}
	if err != nil {
		return fail(err)
	}
	return progress(w, at.repo, at.name, size, http.StatusAccepted)
}

// chunkOffset is where a chunk begins by its Content-Range ("FIRST-LAST"); -1 without one.
func chunkOffset(r *http.Request) (int64, *distError) {
	text := strings.TrimPrefix(r.Header.Get("Content-Range"), "bytes ")
	if text == "" {
		return -1, nil
	}
	invalid := &distError{http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", fmt.Sprintf("Content-Range %q is not FIRST-LAST", text), nil}
	text, _, _ = strings.Cut(text, "/")
	first, last, found := strings.Cut(text, "-")
	from, err := strconv.ParseInt(first, 10, 64)
	to, err2 := strconv.ParseInt(last, 10, 64)
	if !found || err != nil || err2 != nil || from < 0 || to < from-1 {
		return 0, invalid
	}
	if r.ContentLength >= 0 && r.ContentLength != to-from+1 {
		invalid.message = fmt.Sprintf("Content-Range %q does not fit the Content-Length %d", text, r.ContentLength)
		return 0, invalid
	}
	return from, nil
}

// manifest serves /v2/NAME/manifests/REFERENCE.
func (h *Handler) manifest(w http.ResponseWriter, r *http.Request, at route) *distError {
	var d digest.Digest
	tag := ""
	if strings.Contains(at.name, ":") {
		var failed *distError
		if d, failed = digestOf(at.name); failed != nil {
			return failed
		}
	} else if tag = at.name; !validTag(tag) {
		return &distError{http.StatusBadRequest, "TAG_INVALID", fmt.Sprintf("%q is not a tag", tag), nil}
	}
	switch r.Method {
	case http.MethodPut:
		return h.putManifest(w, r, at.repo, tag, d)
	case http.MethodDelete:
		h.opts.Replica.Fresh(r.Context(), at.repo) // what is to go may not be here yet
		err := error(nil)
		if tag != "" {
			err = h.store.DeleteTag(at.repo, tag)
		} else {
			err = h.store.DeleteManifest(at.repo, d)
		}
		if err == nil {
			err = h.opts.Replica.Changed(r.Context(), at.repo)
		}
		if err != nil {
			return h.manifestFailed(r, at, err)
		}
		w.WriteHeader(http.StatusAccepted)
		return nil
	case http.MethodGet, http.MethodHead:
	default:
		return unsupported()
	}
	if tag != "" {
		h.opts.Replica.Fresh(r.Context(), at.repo)
		found, err := h.store.Resolve(at.repo, tag)
		if err != nil {
			return h.manifestFailed(r, at, err)
		}
		d = found
	}
	m, err := h.store.GetManifest(at.repo, d)
	if isNotFound(err) && h.opts.Replica.Fetch(r.Context(), at.repo, d) {
		m, err = h.store.GetManifest(at.repo, d)
	}
	if err != nil {
		return h.manifestFailed(r, at, err)
	}
	header := w.Header()
	header.Set("Content-Type", m.MediaType)
	header.Set("Content-Length", strconv.FormatInt(m.Size, 10))
	header.Set(digestHeader, d.String())
	header.Set("ETag", `"`+d.String()+`"`)
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		_, _ = w.Write(m.Data)
	}
	return nil
}

func (h *Handler) manifestFailed(r *http.Request, at route, err error) *distError {
	if !isNotFound(err) {
		return h.failed(r, err)
	}
	if !h.store.Exists(at.repo) {
		return nameUnknown(at.repo)
	}
	return &distError{http.StatusNotFound, "MANIFEST_UNKNOWN", fmt.Sprintf("%s has no %s", at.repo.Name, at.name), nil}
}

func (h *Handler) putManifest(w http.ResponseWriter, r *http.Request, repo Repository, tag string, want digest.Digest) *distError {
	limit := h.store.opts.MaxManifest
	tooLarge := &distError{http.StatusRequestEntityTooLarge, "SIZE_INVALID", fmt.Sprintf("a manifest may have %d bytes at most", limit), nil}
	if r.ContentLength > limit {
		return tooLarge
	}
	body, done := h.body(w, r)
	defer done()
	data, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return h.failed(r, err)
	}
	if int64(len(data)) > limit {
		return tooLarge
	}
	mediaType, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	m, err := h.takeIn(r.Context(), repo, tag, want, strings.TrimSpace(mediaType), data)
	if err != nil {
		return h.failed(r, err)
	}
	if m.Subject != "" {
		w.Header().Set("OCI-Subject", m.Subject.String())
	}
	return created(w, "/v2/"+repo.Name+"/manifests/"+m.Digest.String(), m.Digest)
}

// takeIn stores a manifest, here and on most of the other servers. Parts of it may have been pushed to another one.
func (h *Handler) takeIn(ctx context.Context, repo Repository, tag string, want digest.Digest, mediaType string, data []byte) (Manifest, error) {
	if tag != "" {
		h.opts.Replica.Fresh(ctx, repo) // so that this tag is newer than any other server's
	}
	for last := digest.Digest(""); ; {
		m, err := h.store.PutManifest(ctx, repo, tag, want, mediaType, data)
		if missing, ok := errors.AsType[*MissingError](err); ok && missing.Digest != last && h.opts.Replica.Fetch(ctx, repo, missing.Digest) {
			last = missing.Digest
			continue
		}
		if err == nil {
			err = h.opts.Replica.Changed(ctx, repo)
		}
		return m, err
	}
}
