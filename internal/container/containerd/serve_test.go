//go:build linux

package containerd

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"gantry.dev/gantry/internal/container"
)

// TestServeLoaded pulls an image that was loaded, as the mirror of the registry that its name says.
func TestServeLoaded(t *testing.T) {
	r, _ := startRuntime(t, needNode(t))
	archive := busyboxArchive(t, "docker.io/library/tools:1", v1.Config{})
	if _, err := r.Import(t.Context(), bytes.NewReader(archive), container.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/v2/" {
			return
		}
		query := req.URL.Query()
		query.Set("ns", "docker.io")
		req.URL.RawQuery = query.Encode()
		r.ServeLoaded(w, req, strings.TrimPrefix(req.URL.Path, "/v2/"))
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	ref, err := name.NewTag(host+"/library/tools:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) == 0 {
		t.Fatalf("Layers = %v, %v", layers, err)
	}
	for _, layer := range layers {
		content, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := new(bytes.Buffer).ReadFrom(content); err != nil || n == 0 {
			t.Errorf("a layer has %d bytes, %v", n, err)
		}
	}
	for _, other := range []string{"/library/tools:2", "/library/other:1"} {
		ref, err := name.NewTag(host+other, name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := remote.Image(ref); err == nil {
			t.Errorf("%s is served", other)
		}
	}
	named, err := normalize("docker.io/library/tools:1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, err := r.await(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	record, err := r.images.Get(ctx, named.String())
	if err != nil {
		t.Fatal(err)
	}
	delete(record.Labels, loadedLabel) // as if it had been pulled
	if _, err := r.images.Update(ctx, record, "labels"); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Image(ref); err == nil {
		t.Error("an image that was not loaded is served")
	}
}
