package images

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"gantry.dev/gantry/internal/lifecycle"
)

// ClientOptions say where the registry is. HTTP and URL are needed.
type ClientOptions struct {
	URL  string       // of the API server, such as "https://10.0.0.1:6443"
	HTTP *http.Client // speaks to it as who may: rest.HTTPClientFor a kubeconfig, or one over an in-process RoundTripper
	// Chunk is how much of a blob is sent in one request, default 32 MiB: what a cut connection costs at most.
	Chunk int64
	// Retries is how often a chunk is tried again after a connection was cut; default 5.
	Retries int
	// Wait is the pause before the first retry, twice as long before each further one; default 200ms.
	Wait time.Duration
}

// Client pushes to and reads from the cluster's registry. It is safe for concurrent use.
type Client struct {
	opts ClientOptions
	base string
}

// NewClient checks opts and returns a Client.
func NewClient(opts ClientOptions) (*Client, error) {
	if opts.HTTP == nil || opts.URL == "" {
		return nil, errors.New("images: ClientOptions need URL and HTTP")
	}
	base, err := url.Parse(opts.URL)
	if err != nil || base.Host == "" {
		return nil, fmt.Errorf("images: %q is not the URL of an API server", opts.URL)
	}
	opts.Chunk = cmp.Or(opts.Chunk, 32<<20)
	opts.Retries = cmp.Or(opts.Retries, 5)
	opts.Wait = cmp.Or(opts.Wait, 200*time.Millisecond)
	if opts.Chunk < 1 || opts.Retries < 0 || opts.Wait < 0 {
		return nil, errors.New("images: Chunk, Retries or Wait is negative")
	}
	return &Client{opts: opts, base: base.Scheme + "://" + base.Host}, nil
}

// Error is an answer of the registry that is not the one hoped for.
type Error struct {
	Status  int    // of HTTP
	Code    string // of the specification, such as "DENIED"
	Message string
}

func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("registry answers %d %s", e.Status, http.StatusText(e.Status))
	}
	return e.Message
}

// Is has errors.Is find ErrNotFound.
func (e *Error) Is(target error) bool {
	return target == ErrNotFound && e.Status == http.StatusNotFound
}

// do makes a request and returns the answer if its status is one of those hoped for. Its body is to be closed.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader, change func(*http.Request), want ...int) (*http.Response, error) {
	if !strings.Contains(path, "://") {
		path = c.base + path
	}
	r, err := http.NewRequestWithContext(ctx, method, path, body)
	if err != nil {
		return nil, fmt.Errorf("registry request: %w", err)
	}
	if change != nil {
		change(r)
	}
	answer, err := c.opts.HTTP.Do(r)
	if err != nil {
		return nil, fmt.Errorf("reach the registry: %w", err)
	}
	for _, status := range want {
		if answer.StatusCode == status {
			return answer, nil
		}
	}
	defer func() { _ = answer.Body.Close() }()
	failed := &Error{Status: answer.StatusCode}
	var told struct {
		Errors []struct{ Code, Message string } `json:"errors"`
	}
	if data, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10)); err == nil && json.Unmarshal(data, &told) == nil && len(told.Errors) > 0 {
		failed.Code, failed.Message = told.Errors[0].Code, told.Errors[0].Message
	}
	return nil, failed
}

func drop(answer *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10))
	_ = answer.Body.Close()
}

// HasBlob reports whether a repository has a blob. Who may push there has it kept for a while by asking.
func (c *Client) HasBlob(ctx context.Context, repo Repository, d digest.Digest) (bool, error) {
	answer, err := c.do(ctx, http.MethodHead, "/v2/"+repo.Name+"/blobs/"+d.String(), nil, nil, http.StatusOK)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	drop(answer)
	return true, nil
}

// OpenBlob reads a blob. Whoever reads it to the end checks its digest: nobody else did since it was stored.
func (c *Client) OpenBlob(ctx context.Context, repo Repository, d digest.Digest) (io.ReadCloser, int64, error) {
	answer, err := c.do(ctx, http.MethodGet, "/v2/"+repo.Name+"/blobs/"+d.String(), nil, nil, http.StatusOK)
	if err != nil {
		return nil, 0, err
	}
	return answer.Body, answer.ContentLength, nil
}

// PushBlob uploads content unless it is there, in chunks, and goes on where a connection was cut. progress is told the bytes
// that are there; it may be nil.
func (c *Client) PushBlob(ctx context.Context, repo Repository, d digest.Digest, content io.ReaderAt, size int64, progress func(int64)) error {
	if progress == nil {
		progress = func(int64) {}
	}
	there, err := c.HasBlob(ctx, repo, d)
	if err != nil {
		return err
	}
	if there {
		progress(size)
		return nil
	}
	answer, err := c.do(ctx, http.MethodPost, "/v2/"+repo.Name+"/blobs/uploads/", nil, nil, http.StatusAccepted)
	if err != nil {
		return err
	}
	drop(answer)
	at := answer.Header.Get("Location")
	offset := int64(0)
	for tries := 0; offset < size; {
		end := min(size, offset+c.opts.Chunk)
		err := c.pushChunk(ctx, at, io.NewSectionReader(content, offset, end-offset), offset)
		if err == nil {
			offset, tries = end, 0
			progress(offset)
			continue
		}
		failed := &Error{}
		if errors.As(err, &failed) && failed.Status < 500 && failed.Status != http.StatusRequestedRangeNotSatisfiable && failed.Status != http.StatusConflict && failed.Status != http.StatusTooManyRequests ||
			failed.Status == http.StatusInsufficientStorage || tries >= c.opts.Retries || ctx.Err() != nil {
			return err
		}
		if !lifecycle.Pause(ctx, c.opts.Wait<<tries) {
			return ctx.Err()
		}
		tries++
		if there, err := c.uploaded(ctx, at); err == nil {
			offset = min(there, size)
		}
	}
	answer, err = c.do(ctx, http.MethodPut, at+"?digest="+url.QueryEscape(d.String()), nil, nil, http.StatusCreated)
	if errors.Is(err, ErrNotFound) { // the answer to an earlier try was lost
		if there, hasErr := c.HasBlob(ctx, repo, d); hasErr == nil && there {
			return nil
		}
	}
	if err != nil {
		return err
	}
	drop(answer)
	return nil
}

func (c *Client) pushChunk(ctx context.Context, at string, chunk *io.SectionReader, offset int64) error {
	answer, err := c.do(ctx, http.MethodPatch, at, chunk, func(r *http.Request) {
		r.ContentLength = chunk.Size()
		r.Header.Set("Content-Type", "application/octet-stream")
		r.Header.Set("Content-Range", fmt.Sprintf("%d-%d", offset, offset+chunk.Size()-1))
	}, http.StatusAccepted)
	if err != nil {
		return err
	}
	drop(answer)
	return nil
}

// uploaded asks how much of an upload is there.
func (c *Client) uploaded(ctx context.Context, at string) (int64, error) {
	answer, err := c.do(ctx, http.MethodGet, at, nil, nil, http.StatusNoContent)
	if err != nil {
		return 0, err
	}
	drop(answer)
	_, last, _ := strings.Cut(answer.Header.Get("Range"), "-")
	n, err := strconv.ParseInt(last, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("registry tells the range %q", answer.Header.Get("Range"))
	}
	if n == 0 { // one byte or none: both are written so
		return 0, nil
	}
	return n + 1, nil
}

// PushManifest puts a manifest whose parts are there. reference is a tag or the digest.
func (c *Client) PushManifest(ctx context.Context, repo Repository, reference, mediaType string, data []byte) (digest.Digest, error) {
	d := digest.FromBytes(data)
	answer, err := c.do(ctx, http.MethodPut, "/v2/"+repo.Name+"/manifests/"+cmp.Or(reference, d.String()), bytes.NewReader(data), func(r *http.Request) {
		r.Header.Set("Content-Type", mediaType)
	}, http.StatusCreated)
	if err != nil {
		return "", err
	}
	drop(answer)
	return d, nil
}

// Progress is how far a push is.
type Progress struct {
	Blobs, BlobsDone int
	Bytes, BytesDone int64
}

// PushImage pushes an image and returns its digest. tag may be "": then it is there by its digest alone, and kept while a
// release or pod uses it. progress may be nil.
func (c *Client) PushImage(ctx context.Context, repo Repository, tag string, image v1.Image, progress func(Progress)) (digest.Digest, error) {
	manifest, err := image.Manifest()
	if err != nil {
		return "", fmt.Errorf("read image: %w", err)
	}
	layers, err := image.Layers()
	if err != nil {
		return "", fmt.Errorf("read image: %w", err)
	}
	config, err := partial.ConfigLayer(image)
	if err != nil {
		return "", fmt.Errorf("read image: %w", err)
	}
	now := Progress{Blobs: len(layers) + 1, Bytes: manifest.Config.Size}
	for _, layer := range manifest.Layers {
		now.Bytes += layer.Size
	}
	for _, layer := range append(layers, config) {
		if mediaType, err := layer.MediaType(); err == nil && mediaType == types.DockerForeignLayer {
			continue
		}
		before := now.BytesDone
		size, err := c.pushLayer(ctx, repo, layer, func(done int64) {
			now.BytesDone = before + done
			if progress != nil {
				progress(now)
			}
		})
		if err != nil {
			return "", err
		}
		now.BytesDone = before + size
		now.BlobsDone++
		if progress != nil {
			progress(now)
		}
	}
	data, err := image.RawManifest()
	if err != nil {
		return "", fmt.Errorf("read image: %w", err)
	}
	return c.PushManifest(ctx, repo, tag, string(manifest.MediaType), data)
}

func (c *Client) pushLayer(ctx context.Context, repo Repository, layer v1.Layer, progress func(int64)) (int64, error) {
	hash, err := layer.Digest()
	if err != nil {
		return 0, fmt.Errorf("read layer: %w", err)
	}
	size, err := layer.Size()
	if err != nil {
		return 0, fmt.Errorf("read layer: %w", err)
	}
	source := &layerReader{layer: layer}
	defer source.close()
	return size, c.PushBlob(ctx, repo, digest.Digest(hash.String()), source, size, progress)
}

// layerReader reads a layer, which comes as a stream, at places that go forward; to go back it begins anew.
type layerReader struct {
	layer  v1.Layer
	stream io.ReadCloser
	at     int64
}

// ReadAt implements io.ReaderAt, for one reader at a time.
func (l *layerReader) ReadAt(p []byte, offset int64) (int, error) {
	if l.stream == nil || offset < l.at {
		l.close()
		stream, err := l.layer.Compressed()
		if err != nil {
			return 0, err
		}
		l.stream, l.at = stream, 0
	}
	if offset > l.at {
		n, err := io.CopyN(io.Discard, l.stream, offset-l.at)
		l.at += n
		if err != nil {
			return 0, err
		}
	}
	n, err := io.ReadFull(l.stream, p)
	l.at += int64(n)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

func (l *layerReader) close() {
	if l.stream != nil {
		_ = l.stream.Close()
		l.stream = nil
	}
}

// PushIndex pushes an image for several platforms with all its parts.
func (c *Client) PushIndex(ctx context.Context, repo Repository, tag string, index v1.ImageIndex, progress func(Progress)) (digest.Digest, error) {
	manifest, err := index.IndexManifest()
	if err != nil {
		return "", fmt.Errorf("read index: %w", err)
	}
	for _, desc := range manifest.Manifests {
		if desc.MediaType.IsIndex() {
			child, err := index.ImageIndex(desc.Digest)
			if err != nil {
				return "", fmt.Errorf("read index: %w", err)
			}
			if _, err := c.PushIndex(ctx, repo, "", child, progress); err != nil {
				return "", err
			}
			continue
		}
		child, err := index.Image(desc.Digest)
		if err != nil {
			return "", fmt.Errorf("read index: %w", err)
		}
		if _, err := c.PushImage(ctx, repo, "", child, progress); err != nil {
			return "", err
		}
	}
	data, err := index.RawManifest()
	if err != nil {
		return "", fmt.Errorf("read index: %w", err)
	}
	return c.PushManifest(ctx, repo, tag, string(manifest.MediaType), data)
}

// Repositories lists what the client may list.
func (c *Client) Repositories(ctx context.Context) ([]Repository, error) {
	var all []Repository
	last := ""
	for {
		answer, err := c.do(ctx, http.MethodGet, "/v2/_catalog?n=1000&last="+url.QueryEscape(last), nil, nil, http.StatusOK)
		if err != nil {
			return nil, err
		}
		var got struct{ Repositories []string }
		err = json.NewDecoder(answer.Body).Decode(&got)
		drop(answer)
		if err != nil {
			return nil, fmt.Errorf("read the catalog: %w", err)
		}
		for _, name := range got.Repositories {
			repo, err := ParseRepository(name)
			if err != nil {
				return nil, err
			}
			all, last = append(all, repo), name
		}
		if answer.Header.Get("Link") == "" {
			return all, nil
		}
	}
}

// Images lists the images of a repository, the newest first.
func (c *Client) Images(ctx context.Context, repo Repository) ([]Entry, error) {
	answer, err := c.do(ctx, http.MethodGet, "/v2/"+repo.Name+"/tags/list?details=true", nil, nil, http.StatusOK)
	if err != nil {
		return nil, err
	}
	defer drop(answer)
	var got struct{ Images []Entry }
	if err := json.NewDecoder(answer.Body).Decode(&got); err != nil {
		return nil, fmt.Errorf("read the images of %s: %w", repo.Name, err)
	}
	return got.Images, nil
}

// Delete removes a tag, or with a digest the image and all its tags.
func (c *Client) Delete(ctx context.Context, ref Reference) error {
	reference := cmp.Or(ref.Digest.String(), ref.Tag)
	answer, err := c.do(ctx, http.MethodDelete, "/v2/"+ref.Repository.Name+"/manifests/"+reference, nil, nil, http.StatusAccepted)
	if err != nil {
		return err
	}
	drop(answer)
	return nil
}
