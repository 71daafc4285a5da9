package images

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fixture is a registry with a clock of the test's own.
type fixture struct {
	t       *testing.T
	store   *Store
	handler *Handler
	now     time.Time
	free    uint64 // percent of the disk
}

func newFixture(t *testing.T, change func(*Options)) *fixture {
	t.Helper()
	f := &fixture{t: t, now: time.Now(), free: 50}
	var err error
	f.store, err = NewStore(StoreOptions{
		Dir: t.TempDir(), MaxManifest: 64 << 10,
		Space: func(string) (uint64, uint64, error) { return f.free << 30, 100 << 30, nil },
		Now:   func() time.Time { return f.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{Store: f.store}
	if change != nil {
		change(&opts)
	}
	if f.handler, err = NewHandler(opts); err != nil {
		t.Fatal(err)
	}
	return f
}

// do makes a request; headers come in pairs.
func (f *fixture) do(method, path, body string, headers ...string) *http.Response {
	f.t.Helper()
	r := httptest.NewRequestWithContext(f.t.Context(), method, path, strings.NewReader(body))
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, r)
	return w.Result()
}

// want makes a request and checks its status.
func (f *fixture) want(status int, method, path, body string, headers ...string) *http.Response {
	f.t.Helper()
	answer := f.do(method, path, body, headers...)
	if answer.StatusCode != status {
		text, _ := io.ReadAll(answer.Body)
		f.t.Fatalf("%s %s = %d %s; want %d", method, path, answer.StatusCode, text, status)
	}
	return answer
}

func read(t *testing.T, answer *http.Response) string {
	t.Helper()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func (f *fixture) pushBlob(repo, content string) ocispec.Descriptor {
	f.t.Helper()
	d := digest.FromString(content)
	f.want(201, "POST", fmt.Sprintf("/v2/%s/blobs/uploads/?digest=%s", repo, d), content)
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: int64(len(content))}
}

// pushImage pushes an image of one layer and returns its manifest's digest.
func (f *fixture) pushImage(repo, reference, layer string, change func(*ocispec.Manifest)) ocispec.Descriptor {
	f.t.Helper()
	config := f.pushBlob(repo, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	config.MediaType = ocispec.MediaTypeImageConfig
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{f.pushBlob(repo, layer)}}
	m.SchemaVersion = 2
	if change != nil {
		change(&m)
	}
	data, err := json.Marshal(m)
	if err != nil {
		f.t.Fatal(err)
	}
	d := digest.FromBytes(data)
	if reference == "" {
		reference = d.String()
	}
	f.want(201, "PUT", "/v2/"+repo+"/manifests/"+reference, string(data), "Content-Type", m.MediaType)
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(data))}
}

// TestDistribution is the specification's behaviours, one request after the other.
func TestDistribution(t *testing.T) {
	f := newFixture(t, nil)
	blob := "0123456789"
	d := digest.FromString(blob)
	none := digest.FromString("none")
	layer := f.pushBlob("shop/web", blob)
	m := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"x","digest":%q,"size":10},"layers":[]}`, ocispec.MediaTypeImageManifest, layer.Digest)
	md := digest.FromString(m)
	sha512 := digest.SHA512.FromString(blob)
	for _, tc := range []struct {
		name               string
		method, path, body string
		headers            []string
		status             int
		code               string            // of the error
		header             map[string]string // of the answer
		answer             string
	}{
		{"version", "GET", "/v2/", "", nil, 200, "", nil, "{}"},
		{"version without a slash", "GET", "/v2", "", nil, 200, "", nil, "{}"},
		{"version by POST", "POST", "/v2/", "", nil, 405, "UNSUPPORTED", nil, ""},
		{"no such path", "GET", "/v2/shop/web/things/1", "", nil, 404, "UNSUPPORTED", nil, ""},
		{"name of one part", "GET", "/v2/shop/tags/list", "", nil, 400, "NAME_INVALID", nil, ""},
		{"name in capitals", "GET", "/v2/Shop/web/tags/list", "", nil, 400, "NAME_INVALID", nil, ""},
		{"name that climbs", "GET", "/v2/shop/../web/tags/list", "", nil, 400, "NAME_INVALID", nil, ""},

		{"blob", "GET", "/v2/shop/web/blobs/" + d.String(), "", nil, 200, "", map[string]string{digestHeader: d.String(), "Content-Length": "10"}, blob},
		{"blob's head", "HEAD", "/v2/shop/web/blobs/" + d.String(), "", nil, 200, "", map[string]string{digestHeader: d.String(), "Content-Length": "10"}, ""},
		{"range", "GET", "/v2/shop/web/blobs/" + d.String(), "", []string{"Range", "bytes=2-4"}, 206, "", map[string]string{"Content-Range": "bytes 2-4/10"}, "234"},
		{"range to the end", "GET", "/v2/shop/web/blobs/" + d.String(), "", []string{"Range", "bytes=7-"}, 206, "", nil, "789"},
		{"last bytes", "GET", "/v2/shop/web/blobs/" + d.String(), "", []string{"Range", "bytes=-3"}, 206, "", nil, "789"},
		{"range beyond", "GET", "/v2/shop/web/blobs/" + d.String(), "", []string{"Range", "bytes=10-"}, 416, "", nil, ""},
		{"known blob", "GET", "/v2/shop/web/blobs/" + d.String(), "", []string{"If-None-Match", `"` + d.String() + `"`}, 304, "", nil, ""},
		{"unknown blob", "GET", "/v2/shop/web/blobs/" + none.String(), "", nil, 404, "BLOB_UNKNOWN", nil, ""},
		{"unknown blob's head", "HEAD", "/v2/shop/web/blobs/" + none.String(), "", nil, 404, "", nil, ""},
		{"blob of another repository", "GET", "/v2/other/web/blobs/" + d.String(), "", nil, 404, "BLOB_UNKNOWN", nil, ""},
		{"not a digest", "GET", "/v2/shop/web/blobs/sha256:12", "", nil, 400, "DIGEST_INVALID", nil, ""},

		{"whole upload", "POST", "/v2/shop/web/blobs/uploads/?digest=" + d.String(), blob, nil, 201, "", map[string]string{"Location": "/v2/shop/web/blobs/" + d.String()}, ""},
		{"whole upload by SHA-512", "POST", "/v2/shop/web/blobs/uploads/?digest=" + sha512.String(), blob, nil, 201, "", nil, ""},
		{"SHA-512 blob", "GET", "/v2/shop/web/blobs/" + sha512.String(), "", nil, 200, "", nil, blob},
		{"wrong SHA-512", "POST", "/v2/shop/web/blobs/uploads/?digest=" + sha512.String(), "x", nil, 400, "DIGEST_INVALID", nil, ""},
		{"wrong digest", "POST", "/v2/shop/web/blobs/uploads/?digest=" + none.String(), blob, nil, 400, "DIGEST_INVALID", nil, ""},
		{"wrong digest left nothing", "HEAD", "/v2/shop/web/blobs/" + none.String(), "", nil, 404, "", nil, ""},
		{"mount", "POST", "/v2/other/app/blobs/uploads/?mount=" + d.String() + "&from=shop/web", "", nil, 201, "", map[string]string{"Location": "/v2/other/app/blobs/" + d.String()}, ""},
		{"mounted blob", "GET", "/v2/other/app/blobs/" + d.String(), "", nil, 200, "", nil, blob},
		{"mount of what is not there", "POST", "/v2/other/app/blobs/uploads/?mount=" + none.String() + "&from=shop/web", "", nil, 202, "", nil, ""},
		{"mount from nowhere", "POST", "/v2/other/app/blobs/uploads/?mount=" + d.String(), "", nil, 202, "", nil, ""},
		{"unknown upload", "PATCH", "/v2/shop/web/blobs/uploads/00112233445566778899aabbccddeeff", "x", nil, 404, "BLOB_UPLOAD_UNKNOWN", nil, ""},
		{"upload that climbs", "PUT", "/v2/shop/web/blobs/uploads/..?digest=" + d.String(), "x", nil, 404, "BLOB_UPLOAD_UNKNOWN", nil, ""},

		{"manifest by tag", "PUT", "/v2/shop/web/manifests/v1", m, []string{"Content-Type", ocispec.MediaTypeImageManifest}, 201, "", map[string]string{digestHeader: md.String()}, ""},
		{"manifest by digest", "PUT", "/v2/shop/web/manifests/" + md.String(), m, []string{"Content-Type", ocispec.MediaTypeImageManifest}, 201, "", nil, ""},
		{"manifest of another digest", "PUT", "/v2/shop/web/manifests/" + none.String(), m, []string{"Content-Type", ocispec.MediaTypeImageManifest}, 400, "DIGEST_INVALID", nil, ""},
		{"manifest of another type", "PUT", "/v2/shop/web/manifests/v1", m, []string{"Content-Type", ocispec.MediaTypeImageIndex}, 400, "MANIFEST_INVALID", nil, ""},
		{"manifest that is none", "PUT", "/v2/shop/web/manifests/v1", "hello", []string{"Content-Type", ocispec.MediaTypeImageManifest}, 400, "MANIFEST_INVALID", nil, ""},
		{"manifest whose layer is missing", "PUT", "/v2/shop/web/manifests/v1", strings.ReplaceAll(m, d.Encoded(), none.Encoded()), []string{"Content-Type", ocispec.MediaTypeImageManifest}, 400, "MANIFEST_BLOB_UNKNOWN", nil, ""},
		{"manifest that is too large", "PUT", "/v2/shop/web/manifests/v1", m + strings.Repeat(" ", 64<<10), []string{"Content-Type", ocispec.MediaTypeImageManifest}, 413, "SIZE_INVALID", nil, ""},
		{"tag that is none", "PUT", "/v2/shop/web/manifests/-v1", m, []string{"Content-Type", ocispec.MediaTypeImageManifest}, 400, "TAG_INVALID", nil, ""},
		{"tag", "GET", "/v2/shop/web/manifests/v1", "", nil, 200, "", map[string]string{digestHeader: md.String(), "Content-Type": ocispec.MediaTypeImageManifest}, m},
		{"tag's head", "HEAD", "/v2/shop/web/manifests/v1", "", nil, 200, "", map[string]string{digestHeader: md.String(), "Content-Length": fmt.Sprint(len(m))}, ""},
		{"digest", "GET", "/v2/shop/web/manifests/" + md.String(), "", nil, 200, "", nil, m},
		{"unknown tag", "GET", "/v2/shop/web/manifests/v2", "", nil, 404, "MANIFEST_UNKNOWN", nil, ""},
		{"unknown digest", "GET", "/v2/shop/web/manifests/" + none.String(), "", nil, 404, "MANIFEST_UNKNOWN", nil, ""},
		{"unknown repository", "GET", "/v2/shop/nothing/manifests/v1", "", nil, 404, "NAME_UNKNOWN", nil, ""},
		{"tags", "GET", "/v2/shop/web/tags/list", "", nil, 200, "", nil, `{"name":"shop/web","tags":["v1"]}`},
		{"tags of nothing", "GET", "/v2/shop/nothing/tags/list", "", nil, 404, "NAME_UNKNOWN", nil, ""},
		{"no number", "GET", "/v2/shop/web/tags/list?n=x", "", nil, 400, "PAGINATION_NUMBER_INVALID", nil, ""},
		{"catalog", "GET", "/v2/_catalog", "", nil, 200, "", nil, `{"repositories":["other/app","shop/web"]}`},
		{"referrers of nothing", "GET", "/v2/shop/web/referrers/" + none.String(), "", nil, 200, "", map[string]string{"Content-Type": ocispec.MediaTypeImageIndex}, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`},
		{"referrers of no digest", "GET", "/v2/shop/web/referrers/v1", "", nil, 400, "DIGEST_INVALID", nil, ""},

		{"delete the tag", "DELETE", "/v2/shop/web/manifests/v1", "", nil, 202, "", nil, ""},
		{"deleted tag", "GET", "/v2/shop/web/manifests/v1", "", nil, 404, "MANIFEST_UNKNOWN", nil, ""},
		{"its manifest is there", "GET", "/v2/shop/web/manifests/" + md.String(), "", nil, 200, "", nil, m},
		{"delete the manifest", "DELETE", "/v2/shop/web/manifests/" + md.String(), "", nil, 202, "", nil, ""},
		{"deleted manifest", "DELETE", "/v2/shop/web/manifests/" + md.String(), "", nil, 404, "MANIFEST_UNKNOWN", nil, ""},
		{"delete the blob", "DELETE", "/v2/shop/web/blobs/" + d.String(), "", nil, 202, "", nil, ""},
		{"deleted blob", "GET", "/v2/shop/web/blobs/" + d.String(), "", nil, 404, "BLOB_UNKNOWN", nil, ""},
		{"which another repository has", "GET", "/v2/other/app/blobs/" + d.String(), "", nil, 200, "", nil, blob},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f.t = t
			answer := f.want(tc.status, tc.method, tc.path, tc.body, tc.headers...)
			text := read(t, answer)
			if tc.code != "" && !strings.Contains(text, `{"errors":[{"code":"`+tc.code+`","message":"`) {
				t.Errorf("answer is %s; want code %s", text, tc.code)
			}
			if tc.answer != "" && text != tc.answer {
				t.Errorf("answer is %s; want %s", text, tc.answer)
			}
			for name, want := range tc.header {
				if got := answer.Header.Get(name); got != want {
					t.Errorf("%s is %q; want %q", name, got, want)
				}
			}
		})
	}
}

func TestChunks(t *testing.T) {
	f := newFixture(t, nil)
	d := digest.FromString("hello world")
	start := func() string { return f.want(202, "POST", "/v2/shop/web/blobs/uploads/", "").Header.Get("Location") }

	at := start()
	answer := f.want(202, "PATCH", at, "hello", "Content-Range", "0-4")
	if got := answer.Header.Get("Range"); got != "0-4" {
		t.Errorf("Range is %q; want 0-4", got)
	}
	f.want(416, "PATCH", at, "world", "Content-Range", "6-10")
	f.want(416, "PATCH", at, "world", "Content-Range", "5-6")
	f.want(416, "PATCH", at, "world", "Content-Range", "nonsense")
	if got := f.want(204, "GET", at, "").Header.Get("Range"); got != "0-4" {
		t.Errorf("Range is %q; want 0-4", got)
	}
	f.want(404, "GET", strings.Replace(at, "shop/web", "shop/api", 1), "")
	// A process that was killed left the file alone.
	f.store.uploads = map[string]*upload{}
	f.want(202, "PATCH", at, " wor", "Content-Range", "5-8")
	f.want(201, "PUT", at+"?digest="+d.String(), "ld")
	f.want(404, "GET", at, "")
	if got := read(t, f.want(200, "GET", "/v2/shop/web/blobs/"+d.String(), "")); got != "hello world" {
		t.Errorf("blob is %q", got)
	}

	at = start()
	f.want(202, "PATCH", at, "hello world")
	f.want(400, "PUT", at+"?digest="+digest.FromString("other").String(), "")
	f.want(404, "PUT", at+"?digest="+d.String(), "")
	at = start()
	f.want(204, "DELETE", at, "")
	f.want(404, "PATCH", at, "x")
	if list, err := names(f.store.opts.Dir + "/uploads"); err != nil || len(list) != 0 {
		t.Errorf("uploads left: %v, %v", list, err)
	}
}

// brokenReader fails after some bytes, as a connection does.
type brokenReader struct{ r io.Reader }

func (b brokenReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func TestChunkThatIsCutOff(t *testing.T) {
	f := newFixture(t, nil)
	at := f.want(202, "POST", "/v2/shop/web/blobs/uploads/", "").Header.Get("Location")
	r := httptest.NewRequestWithContext(t.Context(), "PATCH", at, brokenReader{strings.NewReader("hello ")})
	f.handler.ServeHTTP(httptest.NewRecorder(), r)
	if got := f.want(204, "GET", at, "").Header.Get("Range"); got != "0-5" {
		t.Fatalf("Range is %q; want what came, 0-5", got)
	}
	f.want(202, "PATCH", at, "world", "Content-Range", "6-10")
	f.want(201, "PUT", at+"?digest="+digest.FromString("hello world").String(), "")
}

func TestReferrers(t *testing.T) {
	f := newFixture(t, nil)
	image := f.pushImage("shop/web", "v1", "layer", nil)
	sbom := f.pushImage("shop/web", "", "sbom", func(m *ocispec.Manifest) {
		m.Subject, m.ArtifactType, m.Annotations = &image, "application/sbom", map[string]string{"a": "b"}
	})
	f.pushImage("shop/web", "", "signature", func(m *ocispec.Manifest) { m.Subject = &image })
	var index ocispec.Index
	list := func(query string) []ocispec.Descriptor {
		answer := f.want(200, "GET", "/v2/shop/web/referrers/"+image.Digest.String()+query, "")
		if err := json.NewDecoder(answer.Body).Decode(&index); err != nil {
			t.Fatal(err)
		}
		return index.Manifests
	}
	if got := list(""); len(got) != 2 {
		t.Errorf("referrers = %v; want two", got)
	}
	got := list("?artifactType=application/sbom")
	if len(got) != 1 || got[0].Digest != sbom.Digest || got[0].Annotations["a"] != "b" || got[0].ArtifactType != "application/sbom" {
		t.Errorf("referrers of a type = %v; want %v", got, sbom)
	}
	f.want(202, "DELETE", "/v2/shop/web/manifests/"+sbom.Digest.String(), "")
	if got := list(""); len(got) != 1 {
		t.Errorf("referrers after a delete = %v; want one", got)
	}
}

func TestPages(t *testing.T) {
	f := newFixture(t, nil)
	for _, tag := range []string{"c", "a", "b", "d"} {
		f.pushImage("shop/web", tag, "layer", nil)
	}
	answer := f.want(200, "GET", "/v2/shop/web/tags/list?n=2", "")
	if got := read(t, answer); !strings.Contains(got, `["a","b"]`) {
		t.Errorf("first page %s", got)
	}
	next := answer.Header.Get("Link")
	if next != `</v2/shop/web/tags/list?last=b&n=2>; rel="next"` {
		t.Errorf("Link is %q", next)
	}
	answer = f.want(200, "GET", "/v2/shop/web/tags/list?last=b&n=2", "")
	if got := read(t, answer); !strings.Contains(got, `["c","d"]`) || answer.Header.Get("Link") != "" {
		t.Errorf("last page %s, Link %q", got, answer.Header.Get("Link"))
	}
	if got := read(t, f.want(200, "GET", "/v2/shop/web/tags/list?n=0", "")); !strings.Contains(got, `[]`) {
		t.Errorf("empty page %s", got)
	}
}

func TestFullDisk(t *testing.T) {
	f := newFixture(t, nil)
	f.free = 9
	for _, path := range []string{"/v2/shop/web/blobs/uploads/", "/v2/shop/web/blobs/uploads/?digest=" + digest.FromString("x").String()} {
		if text := read(t, f.want(507, "POST", path, "x")); !strings.Contains(text, "gantry image prune") || !strings.Contains(text, `"DENIED"`) {
			t.Errorf("answer %s", text)
		}
	}
	f.free = 11
	if err := f.store.room(2 << 30); err == nil {
		t.Error("2 GB of 11 with 10 to stay are taken in")
	}
	f.pushBlob("shop/web", "small")
}

func TestRights(t *testing.T) {
	var asked []Need
	f := newFixture(t, func(o *Options) {
		o.Allowed = func(_ *http.Request, need Need) bool {
			asked = append(asked, need)
			return need.Project == "mine"
		}
	})
	f.pushImage("other/web", "v1", "secret layer", nil)
	f.pushImage("mine/web", "v1", "layer", nil)
	d := digest.FromString("secret layer")
	f.want(202, "POST", "/v2/mine/web/blobs/uploads/?mount="+d.String()+"&from=other/web", "")
	f.want(404, "GET", "/v2/mine/web/blobs/"+d.String(), "")
	if got := read(t, f.want(200, "GET", "/v2/_catalog", "")); got != `{"repositories":["mine/web"]}` {
		t.Errorf("catalog %s", got)
	}
	for _, tc := range []struct {
		method, path string
		want         Need
	}{
		{"GET", "/v2/", Need{}},
		{"GET", "/v2/_catalog", Need{}},
		{"GET", "/v2/p/a/manifests/x", Need{VerbGet, "p", "a"}},
		{"HEAD", "/v2/p/a/b/manifests/x", Need{VerbGet, "p", "a"}},
		{"PUT", "/v2/p/a/manifests/x", Need{VerbCreate, "p", "a"}},
		{"DELETE", "/v2/p/a/manifests/x", Need{VerbDelete, "p", "a"}},
		{"GET", "/v2/p/a/blobs/sha256:x", Need{VerbGet, "p", "a"}},
		{"DELETE", "/v2/p/a/blobs/sha256:x", Need{VerbDelete, "p", "a"}},
		{"POST", "/v2/p/a/blobs/uploads/", Need{VerbCreate, "p", "a"}},
		{"POST", "/v2/p/a/blobs/uploads", Need{VerbCreate, "p", "a"}},
		{"GET", "/v2/p/a/blobs/uploads/x", Need{VerbCreate, "p", "a"}},
		{"DELETE", "/v2/p/a/blobs/uploads/x", Need{VerbCreate, "p", "a"}},
		{"GET", "/v2/p/a/tags/list", Need{VerbList, "p", "a"}},
		{"GET", "/v2/p/a/referrers/x", Need{VerbGet, "p", "a"}},
		{"OPTIONS", "/v2/p/a/blobs/x", Need{VerbCreate, "p", "a"}},
	} {
		r := httptest.NewRequestWithContext(t.Context(), tc.method, tc.path, nil)
		if got := NeedOf(r); got != tc.want {
			t.Errorf("NeedOf(%s %s) = %v; want %v", tc.method, tc.path, got, tc.want)
		}
	}
}

func FuzzParseRoute(f *testing.F) {
	for _, path := range []string{"/v2/", "/v2/a/b/tags/list", "/v2/a/b/blobs/uploads/x", "/v2/a/../b/manifests/x", "/v2/a/b/c/referrers/sha256:0"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		at, err := parseRoute(path)
		if err == nil && at.repo.Name != "" {
			if _, err := ParseRepository(at.repo.Name); err != nil || strings.Contains(at.repo.Name, "..") || strings.HasPrefix(at.repo.Project, "_") {
				t.Errorf("parseRoute(%q) gives repository %q", path, at.repo.Name)
			}
			if bytes.ContainsRune([]byte(at.name), '/') {
				t.Errorf("parseRoute(%q) gives name %q", path, at.name)
			}
		}
	})
}
