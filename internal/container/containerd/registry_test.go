//go:build linux

package containerd

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/images"
)

// TestOwnRegistry pushes an image of the node into the cluster's registry, and pulls it again: nothing is copied, and each
// side may drop its own without the other's noticing. Without links it is fetched.
func TestOwnRegistry(t *testing.T) {
	dirs := needNode(t)
	opts, err := dirs.options(nil)
	if err != nil {
		t.Fatal(err)
	}
	store, err := images.NewStore(images.StoreOptions{Dir: filepath.Join(filepath.Dir(opts.Root), "registry")})
	if err != nil {
		t.Fatal(err)
	}
	handler, err := images.NewHandler(images.Options{Store: store})
	if err != nil {
		t.Fatal(err)
	}

	repo, err := images.ParseRepository("shop/web")
	if err != nil {
		t.Fatal(err)
	}
	linked, fetched := 0, 0
	link := func(ctx context.Context, repository string, d digest.Digest, target string) error {
		linked++
		if repository != repo.Name {
			t.Errorf("link from %s", repository)
		}
		return store.Link(ctx, repo, d, target)
	}
	opts.Registry = &Registry{Host: images.Host, Link: link, Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodGet {
			fetched++
		}
		w := httptest.NewRecorder()
		inner := r.Clone(r.Context())
		inner.Body = http.NoBody
		handler.ServeHTTP(w, inner)
		answer := w.Result()
		answer.Request = r
		return answer, nil
	})}
	r := runWith(t, opts)
	id := loadBusybox(t, r)
	files, err := r.ImageFiles(t.Context(), id)
	if err != nil || len(files) < 3 {
		t.Fatalf("ImageFiles = %v, %v", files, err)
	}
	manifest := files[len(files)-1]
	for _, file := range files[:len(files)-1] {
		if err := store.Adopt(t.Context(), repo, file.Descriptor.Digest, file.Path); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(manifest.Path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.PutManifest(t.Context(), repo, "v1", "", manifest.Descriptor.MediaType, data); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(files[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.RemoveImage(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node's content is deleted", func() bool { return countBlobs(t, r) == 0 })
	ref := images.Host + "/shop/web@" + manifest.Descriptor.Digest.String()
	img, err := r.Pull(t.Context(), ref, container.PullOptions{})
	if err != nil || img.ID != id {
		t.Fatalf("Pull = %+v, %v", img, err)
	}
	after, err := os.Stat(files[0].Path)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the pulled layer is not the registry's file: %v", err)
	}
	if linked != len(files) || fetched > 0 {
		t.Errorf("%d of %d blobs were linked, %d fetched", linked, len(files), fetched)
	}
	// The registry drops it; the node runs on.
	if err := store.DeleteManifest(repo, manifest.Descriptor.Digest); err != nil {
		t.Error(err)
	}
	sb := newSandbox(t, r, dirs, "pod-1", nil)
	if status := waitExit(t, r, runContainer(t, r, sb, ref, "main", "exit 3", nil)); status.ExitCode != 3 {
		t.Errorf("exit code %d", status.ExitCode)
	}
	_, err = r.Pull(t.Context(), images.Host+"/shop/none:v1", container.PullOptions{})
	if err == nil {
		t.Error("an image that is not there is pulled")
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
