package gantrytest

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/images"
)

// push puts an image of its own into the store and returns its reference by digest.
func push(t *testing.T, store *images.Store, repo images.Repository, name string) string {
	t.Helper()
	put := func(text string) ocispec.Descriptor {
		d := digest.FromString(text)
		if err := store.PutBlob(t.Context(), repo, d, int64(len(text)), strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		return ocispec.Descriptor{Digest: d, Size: int64(len(text))}
	}
	config := put(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"author":"` + name + `"}`)
	layer := put("layer of " + name)
	config.MediaType, layer.MediaType = ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayer
	manifest := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer}}
	manifest.SchemaVersion = 2
	text, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(text)
	if _, err := store.PutManifest(t.Context(), repo, "", d, manifest.MediaType, text); err != nil {
		t.Fatal(err)
	}
	return images.Host + "/" + repo.Name + "@" + d.String()
}

// The images of an application's last ten releases stay in the registry, whatever became of them; those of older
// releases, and what was never released, are collected.
func TestReleasesKeepTheirImages(t *testing.T) {
	inPlatform(t, 0, func(p *platformTest) {
		dir := t.TempDir()
		disk, err := os.Stat(dir) // files have the real time, and the bubble one of its own
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		store, err := images.NewStore(images.StoreOptions{
			Dir: dir, Space: func(string) (uint64, uint64, error) { return 90 << 30, 100 << 30, nil },
			Now: func() time.Time { return disk.ModTime().Add(time.Since(begun)) },
		})
		if err != nil {
			t.Fatal(err)
		}
		collector, err := images.NewCollector(images.CollectorOptions{Store: store, Reader: p.ControlPlane.Admin()})
		if err != nil {
			t.Fatal(err)
		}
		repo, err := images.ParseRepository("default/shop")
		if err != nil {
			t.Fatal(err)
		}
		stray := push(t, store, repo, "never released")
		var pushed []string
		const releases = 14
		for i := range releases {
			image := push(t, store, repo, fmt.Sprintf("version %d", i+1))
			pushed = append(pushed, image)
			if i == 0 {
				p.create(shop(image))
			} else {
				p.change(func(a *v1alpha1.App) { a.Spec.Image = image })
			}
			p.release(i+1, v1alpha1.ReleaseLive)
		}
		<-time.After(time.Hour) // virtual: what is old enough to go
		done, err := collector.Collect(t.Context(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		there := func(image string) bool {
			ref, err := images.ParseReference(image)
			if err != nil {
				t.Fatal(err)
			}
			_, err = store.GetManifest(repo, ref.Digest)
			return err == nil
		}
		if there(stray) {
			t.Error("an image that was never released is kept")
		}
		for i, image := range pushed {
			if got, want := there(image), i >= releases-10; got != want {
				t.Errorf("the image of v%d is there: %t, want %t", i+1, got, want)
			}
		}
		if done.Manifests != releases-10+1 || done.Blobs < 2*done.Manifests {
			t.Errorf("collected %+v", done)
		}
		if again, err := collector.Collect(t.Context(), time.Minute); err != nil || again.Manifests != 0 {
			t.Errorf("a second collection takes %+v, %v", again, err)
		}
	})
}
