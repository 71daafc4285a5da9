package api

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/api/surface"
	"gantry.dev/gantry/internal/store"
)

// TestEveryKindAsUpstream takes an object of every kind and version through the verbs and compares
// every answer, and the form in etcd, with what test/upstream/golden saw a kube-apiserver do.
func TestEveryKindAsUpstream(t *testing.T) {
	c := startWith(t, Options{}, registry.Options{RuntimeConfig: registry.RuntimeConfig{"api/all": "true"}}, store.Options{})
	want := upstreamSurface(t, "upstream-objects")
	paths, err := filepath.Glob("testdata/objects/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	left := c.storedResources()
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".yaml")
		delete(left, name)
		t.Run(name, func(t *testing.T) {
			document, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := surface.Exercise(func(method, path, contentType string, body []byte) (surface.Answer, error) {
				w := c.do(t, "kubernetes-admin", method, path, strings.NewReader(string(body)), "Content-Type", contentType)
				return surface.Answer{Code: w.Code, Body: w.Body.Bytes(), Warnings: w.Result().Header.Values("Warning")}, nil
			}, surface.Subject{Name: name, Document: document, Stored: func() (string, error) { return c.stored(t, name, document) }})
			if err != nil {
				t.Fatal(err)
			}
			compareProtocols(t, got, want[name+".txt"])
		})
	}
	delete(left, "apiextensions.k8s.io.v1.customresourcedefinitions")
	for name := range left {
		t.Errorf("testdata/objects has no %s.yaml", name)
	}
}

// storedResources are the names of all resources that are stored, as the files are called.
func (c *cluster) storedResources() map[string]bool {
	names := map[string]bool{}
	for resource, ep := range c.routes().endpoints {
		if ep.verbs["watch"] {
			names[fileName(resource)] = true
		}
	}
	return names
}

func fileName(resource schema.GroupVersionResource) string {
	group := resource.Group
	if group == "" {
		group = "core"
	}
	return group + "." + resource.Version + "." + resource.Resource
}

// stored describes what the table of a resource writes to etcd for the object.
func (c *cluster) stored(t *testing.T, name string, document []byte) (string, error) {
	var object struct {
		Metadata struct{ Name, Namespace string } `json:"metadata"`
	}
	if err := yaml.Unmarshal(document, &object); err != nil {
		return "", err
	}
	for resource, ep := range c.routes().endpoints {
		if fileName(resource) != name {
			continue
		}
		res := c.registry.ResourceOf(ep.Stored)
		entry, err := res.Get(t.Context(), object.Metadata.Namespace, object.Metadata.Name, "")
		if err != nil {
			return "", err
		}
		table := strings.TrimSuffix(res.Info.Resource.Resource+"."+res.Info.Resource.Group, ".")
		i := slices.IndexFunc(c.registry.Kinds(), func(kind *store.Kind) bool { return kind.Name == table })
		kind := c.registry.Kinds()[i]
		value, err := kind.Codec.Encode(entry.Object)
		if err != nil {
			return "", err
		}
		back, err := kind.Codec.Decode(value)
		if err != nil {
			return "", err
		}
		if again, err := kind.Codec.Encode(back); err != nil || string(again) != string(value) {
			return "", fmt.Errorf("a stored %s is another once it was read (%v)", name, err)
		}
		return surface.DescribeStored(kind.Prefix+kind.Key(object.Metadata.Namespace, object.Metadata.Name), value)
	}
	return "", fmt.Errorf("%s is not served", name)
}

// compareProtocols reports the steps that differ.
func compareProtocols(t *testing.T, got, want string) {
	t.Helper()
	gotSteps, wantSteps := strings.Split(got, "== "), strings.Split(want, "== ")
	for i := range max(len(gotSteps), len(wantSteps)) {
		var g, w string
		if i < len(gotSteps) {
			g = gotSteps[i]
		}
		if i < len(wantSteps) {
			w = wantSteps[i]
		}
		if key, sealed := strings.CutSuffix(strings.TrimSpace(w), " sealed"); sealed && strings.HasPrefix(g, key+" ") {
			continue // the tests' registry has no key
		}
		if g != w {
			t.Errorf("here:\n%s\nupstream:\n%s\n%s", g, w, firstDifference(g, w))
		}
	}
}

func firstDifference(got, want string) string {
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(gotLines), len(wantLines)) {
		if gotLines[i] != wantLines[i] {
			return fmt.Sprintf("first difference in line %d: %q, want %q", i, gotLines[i], wantLines[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(gotLines), len(wantLines))
}
