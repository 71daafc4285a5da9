package images

import (
	"archive/tar"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
)

func (f *fixture) client(server *httptest.Server, chunk int64) *Client {
	f.t.Helper()
	c, err := NewClient(ClientOptions{URL: server.URL, HTTP: server.Client(), Chunk: chunk, Wait: time.Millisecond})
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

// TestCrane has go-containerregistry's client, which crane is made of, push and pull.
func TestCrane(t *testing.T) {
	f := newFixture(t, nil)
	server := httptest.NewServer(f.handler)
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	index, err := random.Index(2000, 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(host + "/shop/web:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(tag, index); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Index(tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(got); err != nil {
		t.Errorf("what was pulled is not whole: %v", err)
	}
	other, err := name.NewTag(host + "/shop/api:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(other, got); err != nil { // mounts
		t.Fatal(err)
	}
	if tags, err := remote.List(other.Repository); err != nil || len(tags) != 1 {
		t.Errorf("List = %v, %v", tags, err)
	}
	if err := remote.Delete(tag); err != nil {
		t.Errorf("Delete = %v", err)
	}
	f.now = f.now.Add(2 * day)
	f.collect(nil)
	if got, err = remote.Index(other); err != nil || validate.Index(got) != nil {
		t.Errorf("the copy is not whole: %v", err)
	}
}

// flaky cuts requests off that send something: one in three, half way.
type flaky struct {
	next  http.Handler
	count atomic.Int32
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPatch && f.count.Add(1)%3 == 1 {
		r.Body = struct {
			io.Reader
			io.Closer
		}{brokenReader{io.LimitReader(r.Body, r.ContentLength/2)}, r.Body}
		f.next.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	}
	f.next.ServeHTTP(w, r)
}

func TestClientGoesOn(t *testing.T) {
	f := newFixture(t, nil)
	server := httptest.NewServer(&flaky{next: f.handler})
	defer server.Close()
	c := f.client(server, 10_000)
	content := strings.Repeat("gantry ", 20_000)
	d := digest.FromString(content)
	repo := Repository{"shop", "web", "shop/web"}
	last := int64(0)
	for range 2 {
		if err := c.PushBlob(t.Context(), repo, d, strings.NewReader(content), int64(len(content)), func(n int64) { last = n }); err != nil {
			t.Fatal(err)
		}
	}
	if last != int64(len(content)) {
		t.Errorf("progress ends at %d of %d", last, len(content))
	}
	blob, size, err := c.OpenBlob(t.Context(), repo, d)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = blob.Close() }()
	if got, err := io.ReadAll(blob); err != nil || string(got) != content || size != int64(len(content)) {
		t.Errorf("what comes back is not what was sent: %d bytes, %v", len(got), err)
	}
	if _, _, err := c.OpenBlob(t.Context(), repo, digest.FromString("none")); !errors.Is(err, ErrNotFound) {
		t.Errorf("a blob that is not there: %v", err)
	}
}

// TestSources pushes one image from each kind of file.
func TestSources(t *testing.T) {
	f := newFixture(t, nil)
	server := httptest.NewServer(f.handler)
	defer server.Close()
	c := f.client(server, 700)
	image, err := random.Image(2000, 2)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tag, err := name.NewTag("hello:dev")
	if err != nil {
		t.Fatal(err)
	}
	docker := filepath.Join(dir, "docker.tar")
	if err := tarball.WriteToFile(docker, tag, image); err != nil {
		t.Fatal(err)
	}
	oci := filepath.Join(dir, "oci")
	path, err := layout.Write(oci, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(image, layout.WithAnnotations(map[string]string{annotationRefName: "v7"})); err != nil {
		t.Fatal(err)
	}
	multi := filepath.Join(dir, "multi")
	if path, err = layout.Write(multi, empty.Index); err != nil {
		t.Fatal(err)
	}
	if err := path.AppendIndex(mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: image})); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "oci.tar")
	file, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	writer := tar.NewWriter(file)
	if err := errors.Join(writer.AddFS(os.DirFS(oci)), writer.Close(), file.Close()); err != nil {
		t.Fatal(err)
	}
	want, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for from, tc := range map[string]struct{ name string }{docker: {"hello:dev"}, oci: {"v7"}, multi: {""}, archive: {"v7"}} {
		t.Run(filepath.Base(from), func(t *testing.T) {
			source, err := OpenSource(from)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = source.Close() }()
			if source.Name != tc.name {
				t.Errorf("Name = %q; want %q", source.Name, tc.name)
			}
			repo, err := ParseRepository("shop/" + strings.ReplaceAll(filepath.Base(from), ".", "-"))
			if err != nil {
				t.Fatal(err)
			}
			last := Progress{}
			if source.Index != nil {
				_, err = c.PushIndex(t.Context(), repo, "v1", source.Index, nil)
			} else {
				_, err = c.PushImage(t.Context(), repo, "v1", source.Image, func(p Progress) { last = p })
				if last.Blobs != 3 || last.BlobsDone != 3 || last.BytesDone != last.Bytes {
					t.Errorf("last progress %+v", last)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			ref, err := name.ParseReference(strings.TrimPrefix(server.URL, "http://") + "/" + repo.Name + ":v1")
			if err != nil {
				t.Fatal(err)
			}
			var got v1.Image
			if got, err = remote.Image(ref, remote.WithPlatform(v1.Platform{})); err == nil {
				err = validate.Image(got)
			}
			if err != nil && source.Index == nil {
				t.Errorf("what comes back: %v", err)
			}
			if source.Image != nil && from != docker {
				if d, err := got.Digest(); err != nil || d != want {
					t.Errorf("digest %v, %v; want %v", d, err, want)
				}
			}
			entries, err := c.Images(t.Context(), repo)
			if err != nil || len(entries) != 1 || len(entries[0].Tags) != 1 || entries[0].SizeBytes < 2000 {
				t.Errorf("Images = %+v, %v", entries, err)
			}
		})
	}
	if list, err := c.Repositories(t.Context()); err != nil || len(list) != 4 {
		t.Errorf("Repositories = %v, %v", list, err)
	}
	if _, err := OpenSource(filepath.Join(dir, "none")); err == nil {
		t.Error("a file that is not there is opened")
	}
}
