package gobuild

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// writeModule makes a Go module in a folder of its own.
func writeModule(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const helloMain = "package main\n\nfunc main() { println(\"hello\") }\n"

func TestBuild(t *testing.T) {
	files := map[string]string{"go.mod": "module example.com/hello/v2\n\ngo 1.24\n", "main.go": helloMain}
	var first, second bytes.Buffer
	result, err := Build(t.Context(), Options{Dir: writeModule(t, files), Name: "hello:dev", Args: []string{"-x"}}, &first)
	if err != nil {
		t.Fatal(err)
	}
	if result.Name != "hello:dev" || result.Program != "/app/hello" || !strings.HasPrefix(result.ID, "sha256:") || result.SizeBytes == 0 {
		t.Errorf("Build = %+v", result)
	}
	if _, err := Build(t.Context(), Options{Dir: writeModule(t, files), Name: "hello:dev", Args: []string{"-x"}}, &second); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same source in two folders gave two images")
	}
	img, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(first.Bytes())), nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.User != "65532:65532" || !slices.Equal(config.Config.Entrypoint, []string{"/app/hello"}) || !slices.Equal(config.Config.Cmd, []string{"-x"}) {
		t.Errorf("image config = %+v", config.Config)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]int64{}
	for _, layer := range layers {
		reader, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		for tr := tar.NewReader(reader); ; {
			header, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			modes[header.Name] = header.Mode
		}
	}
	for name, mode := range map[string]int64{"app/hello": 0o755, "tmp/": 0o1777, "etc/passwd": 0o644} {
		if modes[name] != mode {
			t.Errorf("%s has mode %o, want %o", name, modes[name], mode)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		dir   string
		want  string
	}{
		"not main":      {map[string]string{"go.mod": "module m\n", "a.go": "package lib\n"}, "", ErrNotMain.Error()},
		"no module":     {map[string]string{"main.go": helloMain}, "", "go mod init"},
		"no Go files":   {map[string]string{"go.mod": "module m\n"}, "", "no Go files"},
		"no folder":     {nil, "nothing", "not a folder"},
		"type error":    {map[string]string{"go.mod": "module m\n", "main.go": "package main\n\nfunc main() { var x int = \"a\" }\n"}, "", "main.go:3"},
		"missing thing": {map[string]string{"go.mod": "module m\n", "main.go": "package main\n\nimport \"m/nothing\"\n\nfunc main() { nothing.Do() }\n"}, "", "m/nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := writeModule(t, tc.files)
			var out bytes.Buffer
			_, err := Build(t.Context(), Options{Dir: filepath.Join(dir, tc.dir), Env: []string{"GOWORK=off"}}, &out)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Build: %v, want something with %q", err, tc.want)
			}
			if out.Len() != 0 {
				t.Errorf("%d bytes were written although it failed", out.Len())
			}
		})
	}
	t.Run("no go command", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if _, err := Build(t.Context(), Options{Dir: t.TempDir()}, io.Discard); !errors.Is(err, ErrNoGo) {
			t.Errorf("Build: %v, want ErrNoGo", err)
		}
	})
}

func TestImageName(t *testing.T) {
	for program, want := range map[string]string{"hello": "hello:latest", "My_App": "my-app:latest", "...": "app:latest"} {
		if got := imageName(program); got != want {
			t.Errorf("imageName(%q) = %q, want %q", program, got, want)
		}
	}
}
