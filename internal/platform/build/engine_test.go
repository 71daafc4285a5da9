//go:build linux

package build_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"gantry.dev/gantry/internal/platform/build"
	"gantry.dev/gantry/internal/platform/build/job"
	"gantry.dev/gantry/internal/programs"
)

// bench is an engine with a registry in memory.
type bench struct {
	t        *testing.T
	engine   *build.Engine
	opts     build.EngineOptions
	registry http.Handler
	server   *httptest.Server
	stop     func()
}

// unpacked are the embedded programs by name.
func unpacked(t *testing.T) map[string]string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	set, err := programs.Open(filepath.Join(t.TempDir(), "bin"))
	if err != nil {
		t.Fatal(err)
	}
	paths := map[string]string{}
	for _, name := range []string{programs.Build, programs.Runc, programs.Static} {
		if paths[name], err = set.Path(name); err != nil {
			t.Skip(err)
		}
		if err := set.Unpack(name); err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

func newBench(t *testing.T, change func(*build.EngineOptions)) *bench {
	t.Helper()
	paths := unpacked(t)
	run, err := os.MkdirTemp("", "gb") // socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	b := &bench{t: t, opts: build.EngineOptions{
		Program: paths[programs.Build], Runc: paths[programs.Runc], Static: paths[programs.Static],
		Dir: t.TempDir(), RunDir: run, CacheBytes: 2 << 30, MemoryBytes: 2 << 30,
		CPUWeight: 8192, // tests do not wait for what else the machine does
	}}
	if own := os.Getenv("GANTRY_BUILD_PROGRAM"); own != "" { // a fresh one, before it is embedded
		b.opts.Program = own
	}
	if change != nil {
		change(&b.opts)
	}
	b.registry = registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))
	b.server = httptest.NewServer(b.registry)
	t.Cleanup(b.server.Close)
	b.start()
	return b
}

// start runs an engine.
func (b *bench) start() {
	b.t.Helper()
	engine, err := build.NewEngine(b.opts)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- engine.Run(ctx) }()
	b.engine = engine
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run: %v", err)
		}
	})
	b.t.Cleanup(b.stop)
}

const shop = job.RegistryHost + "/shop/web"

func (b *bench) ref(repo string) name.Repository {
	b.t.Helper()
	r, err := name.NewRepository(strings.TrimPrefix(b.server.URL, "http://")+"/"+repo, name.Insecure)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// upload puts files into the repository as a layer.
func (b *bench) upload(files map[string]string) string {
	b.t.Helper()
	var buffer bytes.Buffer
	zipped := gzip.NewWriter(&buffer)
	w := tar.NewWriter(zipped)
	names := make([]string, 0, len(files))
	for file := range files {
		names = append(names, file)
	}
	slices.Sort(names)
	for _, file := range names {
		if err := w.WriteHeader(&tar.Header{Name: file, Mode: 0o644, Size: int64(len(files[file])), Typeflag: tar.TypeReg}); err != nil {
			b.t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[file]); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.t.Fatal(err)
	}
	if err := zipped.Close(); err != nil {
		b.t.Fatal(err)
	}
	layer := static.NewLayer(buffer.Bytes(), types.OCILayer)
	if err := remote.WriteLayer(b.ref("shop/web"), layer); err != nil {
		b.t.Fatal(err)
	}
	sum, err := layer.Digest()
	if err != nil {
		b.t.Fatal(err)
	}
	return sum.String()
}

// base pushes an image with busybox as repo:latest.
func (b *bench) base(repo string) v1.Image {
	b.t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		b.t.Skip("needs /bin/busybox, static: ", err)
	}
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	add := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			b.t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			b.t.Fatal(err)
		}
	}
	add(tar.Header{Name: "bin/", Mode: 0o755, Typeflag: tar.TypeDir}, nil)
	add(tar.Header{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}, nil)
	add(tar.Header{Name: "bin/busybox", Mode: 0o755, Typeflag: tar.TypeReg}, busybox)
	for _, tool := range []string{"sh", "cat", "ls", "echo", "sleep", "wget", "grep", "env", "mkdir", "id", "nc", "mv", "test", "mount", "date", "stat", "cp", "touch", "dd", "true", "ip"} {
		add(tar.Header{Name: "bin/" + tool, Linkname: "busybox", Typeflag: tar.TypeSymlink}, nil)
	}
	if err := w.Close(); err != nil {
		b.t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buffer.Bytes())), nil })
	if err != nil {
		b.t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		b.t.Fatal(err)
	}
	img, err = mutate.Config(img, v1.Config{Env: []string{"PATH=/bin"}, Cmd: []string{"/bin/sh"}})
	if err != nil {
		b.t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		b.t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, config); err != nil {
		b.t.Fatal(err)
	}
	if err := remote.Write(b.ref(repo).Tag("latest"), img); err != nil {
		b.t.Fatal(err)
	}
	return img
}

// build builds files and returns all events; the last is Done or Failed.
func (b *bench) build(files map[string]string, change func(*job.Request)) []job.Event {
	b.t.Helper()
	events, err := b.try(b.t.Context(), files, change, nil)
	if err != nil {
		b.t.Fatalf("Build: %v\n%s", err, transcript(events))
	}
	return events
}

func (b *bench) try(ctx context.Context, files map[string]string, change func(*job.Request), watch func(job.Event)) ([]job.Event, error) {
	b.t.Helper()
	request := job.Request{Repository: shop, App: "web", Source: b.upload(files), Time: time.Unix(1_700_000_000, 0)}
	if change != nil {
		change(&request)
	}
	var events []job.Event
	_, err := b.engine.Build(ctx, request, build.Images{Registry: b.registry}, func(e job.Event) {
		events = append(events, e)
		if watch != nil {
			watch(e)
		}
	})
	return events, err
}

func transcript(events []job.Event) string {
	var text strings.Builder
	for _, e := range events {
		fmt.Fprintf(&text, "%s %s %s %s:%d\n", e.Type, e.Step, e.Text, e.File, e.Line)
	}
	return text.String()
}

// image returns the image of a build that succeeded.
func (b *bench) image(events []job.Event) (v1.Image, string) {
	b.t.Helper()
	last := events[len(events)-1]
	if last.Type != job.Done {
		b.t.Fatalf("the build failed:\n%s", transcript(events))
	}
	_, sum, _ := strings.Cut(last.Image, "@")
	img, err := remote.Image(b.ref("shop/web").Digest(sum))
	if err != nil {
		b.t.Fatal(err)
	}
	return img, sum
}

// contents are the files of an image with their text, folders without.
func (b *bench) contents(img v1.Image) map[string]string {
	b.t.Helper()
	files := map[string]string{}
	r := mutate.Extract(img)
	defer r.Close()
	reader := tar.NewReader(r)
	for {
		header, err := reader.Next()
		if err != nil {
			return files
		}
		data, err := io.ReadAll(reader)
		if err != nil {
			b.t.Fatal(err)
		}
		files[header.Name] = string(data)
	}
}

func TestDockerfile(t *testing.T) {
	b := newBench(t, nil)
	b.base("base/busybox")
	files := map[string]string{
		".dockerignore": "ignored.txt\n",
		"ignored.txt":   "not in the image",
		"kept.txt":      "in the image",
		"Dockerfile": `# syntax=docker/dockerfile:1
ARG BASE=registry.gantry.internal/base/busybox
FROM ${BASE} AS one
ARG COLOR=red
RUN --mount=type=cache,target=/cache echo "$COLOR" > /color && echo x >> /cache/count
RUN --mount=type=secret,id=TOKEN <<EOF
echo "the token is $(cat /run/secrets/TOKEN)"
echo heredoc > /heredoc
EOF
FROM scratch
COPY --from=one /color /heredoc /
COPY . /src
CMD ["/nothing"]
`,
	}
	request := func(r *job.Request) {
		r.Args, r.Secrets, r.Commit = map[string]string{"COLOR": "blue"}, map[string][]byte{"TOKEN": []byte("s3cr3t-t0ken\n")}, "abc123"
	}
	events := b.build(files, request)
	img, sum := b.image(events)
	text := transcript(events)
	if strings.Contains(text, "s3cr3t") || !strings.Contains(text, "the token is •••") {
		t.Errorf("the secret is not hidden:\n%s", text)
	}
	for _, want := range []string{"found  Dockerfile", "step  one 2/3 RUN --mount=type=cache"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	got := b.contents(img)
	if got["color"] != "blue\n" || got["heredoc"] != "heredoc\n" || got["src/kept.txt"] == "" || got["src/ignored.txt"] != "" {
		t.Errorf("the image holds %q", got)
	}
	for file, data := range got {
		if strings.Contains(data, "s3cr3t") {
			t.Errorf("%s holds the secret", file)
		}
	}
	config, err := img.ConfigFile()
	if err != nil || config.Config.Labels["org.opencontainers.image.revision"] != "abc123" || config.Created.Unix() != 1_700_000_000 {
		t.Errorf("config = %+v, %v", config, err)
	}
	index, err := remote.Referrers(b.ref("shop/web").Digest(sum))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 || manifest.Manifests[0].ArtifactType != "application/vnd.in-toto+json" {
		t.Errorf("referrers = %+v, %v; want the provenance", manifest, err)
	}
	// Another engine with an empty cache makes the same image.
	b.stop()
	b.opts.Dir = t.TempDir()
	b.start()
	if _, again := b.image(b.build(files, request)); again != sum {
		t.Errorf("built again with an empty cache: %s, want %s", again, sum)
	}
}

func TestFailures(t *testing.T) {
	b := newBench(t, nil)
	b.base("base/busybox")
	from := "FROM registry.gantry.internal/base/busybox\n"
	for name, tc := range map[string]struct {
		files map[string]string
		want  job.Event
	}{
		"exit code":    {map[string]string{"Dockerfile": from + "\nRUN echo no >&2; exit 3\n"}, job.Event{File: "Dockerfile", Line: 3, Exit: 3, Text: "exit code 3"}},
		"parse":        {map[string]string{"Dockerfile": from + "RUM true\n"}, job.Event{File: "Dockerfile", Line: 2, Text: "RUM"}},
		"no file":      {map[string]string{"Dockerfile": from + "COPY nothing /\n"}, job.Event{File: "Dockerfile", Line: 2, Text: "nothing"}},
		"no base":      {map[string]string{"Dockerfile": "FROM registry.gantry.internal/base/none\n"}, job.Event{File: "Dockerfile", Line: 1, Text: "base/none"}},
		"other syntax": {map[string]string{"Dockerfile": "# syntax=example.com/evil:1\n" + from}, job.Event{File: "Dockerfile", Line: 1, Text: "not known"}},
		"host network": {map[string]string{"Dockerfile": from + "RUN --network=host true\n"}, job.Event{Text: "network.host"}},
		"insecure":     {map[string]string{"Dockerfile": from + "RUN --security=insecure true\n"}, job.Event{Text: "insecure"}},
		"unknown":      {map[string]string{"README": "hello"}, job.Event{Text: "nothing that could be deployed"}},
		"several": {map[string]string{
			"go.mod": "module example.com/m\n\ngo 1.24\n", "cmd/a/main.go": "package main\nfunc main() {}\n", "cmd/b/main.go": "package main\nfunc main() {}\n",
		}, job.Event{Text: "cmd/b"}},
		"go error": {map[string]string{
			"go.mod": "module example.com/m\n\ngo 1.24\n", "main.go": "package main\n\nfunc main() { x }\n",
		}, job.Event{File: "main.go", Line: 3, Exit: 1, Text: "undefined: x"}},
	} {
		t.Run(name, func(t *testing.T) {
			events := b.build(tc.files, nil)
			got := events[len(events)-1]
			if got.Type != job.Failed || got.File != tc.want.File || got.Line != tc.want.Line || got.Exit != tc.want.Exit || !strings.Contains(got.Text, tc.want.Text) {
				t.Errorf("the last event is %+v, want %+v", got, tc.want)
			}
		})
	}
}
