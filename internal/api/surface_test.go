package api

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/api/surface"
	"gantry.dev/gantry/internal/store"
)

// upstreamSurface is what test/upstream/golden wrote down of kube-apiserver.
func upstreamSurface(t *testing.T, dir string) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", dir, "*.txt"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no files in testdata/%s: %v", dir, err)
	}
	files := map[string]string{}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Base(path)] = string(data)
	}
	return files
}

func (c *cluster) surface(t *testing.T) map[string]string {
	t.Helper()
	files, err := surface.Collect(func(path, accept string) ([]byte, error) {
		w := c.do(t, "root", http.MethodGet, path, nil, "Accept", accept)
		if w.Code != http.StatusOK {
			return nil, fmt.Errorf("%d: %s", w.Code, w.Body)
		}
		return w.Body.Bytes(), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestEverythingThatUpstreamServes compares groups, resources, verbs, columns and OpenAPI
// operations with a real kube-apiserver's.
func TestEverythingThatUpstreamServes(t *testing.T) {
	compareSurfaces(t, start(t, Options{}).surface(t), upstreamSurface(t, "upstream"))
}

// TestEveryVersionThatUpstreamServes does the same with every version switched on.
func TestEveryVersionThatUpstreamServes(t *testing.T) {
	want := upstreamSurface(t, "upstream")
	maps.Copy(want, upstreamSurface(t, "upstream-all"))
	c := startWith(t, Options{}, registry.Options{RuntimeConfig: registry.RuntimeConfig{"api/all": "true"}}, store.Options{})
	compareSurfaces(t, c.surface(t), want)
}

func compareSurfaces(t *testing.T, got, want map[string]string) {
	t.Helper()
	for name, text := range want {
		t.Run(strings.TrimSuffix(name, ".txt"), func(t *testing.T) { compareLines(t, got[name], text) })
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s is served, and not by upstream", name)
	}
}

// compareLines reports lines that only one of two texts has.
func compareLines(t *testing.T, got, want string) {
	t.Helper()
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(want, "\n")
	for _, line := range wantLines {
		if !slices.Contains(gotLines, line) {
			t.Errorf("upstream: %s", line)
		}
	}
	for _, line := range gotLines {
		if !slices.Contains(wantLines, line) {
			t.Errorf("here:     %s", line)
		}
	}
	if !t.Failed() && len(gotLines) == len(wantLines) && got != want {
		t.Error("the lines are the same, and their order is not")
	}
}
