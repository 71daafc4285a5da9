package backup

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func newKey(t *testing.T) Key {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

var errProduce = errors.New("the database is down")

// sample is a backup with a file of each sort.
func sample(t *testing.T, key Key) (data, large []byte) {
	t.Helper()
	large = make([]byte, 3*partBytes+17)
	_, _ = rand.Read(large)
	var out bytes.Buffer
	w, err := NewWriter(&out, key.Public, Head{Gantry: "v1", Cluster: "c", Taken: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.File("etcd.snapshot", int64(len(large)), bytes.NewReader(large)); err != nil {
		t.Fatal(err)
	}
	n, err := w.Stream("dumps/a", func(to io.Writer) error { _, err := to.Write(large); return err })
	if err != nil || n != int64(len(large)) {
		t.Fatalf("Stream = %d, %v", n, err)
	}
	_, err = w.Stream("dumps/failed", func(to io.Writer) error {
		_, _ = to.Write(large)
		return errProduce
	})
	if _, ok := errors.AsType[*ProduceError](err); !ok || !errors.Is(err, errProduce) {
		t.Fatalf("Stream = %v", err)
	}
	if _, err := w.Stream("dumps/empty", func(io.Writer) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(Manifest{Revision: 42}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), large
}

// readAll returns the files of a backup.
func readAll(data []byte, secret string) (map[string][]byte, *Manifest, error) {
	r, err := NewReader(bytes.NewReader(data), secret)
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	files := map[string][]byte{}
	for {
		name, content, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, r.Manifest(), nil
		}
		if err != nil {
			return nil, nil, err
		}
		data, err := io.ReadAll(content)
		if errors.Is(err, ErrAbandoned) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		files[name] = data
	}
}

func TestRoundTrip(t *testing.T) {
	key := newKey(t)
	data, large := sample(t, key)
	files, manifest, err := readAll(data, "# created: today\n"+key.Secret+"\n")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 3 || !bytes.Equal(files["etcd.snapshot"], large) || !bytes.Equal(files["dumps/a"], large) || len(files["dumps/empty"]) != 0 {
		t.Errorf("it holds %d files", len(files))
	}
	if manifest.Revision != 42 || manifest.Gantry != "v1" || manifest.Bytes < int64(2*len(large)) {
		t.Errorf("its manifest is %+v", manifest)
	}
	if bytes.Contains(data, []byte("etcd.snapshot")) {
		t.Error("a name can be read without the key")
	}
	r, err := NewReader(bytes.NewReader(data), key.Secret)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for { // nothing is read, only skipped
		if _, _, err = r.Next(); err != nil {
			break
		}
	}
	if !errors.Is(err, io.EOF) || r.Manifest() == nil {
		t.Errorf("skipping ends with %v", err)
	}
}

func TestBroken(t *testing.T) {
	key := newKey(t)
	data, _ := sample(t, key)
	if _, _, err := readAll(data, newKey(t).Secret); !errors.Is(err, ErrKey) {
		t.Errorf("with another key: %v", err)
	}
	if _, _, err := readAll(data, "AGE-SECRET-KEY-1NONSENSE"); err == nil || strings.Contains(err.Error(), "NONSENSE") {
		t.Errorf("with no key: %v", err)
	}
	for at := 0; at < len(data); at += len(data)/97 + 1 {
		if _, _, err := readAll(data[:at], key.Secret); !errors.Is(err, ErrBroken) {
			t.Errorf("cut off at %d of %d: %v", at, len(data), err)
		}
		changed := bytes.Clone(data)
		changed[at] ^= 0x20
		if _, _, err := readAll(changed, key.Secret); err == nil {
			t.Errorf("changed at %d of %d: no error", at, len(data))
		}
	}
	if _, _, err := readAll(data[:len(data)-1], key.Secret); !errors.Is(err, ErrBroken) {
		t.Errorf("without its last byte: %v", err)
	}
	if _, _, err := readAll(append(bytes.Clone(data), 'x'), key.Secret); !errors.Is(err, ErrBroken) {
		t.Errorf("with a byte more: %v", err)
	}
}

func TestTree(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "new")
	for name, text := range map[string]string{"a": "1", "deep/er/b": "22", "empty": ""} {
		path := filepath.Join(from, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, []byte(text), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("/etc/passwd", filepath.Join(from, "link")), os.Chmod(filepath.Join(from, "deep"), 0o510|os.ModeSticky)); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	if err := PackTree(t.Context(), from, &packed); err != nil {
		t.Fatal(err)
	}
	if err := UnpackTree(t.Context(), bytes.NewReader(packed.Bytes()), to); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(to, "deep/er/b"))
	info, statErr := os.Stat(filepath.Join(to, "deep"))
	link, linkErr := os.Readlink(filepath.Join(to, "link"))
	if err = errors.Join(err, statErr, linkErr); err != nil || string(text) != "22" || info.Mode().Perm() != 0o510 || info.Mode()&os.ModeSticky == 0 || link != "/etc/passwd" {
		t.Errorf("unpacked %q, %v, %q, %v", text, info, link, err)
	}
	if err := UnpackTree(t.Context(), bytes.NewReader(packed.Bytes()[:packed.Len()/2]), filepath.Join(t.TempDir(), "half")); err == nil {
		t.Error("half of it was unpacked without an error")
	}
}

func TestNamesAndRetention(t *testing.T) {
	taken := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	var items []Item
	for i := range 5 {
		at := taken.Add(time.Duration(i) * time.Hour)
		items = append(items, Item{Name: Name("11112222-3333", at), Taken: at}, Item{Name: Name("99998888-7777", at), Taken: at})
	}
	items = append(items, Item{Name: "gantry-11112222-holiday.backup"}, Item{Name: "notes.txt"})
	gone := Surplus(items, "11112222-3333", 3)
	if len(gone) != 2 || gone[0].Name != "gantry-11112222-20260304T060607Z.backup" || gone[1].Name != "gantry-11112222-20260304T050607Z.backup" {
		t.Errorf("Surplus = %v", gone)
	}
	if at, ok := takenOf(items[0].Name); !ok || !at.Equal(taken) {
		t.Errorf("takenOf = %v, %t", at, ok)
	}
}

func TestSchedule(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC) // a Wednesday
	for text, want := range map[string]string{
		"hourly": "2026-03-04T05:07:00Z", "daily": "2026-03-05T03:07:00Z", "weekly": "2026-03-08T03:07:00Z", "*/15 * * * *": "2026-03-04T05:15:00Z",
		"": "", "often": "", "TZ=Europe/Oslo 1 1 * * *": "", "@every 1s": "",
	} {
		s, err := ParseSchedule(text)
		if (err != nil) != (want == "") {
			t.Errorf("ParseSchedule(%q): %v", text, err)
		}
		if err == nil && s.Next(now).Format(time.RFC3339) != want {
			t.Errorf("%q comes next at %v, want %s", text, s.Next(now), want)
		}
	}
}

// fakeS3 keeps the objects of one bucket, and refuses the first request of each upload's part.
type fakeS3 struct {
	mu      sync.Mutex
	objects map[string][]byte
	parts   map[string][]byte
	refused int
	bad     []string
}

func (f *fakeS3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	key, query := strings.TrimPrefix(r.URL.Path, "/bucket"), r.URL.Query()
	key = strings.TrimPrefix(key, "/")
	again := &bucket{credentials: Credentials{AccessKey: "id", SecretKey: "secret", Region: "here"}, now: func() time.Time {
		at, _ := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
		return at
	}}
	check := r.Clone(r.Context())
	check.URL.Host = r.Host
	again.sign(check, body)
	if got := r.Header.Get("Authorization"); got != check.Header.Get("Authorization") {
		f.bad = append(f.bad, r.Method+" "+r.URL.String())
		http.Error(w, "<Error><Code>SignatureDoesNotMatch</Code></Error>", http.StatusForbidden)
		return
	}
	switch {
	case r.Method == http.MethodPost && query.Has("uploads"):
		_, _ = io.WriteString(w, "<InitiateMultipartUploadResult><UploadId>up/1</UploadId></InitiateMultipartUploadResult>")
	case r.Method == http.MethodPut && query.Get("uploadId") == "up/1":
		if f.refused++; f.refused == 1 {
			http.Error(w, "<Error><Code>SlowDown</Code></Error>", http.StatusServiceUnavailable)
			return
		}
		f.parts[query.Get("partNumber")] = body
		w.Header().Set("ETag", `"e`+query.Get("partNumber")+`"`)
	case r.Method == http.MethodPost && query.Get("uploadId") == "up/1":
		var list struct {
			Part []objectPartDone `xml:"Part"`
		}
		_ = xml.Unmarshal(body, &list)
		var whole []byte
		for _, part := range list.Part {
			if part.ETag != fmt.Sprintf(`"e%d"`, part.PartNumber) {
				_, _ = io.WriteString(w, "<Error><Code>InvalidPart</Code></Error>")
				return
			}
			whole = append(whole, f.parts[fmt.Sprint(part.PartNumber)]...)
		}
		f.objects[key], f.parts = whole, map[string][]byte{}
		_, _ = io.WriteString(w, "<CompleteMultipartUploadResult/>")
	case r.Method == http.MethodDelete:
		if query.Has("uploadId") {
			f.parts = map[string][]byte{}
		} else {
			delete(f.objects, key)
		}
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodGet && query.Get("list-type") == "2":
		f.list(w, query.Get("prefix"), query.Get("continuation-token"))
	case f.objects[key] != nil:
		_, _ = w.Write(f.objects[key])
	default:
		http.Error(w, "<Error><Code>NoSuchKey</Code></Error>", http.StatusNotFound)
	}
}

// list answers one object a page.
func (f *fakeS3) list(w io.Writer, prefix, after string) {
	var keys []string
	for key := range f.objects {
		if strings.HasPrefix(key, prefix) && key > after {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	text := "<ListBucketResult>"
	if len(keys) > 0 {
		text += fmt.Sprintf("<Contents><Key>%s</Key><Size>%d</Size></Contents>", keys[0], len(f.objects[keys[0]]))
	}
	if len(keys) > 1 {
		text += "<IsTruncated>true</IsTruncated><NextContinuationToken>" + keys[0] + "</NextContinuationToken>"
	}
	_, _ = io.WriteString(w, text+"</ListBucketResult>")
}

func testPlace(t *testing.T, p Place) {
	t.Helper()
	ctx := t.Context()
	large := make([]byte, objectPart+100)
	_, _ = rand.Read(large)
	first, second := Name("c", time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)), Name("c", time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC))
	for name, content := range map[string][]byte{first: large, second: []byte("small")} {
		up, err := p.Create(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		for chunk := range slices.Chunk(content, 1<<20) {
			if _, err := up.Write(chunk); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := p.Open(ctx, name); !errors.Is(err, ErrNotFound) {
			t.Errorf("before its end: %v", err)
		}
		if err := up.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	up, err := p.Create(ctx, Name("c", time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	_, err = up.Write(large)
	up.Abort()
	items, listErr := p.List(ctx)
	if err = errors.Join(err, listErr); err != nil || len(items) != 2 || items[0].Name != second || items[1].Bytes != int64(len(large)) {
		t.Fatalf("List = %v, %v", items, err)
	}
	file, err := p.Open(ctx, first)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(file)
	if err = errors.Join(err, file.Close()); err != nil || !bytes.Equal(got, large) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(large), err)
	}
	if err := p.Remove(ctx, first); err != nil {
		t.Fatal(err)
	}
	if items, err := p.List(ctx); err != nil || len(items) != 1 {
		t.Errorf("after Remove: %v, %v", items, err)
	}
}

func TestDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backups")
	p, err := Open(dir, Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	testPlace(t, p)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
	for _, where := range []string{"relative/dir", "ftp://host/dir"} {
		if _, err := Open(where, Credentials{}); err == nil {
			t.Errorf("Open(%q) has no error", where)
		}
	}
}

func TestS3(t *testing.T) {
	fake := &fakeS3{objects: map[string][]byte{}, parts: map[string][]byte{}}
	server := httptest.NewServer(fake)
	defer server.Close()
	p, err := Open("s3://bucket/of mine/x", Credentials{AccessKey: "id", SecretKey: "secret", Region: "here", Endpoint: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	p.(*bucket).pause = time.Millisecond
	testPlace(t, p)
	if len(fake.bad) > 0 || len(fake.parts) > 0 {
		t.Errorf("badly signed: %v; parts left over: %d", fake.bad, len(fake.parts))
	}
	wrong, err := Open("s3://bucket", Credentials{AccessKey: "id", SecretKey: "other", Region: "here", Endpoint: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wrong.List(context.Background()); err == nil || !strings.Contains(err.Error(), "SignatureDoesNotMatch") {
		t.Errorf("with a wrong secret: %v", err)
	}
}

// TestSignature holds the signature against the example in Amazon's documentation, "Authenticating Requests (AWS Signature
// Version 4): Examples", "GET Bucket (List Objects)", but for its date's headers, which are the same.
func TestSignature(t *testing.T) {
	b := &bucket{
		credentials: Credentials{AccessKey: "AKIAIOSFODNN7EXAMPLE", SecretKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", Region: "us-east-1"},
		now:         func() time.Time { return time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC) },
	}
	r := httptest.NewRequest(http.MethodGet, "https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J", nil)
	b.sign(r, nil)
	const want = "Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
	if got := r.Header.Get("Authorization"); !strings.HasSuffix(got, want) {
		t.Errorf("Authorization is %s, want %s", got, want)
	}
}

// A backup that is not whole has no name: there is nothing to see in its folder while it is written, and nothing is left when its
// writer is killed. In the end it replaces what has its name.
func TestFileHasNoNameBeforeItIsWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "one.backup")
	names := func() []string {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, e := range entries {
			out = append(out, e.Name())
		}
		return out
	}
	for _, text := range []string{"first", "second"} {
		before := len(names())
		upload, err := NewFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(upload, text); err != nil {
			t.Fatal(err)
		}
		if got := names(); len(got) != before && runtime.GOOS == "linux" {
			t.Errorf("while it is written the folder has %q", got)
		}
		if err := upload.Commit(); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("the file holds %q, %v; want %q", got, err, text)
		}
	}
	upload, err := NewFile(path)
	if err != nil {
		t.Fatal(err)
	}
	upload.Abort()
	if got := names(); len(got) != 1 {
		t.Errorf("in the end the folder has %q", got)
	}
}
