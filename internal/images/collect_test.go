package images

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const day = 24 * time.Hour

func (f *fixture) collect(change func(*Keep)) Collected {
	f.t.Helper()
	keep := Keep{Grace: day, Uploads: day}
	if change != nil {
		change(&keep)
	}
	done, err := f.store.Collect(keep)
	if err != nil {
		f.t.Fatal(err)
	}
	return done
}

func TestCollect(t *testing.T) {
	f := newFixture(t, nil)
	tagged := f.pushImage("shop/web", "v1", "tagged", nil)
	platform := f.pushImage("shop/web", "gantry-b1", "platform", nil)
	used := f.pushImage("shop/web", "", "used", nil)
	unused := f.pushImage("shop/web", "", "unused", nil)
	sbom := f.pushImage("shop/web", "", "sbom", func(m *ocispec.Manifest) { m.Subject = &used })
	source := f.pushBlob("shop/web", "source")
	lost := f.pushBlob("shop/web", "lost")
	index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, unused.MediaType, unused.Digest, unused.Size)
	if done := f.collect(nil); done != (Collected{}) {
		t.Errorf("what came just now is collected: %+v", done)
	}
	f.now = f.now.Add(2 * day)
	f.want(201, "PUT", "/v2/shop/web/manifests/all", index, "Content-Type", ocispec.MediaTypeImageIndex)
	keep := func(k *Keep) {
		k.Digests = map[string]map[digest.Digest]bool{"shop/web": {used.Digest: true, source.Digest: true}}
	}
	there := func(d digest.Digest) bool {
		return f.do("HEAD", "/v2/shop/web/blobs/"+d.String(), "").StatusCode == 200
	}
	f.collect(keep)
	for name, tc := range map[string]struct {
		d    digest.Digest
		want bool
	}{
		"tagged": {tagged.Digest, true}, "its layer": {digest.FromString("tagged"), true}, "platform's tag": {platform.Digest, false},
		"used": {used.Digest, true}, "about what is used": {sbom.Digest, true}, "of an index": {unused.Digest, true},
		"layer of an index": {digest.FromString("unused"), true}, "source in use": {source.Digest, true}, "blob of nothing": {lost.Digest, false},
	} {
		if got := there(tc.d); got != tc.want {
			t.Errorf("%s: there is %v, want %v", name, got, tc.want)
		}
	}
	if tags, _ := f.store.Tags(Repository{Name: "shop/web"}); strings.Join(tags, " ") != "all v1" {
		t.Errorf("tags %v", tags)
	}
	f.now = f.now.Add(2 * day)
	other := func(k *Keep) { keep(k); k.Projects = map[string]bool{"other": true} }
	f.collect(other)
	for _, file := range f.files() {
		if !strings.Contains(file, "/gone/") { // what says that it is gone
			t.Errorf("a project is gone, its file is not: %s", file)
		}
	}
	f.now = f.now.Add(goneFor)
	f.collect(other)
	if files := f.files(); len(files) != 0 {
		t.Errorf("what is remembered for a month is so for longer: %v", files)
	}
}

// files are all files of the store.
func (f *fixture) files() []string {
	f.t.Helper()
	var all []string
	err := filepath.WalkDir(f.store.opts.Dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return all
}

func TestCollectUploads(t *testing.T) {
	f := newFixture(t, nil)
	at := f.want(202, "POST", "/v2/shop/web/blobs/uploads/", "").Header.Get("Location")
	f.want(202, "PATCH", at, "hello")
	f.collect(nil)
	f.want(204, "GET", at, "")
	f.now = f.now.Add(2 * day)
	if done := f.collect(nil); done.Uploads != 1 {
		t.Errorf("%+v; want one upload", done)
	}
	f.want(404, "GET", at, "")
	if files := f.files(); len(files) != 0 {
		t.Errorf("left: %v", files)
	}
}

// TestCollectDuringPush collects all the time while images of the same layers are pushed, some of whose layers are found
// and so not sent: no manifest may be refused, no image may lack a layer.
func TestCollectDuringPush(t *testing.T) {
	f := newFixture(t, nil)
	stop := make(chan struct{})
	var group, collector sync.WaitGroup
	collector.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := f.store.Collect(Keep{Grace: time.Minute, Uploads: time.Hour}); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for worker := range 4 {
		group.Go(func() {
			repo := fmt.Sprintf("shop/w%d", worker%2)
			for round := range 15 {
				layer := fmt.Sprintf("layer %d", round%3)
				d := digest.FromString(layer)
				if f.do("HEAD", "/v2/"+repo+"/blobs/"+d.String(), "").StatusCode == 200 && worker > 1 {
					// As a client that saw it: the layer is not sent.
					old := time.Now().Add(-time.Hour)
					_ = os.Chtimes(f.store.blobPath(d), old, old)
				} else {
					f.pushBlob(repo, layer)
				}
				image := f.pushImage(repo, fmt.Sprintf("t%d-%d", worker, round), layer, nil)
				if got := f.do("GET", "/v2/"+repo+"/blobs/"+d.String(), "").StatusCode; got != 200 {
					t.Errorf("layer of %s is gone: %d", image.Digest, got)
				}
				if round%4 == 3 {
					f.want(202, "DELETE", fmt.Sprintf("/v2/%s/manifests/t%d-%d", repo, worker, round), "")
				}
			}
		})
	}
	group.Wait()
	close(stop)
	collector.Wait()
}

// TestSameLayer pushes one layer many times at once.
func TestSameLayer(t *testing.T) {
	f := newFixture(t, nil)
	content := bytes.Repeat([]byte("gantry"), 1<<18)
	d := digest.FromBytes(content)
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			repo := Repository{"shop", "web", "shop/web"}
			if worker%2 == 0 {
				repo = Repository{"shop", "api", "shop/api"}
			}
			if err := f.store.PutBlob(t.Context(), repo, d, int64(len(content)), bytes.NewReader(content)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	blobs := 0
	for _, file := range f.files() {
		if strings.Contains(file, "/blobs/") {
			blobs++
		}
		if strings.Contains(file, "/uploads/") {
			t.Errorf("left: %s", file)
		}
	}
	if blobs != 1 {
		t.Errorf("the layer is there %d times", blobs)
	}
	for _, repo := range []string{"shop/web", "shop/api"} {
		f.want(200, "HEAD", "/v2/"+repo+"/blobs/"+d.String(), "")
	}
}

func TestLink(t *testing.T) {
	f := newFixture(t, nil)
	repo := Repository{"shop", "web", "shop/web"}
	layer := f.pushBlob("shop/web", "layer")
	target := filepath.Join(t.TempDir(), "content", "blob")
	if err := f.store.Link(t.Context(), Repository{"other", "web", "other/web"}, layer.Digest, target); !isNotFound(err) {
		t.Errorf("a blob of another repository is linked: %v", err)
	}
	for range 2 {
		if err := f.store.Link(t.Context(), repo, layer.Digest, target); err != nil {
			t.Fatal(err)
		}
	}
	one, err := os.Stat(target)
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.Stat(f.store.blobPath(layer.Digest))
	if err != nil || !os.SameFile(one, two) {
		t.Errorf("the linked file is a copy: %v", err)
	}
	// The node removes its name, the registry keeps its own; and the other way round.
	if err := os.Remove(target); err != nil {
		t.Fatal(err)
	}
	f.want(200, "GET", "/v2/shop/web/blobs/"+layer.Digest.String(), "")
	if err := f.store.Adopt(t.Context(), repo, layer.Digest, filepath.Join(t.TempDir(), "none")); err != nil {
		t.Errorf("content that is there already is not taken: %v", err)
	}
}

// TestDirtyFolder has what a crash may leave between any two steps of a push: nothing of it is shown, all of it is collected.
func TestDirtyFolder(t *testing.T) {
	f := newFixture(t, nil)
	image := f.pushImage("shop/web", "v1", "layer", nil)
	repo := Repository{"shop", "web", "shop/web"}
	for _, path := range []string{
		f.store.blobPath(digest.FromString("no mark")),                                                 // renamed, not marked
		f.store.mark(repo, blobMarks, markName(digest.FromString("mark without content"))),             // lost
		f.store.mark(repo, referrerMarks, markName(image.Digest), markName(digest.FromString("gone"))), // listed, its manifest not written
		f.store.mark(repo, tagMarks, ".v2.123"),                                                        // half a tag
		f.store.uploadPath("00112233445566778899aabbccddeeff"),                                         // without its description
		f.store.uploadPath("ffeeddccbbaa99887766554433221100") + ".json",                               // without its bytes
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, f.want(200, "GET", "/v2/shop/web/tags/list", "")); !strings.Contains(got, `["v1"]`) {
		t.Errorf("tags %s", got)
	}
	f.want(404, "GET", "/v2/shop/web/blobs/"+digest.FromString("mark without content").String(), "")
	if got := read(t, f.want(200, "GET", "/v2/shop/web/referrers/"+image.Digest.String(), "")); !strings.Contains(got, `"manifests":[]`) {
		t.Errorf("referrers %s", got)
	}
	f.now = f.now.Add(2 * day)
	f.collect(nil)
	for _, file := range f.files() {
		if strings.Contains(file, "uploads") || strings.Contains(file, ".v2") || strings.Contains(file, referrerMarks) || strings.Contains(file, digest.FromString("no mark").Encoded()) ||
			strings.Contains(file, digest.FromString("mark without content").Encoded()) {
			t.Errorf("left: %s", file)
		}
	}
	f.want(200, "GET", "/v2/shop/web/manifests/v1", "")
}
