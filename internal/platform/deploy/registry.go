package deploy

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// registryName is what nodes know the cluster's registry by.
const registryName = "registry.gantry.internal"

// Media types of docker's images, which every registry takes.
const (
	typeManifest  = "application/vnd.docker.distribution.manifest.v2+json"
	typeConfig    = "application/vnd.docker.container.image.v1+json"
	typeLayer     = "application/vnd.docker.image.rootfs.diff.tar"
	typeLayerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// maxManifest bounds what is read into memory of an archive.
const maxManifest = 4 << 20

// descriptor is a reference to content.
type descriptor struct {
	MediaType string `json:"mediaType"`
	Size      int64  `json:"size"`
	Digest    string `json:"digest"`
}

// Open asks for a path of the API and returns the answer's body.
func (c *Cluster) Open(ctx context.Context, path string) (io.ReadCloser, error) {
	response, err := c.ask(ctx, http.MethodGet, path, "", 0, nil)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		defer func() { _ = response.Body.Close() }()
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
		return nil, &statusError{response.StatusCode, response.Status, messageOf(text)}
	}
	return response.Body, nil
}

// statusError is an answer that is none of the API's own.
type statusError struct {
	code   int
	status string
	text   string
}

func (e *statusError) Error() string {
	if e.text == "" {
		return e.status
	}
	return e.text
}

// messageOf is what an error's body says: a Status of the API, or the registry's form.
func messageOf(body []byte) string {
	var said struct {
		Message string `json:"message"`
		Errors  []struct {
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &said) == nil {
		if said.Message != "" {
			return said.Message
		}
		if len(said.Errors) > 0 && said.Errors[0].Message != "" {
			return said.Errors[0].Message
		}
	}
	return strings.TrimSpace(string(body))
}

func (c *Cluster) ask(ctx context.Context, method, path, contentType string, size int64, body io.Reader) (*http.Response, error) {
	target, err := c.url(path)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", path, err)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	if body != nil {
		request.ContentLength = size
	}
	return c.HTTP.Do(request)
}

// url is the address of a path. A location that a registry names may be a whole address of its own: then only its path counts, so
// that no credential goes elsewhere.
func (c *Cluster) url(path string) (string, error) {
	base, err := url.Parse(c.Host)
	if err != nil {
		return "", fmt.Errorf("the server's address %q: %w", c.Host, err)
	}
	if base.Scheme == "" {
		base = &url.URL{Scheme: "https", Host: c.Host}
	}
	where, err := url.Parse(path)
	if err != nil {
		return "", fmt.Errorf("the address %q: %w", path, err)
	}
	out := base.JoinPath(where.Path)
	out.RawQuery = where.RawQuery
	return out.String(), nil
}

// pushBlob uploads content unless it is there, and says whether it was sent.
func (c *Cluster) pushBlob(ctx context.Context, key types.NamespacedName, digest string, size int64, open func() (io.ReadCloser, error)) (bool, error) {
	repository := "/v2/" + key.Namespace + "/" + key.Name
	head, err := c.ask(ctx, http.MethodHead, repository+"/blobs/"+digest, "", 0, nil)
	if err != nil {
		return false, Reached("ask the registry", err)
	}
	_ = head.Body.Close()
	if head.StatusCode == http.StatusOK {
		return false, nil
	}
	begun, err := c.ask(ctx, http.MethodPost, repository+"/blobs/uploads/", "", 0, nil)
	if err := registryAnswer(begun, err, http.StatusAccepted); err != nil {
		return false, err
	}
	location, err := url.Parse(begun.Header.Get("Location"))
	if err != nil {
		return false, fmt.Errorf("the registry's answer: %w", err)
	}
	query := location.Query()
	query.Set("digest", digest)
	location.RawQuery = query.Encode()
	body, err := open()
	if err != nil {
		return false, fmt.Errorf("read what is uploaded: %w", err)
	}
	defer func() { _ = body.Close() }()
	put, err := c.ask(ctx, http.MethodPut, location.String(), "application/octet-stream", size, body)
	return true, registryAnswer(put, err, http.StatusCreated)
}

// registryAnswer checks an answer and ends it.
func registryAnswer(response *http.Response, err error, want int) error {
	if err != nil {
		return Reached("ask the registry", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode == want {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	problem := &statusError{response.StatusCode, response.Status, messageOf(text)}
	switch response.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return &Error{Code: CodeUnreachable, Reason: "Denied", Message: "the registry refuses the upload", Err: problem}
	case http.StatusNotFound:
		return failure(CodeOther, "NoRegistry", "this cluster has no registry of its own to push to").try("push the image elsewhere, and deploy it by its name")
	case http.StatusInsufficientStorage:
		return &Error{Code: CodeCheck, Reason: "NoSpace", Message: "the server has no room", Err: problem, Do: []string{"gantry image prune"}}
	}
	return fmt.Errorf("upload to the registry: %w", problem)
}

// archived is one file of an image archive.
type archived struct{ offset, size int64 }

// pushArchive pushes the one image of a docker archive and returns its reference, and how many bytes were sent.
func (c *Cluster) pushArchive(ctx context.Context, key types.NamespacedName, archive io.ReadSeeker) (string, int64, error) {
	file, ok := archive.(io.ReaderAt)
	if !ok {
		return "", 0, errors.New("push an image: the archive cannot be read at a place")
	}
	files, err := indexArchive(archive)
	if err != nil {
		return "", 0, fmt.Errorf("read the image: %w", err)
	}
	section := func(a archived) *io.SectionReader { return io.NewSectionReader(file, a.offset, a.size) }
	var listed []struct {
		Config string
		Layers []string
	}
	text, err := io.ReadAll(io.LimitReader(section(files["manifest.json"]), maxManifest))
	if err == nil {
		err = json.Unmarshal(text, &listed)
	}
	if err != nil || len(listed) != 1 {
		return "", 0, errors.Join(errors.New("read the image: it is no docker archive of one image"), err)
	}
	manifest := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{SchemaVersion: 2, MediaType: typeManifest}
	var sent int64
	for i, name := range append([]string{listed[0].Config}, listed[0].Layers...) {
		part, known := files[name]
		if !known {
			return "", 0, fmt.Errorf("read the image: the archive has no %s", name)
		}
		d, err := describeBlob(section(part), i == 0)
		if err != nil {
			return "", 0, fmt.Errorf("read the image: %w", err)
		}
		pushed, err := c.pushBlob(ctx, key, d.Digest, d.Size, func() (io.ReadCloser, error) { return io.NopCloser(section(part)), nil })
		if err != nil {
			return "", 0, err
		}
		if pushed {
			sent += d.Size
		}
		if i == 0 {
			manifest.Config = d
		} else {
			manifest.Layers = append(manifest.Layers, d)
		}
	}
	encoded, err := json.Marshal(manifest)
	if err != nil {
		return "", 0, fmt.Errorf("push the image: %w", err)
	}
	sum := sha256.Sum256(encoded)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	put, err := c.ask(ctx, http.MethodPut, "/v2/"+key.Namespace+"/"+key.Name+"/manifests/"+digest, typeManifest, int64(len(encoded)), bytes.NewReader(encoded))
	if err := registryAnswer(put, err, http.StatusCreated); err != nil {
		return "", 0, err
	}
	return fmt.Sprintf("%s/%s/%s@%s", registryName, key.Namespace, key.Name, digest), sent, nil
}

// indexArchive finds the files of a tar archive.
func indexArchive(archive io.ReadSeeker) (map[string]archived, error) {
	if _, err := archive.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	out := map[string]archived{}
	for r := tar.NewReader(archive); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		offset, err := archive.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		out[header.Name] = archived{offset, header.Size}
	}
}

// describeBlob computes the digest of a part of an image.
func describeBlob(content *io.SectionReader, config bool) (descriptor, error) {
	d := descriptor{MediaType: typeConfig, Size: content.Size()}
	if !config {
		magic := make([]byte, 2)
		if _, err := content.ReadAt(magic, 0); err != nil {
			return d, err
		}
		d.MediaType = typeLayer
		if bytes.Equal(magic, []byte{0x1f, 0x8b}) {
			d.MediaType = typeLayerGzip
		}
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, content); err != nil {
		return d, err
	}
	d.Digest = "sha256:" + hex.EncodeToString(hash.Sum(nil))
	return d, nil
}

// NotServed reports whether an error of Open says that the cluster has nothing at that path, or not for this user: one of
// somebody else's has no such path.
func NotServed(err error) bool {
	status, ok := errors.AsType[*statusError](err)
	return ok && (status.code == http.StatusNotFound || status.code == http.StatusForbidden)
}
