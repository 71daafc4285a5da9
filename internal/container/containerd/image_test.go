//go:build linux

package containerd

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"gantry.dev/gantry/internal/container"
)

func TestImages(t *testing.T) {
	dirs := needNode(t)
	r, stop := startRuntime(t, dirs)
	archive := busyboxArchive(t, testImage, v1.Config{Cmd: []string{"/bin/sh"}, User: "web"})
	found, err := r.Import(t.Context(), bytes.NewReader(archive), container.ImportOptions{Name: "hello:dev", Pinned: true})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{testImage, "docker.io/library/hello:dev"}
	if len(found) != 1 || !slices.Equal(found[0].Names, want) || !found[0].Pinned || found[0].User != "web" || found[0].SizeBytes < 500_000 {
		t.Fatalf("Import = %+v, want names %v", found, want)
	}
	stop()
	r, _ = startRuntime(t, dirs)
	for _, ref := range []string{"busybox:test", "hello:dev", found[0].ID, found[0].Digests[0]} {
		if img, err := r.Image(t.Context(), ref); err != nil || img.ID != found[0].ID {
			t.Errorf("Image(%q) = %+v, %v", ref, img, err)
		}
	}
	if err := r.PinImage(t.Context(), "hello:dev", false); err != nil {
		t.Error(err)
	}
	if err := r.RemoveImage(t.Context(), "busybox:test"); err != nil {
		t.Error(err)
	}
	img, err := r.Image(t.Context(), found[0].ID)
	if err != nil || !slices.Equal(img.Names, want[1:]) || img.Pinned {
		t.Errorf("after removing one name: %+v, %v", img, err)
	}
	// A container goes on when its image is removed, also when content is collected.
	sb := newSandbox(t, r, dirs, "pod-1", nil)
	id := runContainer(t, r, sb, img.ID, "main", "read line; cat /etc/passwd; exit 4", func(c *container.Config) { c.Stdin = true })
	if err := r.RemoveImage(t.Context(), img.ID); err != nil {
		t.Error(err)
	}
	if _, err := r.Image(t.Context(), img.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("Image after removal: %v", err)
	}
	eventually(t, "the image's content is deleted", func() bool { return countBlobs(t, r) == 0 })
	if err := r.Attach(t.Context(), id, container.Streams{Stdin: strings.NewReader("go\n")}); err != nil {
		t.Error(err)
	}
	if status := waitExit(t, r, id); status.ExitCode != 4 {
		t.Errorf("exit code %d, want 4", status.ExitCode)
	}
	if list, err := r.Images(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("Images = %v, %v; want none", list, err)
	}
}

func countBlobs(t *testing.T, r *Runtime) int {
	t.Helper()
	return len(folderNames(r.opts.Root + "/content/blobs/sha256"))
}

func TestImportRefuses(t *testing.T) {
	dirs := needNode(t)
	r, _ := startRuntime(t, dirs)
	for name, data := range map[string]string{"not a tar": "hello", "empty": ""} {
		if found, err := r.Import(t.Context(), strings.NewReader(data), container.ImportOptions{}); err == nil {
			t.Errorf("%s: Import = %v, no error", name, found)
		}
	}
}

func TestPull(t *testing.T) {
	dirs := needNode(t)
	r, _ := startRuntime(t, dirs)
	data := busyboxArchive(t, "x:y", v1.Config{Cmd: []string{"/bin/sh"}})
	img, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { serveRegistry(w, req, img) }))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	alice := container.Credentials{Username: "alice", Password: "secret"}
	for name, tc := range map[string]struct {
		ref         string
		credentials []container.Credentials
		reason      string
	}{
		"public":            {host + "/public/app:1", nil, ""},
		"private":           {host + "/private/app:1", []container.Credentials{alice}, ""},
		"second is right":   {host + "/private/app:1", []container.Credentials{{Username: "alice", Password: "old"}, alice}, ""},
		"wrong":             {host + "/private/app:1", []container.Credentials{{Username: "bob", Password: "x"}}, "ErrImagePull"},
		"none":              {host + "/private/app:1", nil, "ErrImagePull"},
		"missing":           {host + "/public/nothing:1", nil, "ErrImagePull"},
		"not a name":        {"::", nil, "InvalidImageName"},
		"nothing listening": {"127.0.0.1:1/x:1", nil, "ErrImagePull"},
	} {
		t.Run(name, func(t *testing.T) {
			var last container.Progress
			got, err := r.Pull(t.Context(), tc.ref, container.PullOptions{Credentials: tc.credentials, Progress: func(p container.Progress) { last = p }})
			if tc.reason == "" {
				if err != nil || !slices.Contains(got.Names, tc.ref) || len(got.Digests) == 0 || got.SizeBytes == 0 {
					t.Fatalf("Pull = %+v, %v", got, err)
				}
				if last.Layers == 0 || last.LayersDone != last.Layers || last.DoneBytes != last.TotalBytes {
					t.Errorf("last progress = %+v", last)
				}
				return
			}
			if e, ok := errors.AsType[*ImageError](err); !ok || e.Reason != tc.reason {
				t.Errorf("Pull = %v, want reason %s", err, tc.reason)
			}
		})
	}
	if err := r.RemoveImage(t.Context(), host+"/private/app:1"); err != nil {
		t.Error(err)
	}
	if list, err := r.Images(t.Context()); err != nil || len(list) != 1 || len(list[0].Digests) != 1 {
		t.Errorf("after removing a pulled name: %+v, %v; want nothing of its repository", list, err)
	}
	sb := newSandbox(t, r, dirs, "pod-1", nil)
	id := runContainer(t, r, sb, host+"/public/app:1", "main", "exit 3", func(c *container.Config) { c.ImageRef = host + "/public/app:1" })
	status := waitExit(t, r, id)
	if status.ExitCode != 3 || !strings.HasPrefix(status.ImageID, host+"/public/app@sha256:") {
		t.Errorf("status = %+v", status)
	}
}

// serveRegistry serves one image as any/app:1, to alice alone below private/.
func serveRegistry(w http.ResponseWriter, req *http.Request, img v1.Image) {
	user, password, _ := req.BasicAuth()
	if strings.Contains(req.URL.Path, "/private/") && (user != "alice" || password != "secret") {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	manifest, err := img.RawManifest()
	if err != nil {
		panic(err)
	}
	_, what, _ := strings.Cut(req.URL.Path, "/app/")
	kind, ref, _ := strings.Cut(what, "/")
	digest, err := img.Digest()
	if err != nil {
		panic(err)
	}
	switch {
	case kind == "manifests" && (ref == "1" || ref == digest.String()):
		mediaType, err := img.MediaType()
		if err != nil {
			panic(err)
		}
		w.Header().Set("Content-Type", string(mediaType))
		w.Header().Set("Docker-Content-Digest", digest.String())
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(manifest))
	case kind == "blobs":
		hash, err := v1.NewHash(ref)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		blob, err := blobOf(img, hash)
		if err != nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(blob))
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// blobOf returns the config or a layer of an image.
func blobOf(img v1.Image, hash v1.Hash) ([]byte, error) {
	if name, err := img.ConfigName(); err == nil && name == hash {
		return img.RawConfigFile()
	}
	layer, err := img.LayerByDigest(hash)
	if err != nil {
		return nil, err
	}
	reader, err := layer.Compressed()
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	return io.ReadAll(reader)
}
