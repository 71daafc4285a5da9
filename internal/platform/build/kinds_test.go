//go:build linux

package build_test

import (
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"gantry.dev/gantry/internal/platform/build/job"
)

// TestGo compiles a module, and once more after a change of one line.
func TestGo(t *testing.T) {
	b := newBench(t, nil)
	files := map[string]string{
		"go.mod": "module example.com/shop\n\ngo 1.24\n", "main.go": "package main\n\nimport \"net/http\"\n\nfunc main() { _ = http.ListenAndServe(\":8080\", nil) }\n",
		"Procfile": "web: shop\nworker: shop work\n",
	}
	events := b.build(files, func(r *job.Request) { r.Commit = "abc" })
	img, first := b.image(events)
	if events[0].Kind != "go" || events[0].Processes["worker"] != "shop work" {
		t.Errorf("found %+v", events[0])
	}
	config, err := img.ConfigFile()
	if err != nil || config.Config.User != "65532:65532" || config.Config.Entrypoint[0] != "/app/shop" || config.Config.Labels["org.opencontainers.image.revision"] != "abc" {
		t.Errorf("config = %+v, %v", config, err)
	}
	if files := b.contents(img); len(files["app/shop"]) < 1<<20 || files["etc/ssl/certs/ca-certificates.crt"] == "" {
		t.Error("there is no program or no certificates in the image")
	}
	if _, again := b.image(b.build(files, func(r *job.Request) { r.Commit = "abc" })); again != first {
		t.Errorf("built again: %s, want %s", again, first)
	}
	files["main.go"] = strings.Replace(files["main.go"], "8080", "8081", 1)
	start := time.Now()
	if _, other := b.image(b.build(files, nil)); other == first {
		t.Error("a changed source gave the same image")
	}
	t.Logf("after a change of one line: %v", time.Since(start))
	index, err := remote.Referrers(b.ref("shop/web").Digest(first))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil || len(manifest.Manifests) == 0 {
		t.Fatalf("there is no provenance: %+v, %v", manifest, err)
	}
	attached, err := remote.Image(b.ref("shop/web").Digest(manifest.Manifests[0].Digest.String()))
	if err != nil {
		t.Fatal(err)
	}
	layers, err := attached.Layers()
	if err != nil {
		t.Fatal(err)
	}
	reader, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	text, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	var statement struct {
		Subject []struct{ Digest map[string]string }
	}
	if err := json.Unmarshal(text, &statement); err != nil || "sha256:"+statement.Subject[0].Digest["sha256"] != first || !strings.Contains(string(text), `"gitCommit":"abc"`) {
		t.Errorf("the provenance is %s, %v", text, err)
	}
}

// TestStatic packs a folder of files behind the file server.
func TestStatic(t *testing.T) {
	b := newBench(t, nil)
	if b.opts.Static == "" {
		t.Skip("gantry-static is not built in")
	}
	files := map[string]string{"index.html": "home", ".secret": "no", "assets/a.css": "a{}"}
	img, first := b.image(b.build(files, nil))
	got := b.contents(img)
	if got["site/index.html"] != "home" || got["site/assets/a.css"] != "a{}" || got["site/.secret"] != "" || len(got["gantry-static"]) < 1<<20 {
		t.Errorf("the image holds %d files: %q", len(got), got["site/index.html"])
	}
	if _, again := b.image(b.build(files, nil)); again != first {
		t.Errorf("built again: %s, want %s", again, first)
	}
}

// TestGenerated builds a package.json with a base image of our own that has a stand-in for npm.
func TestGenerated(t *testing.T) {
	b := newBench(t, nil)
	b.base("base/busybox")
	// The bench's registry has it by digest alone: give it a name.
	img, _ := b.image(b.build(map[string]string{"Dockerfile": "FROM registry.gantry.internal/base/busybox\n" +
		"RUN printf '#!/bin/sh\\necho npm $*\\nif [ \"$1\" = run ]; then test \"$TOKEN\" = t0p-s3cret && mkdir -p dist && echo built > dist/index.html; fi\\n' > /bin/npm && busybox chmod 755 /bin/npm\n"}, nil))
	if err := remote.Write(b.ref("base/node").Tag("latest"), img); err != nil {
		t.Fatal(err)
	}
	b.stop()
	b.opts.Bases = map[string]string{"node": job.RegistryHost + "/base/node"}
	b.start()
	secret := func(r *job.Request) { r.Secrets = map[string][]byte{"TOKEN": []byte("t0p-s3cret")} }
	app, _ := b.image(b.build(map[string]string{"package.json": `{"scripts":{"start":"node server.js","build":"x"}}`, "package-lock.json": "{}", "server.js": "hello"}, secret))
	config, err := app.ConfigFile()
	if err != nil || config.Config.User != "65532:65532" || strings.Join(config.Config.Cmd, " ") != "/bin/sh -c exec npm start" {
		t.Errorf("config = %+v, %v", config.Config, err)
	}
	got := b.contents(app)
	if got["app/server.js"] != "hello" || got["app/dist/index.html"] != "built\n" {
		t.Errorf("the image holds %q and %q", got["app/server.js"], got["app/dist/index.html"])
	}
	site, _ := b.image(b.build(map[string]string{"package.json": `{"scripts":{"build":"x"}}`}, secret))
	if got := b.contents(site); got["site/index.html"] != "built\n" || got["gantry-static"] == "" || got["bin/busybox"] != "" {
		t.Errorf("the site's image holds %d files, index.html is %q", len(got), got["site/index.html"])
	}
}
