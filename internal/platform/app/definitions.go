package app

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"gantry.dev/gantry/api/crds"
	"gantry.dev/gantry/api/v1alpha1"
)

// annotationDefinition is a digest of the text that a definition was made from: one that is as it should be is not even
// parsed.
const annotationDefinition = "gantry.dev/definition"

// Definition is the text of a definition of gantry.dev, and what it is of.
type Definition struct {
	Kind   string // "App"
	Name   string // "apps.gantry.dev"
	Text   []byte
	Digest string // of the text
}

// Definitions are those of gantry.dev, or of some of its kinds.
func Definitions(kinds ...string) ([]Definition, error) {
	files, err := fs.Glob(crds.Files, "*.yaml")
	if err != nil {
		return nil, fmt.Errorf("listing the definitions of %s: %w", v1alpha1.Group, err)
	}
	var out []Definition
	for _, file := range files {
		group, plural, _ := strings.Cut(strings.TrimSuffix(file, ".yaml"), "_")
		kind := map[string]string{"apps": "App", "releases": "Release", "builds": "Build"}[plural]
		if len(kinds) > 0 && !slices.Contains(kinds, kind) {
			continue
		}
		text, err := fs.ReadFile(crds.Files, file)
		if err != nil {
			return nil, fmt.Errorf("reading the definition %s: %w", file, err)
		}
		sum := sha256.Sum256(text)
		out = append(out, Definition{Kind: kind, Name: plural + "." + group, Text: text, Digest: hex.EncodeToString(sum[:])})
	}
	return out, nil
}

// Object is the definition, with the mark by which one that is as it should be is known.
func (d Definition) Object() (*unstructured.Unstructured, error) {
	out := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(d.Text, &out.Object); err != nil {
		return nil, fmt.Errorf("reading the definition %s: %w", d.Name, err)
	}
	annotations := out.GetAnnotations()
	annotations[annotationDefinition] = d.Digest
	out.SetAnnotations(annotations)
	return out, nil
}

// InstallDefinitions makes the definitions of gantry.dev that are absent or other than ours, and waits until their kinds
// are served. changed is told the name of each that was written; nil is fine. Without kinds it is all of them.
func InstallDefinitions(ctx context.Context, c client.Client, changed func(name string), kinds ...string) error {
	definitions, err := Definitions(kinds...)
	if err != nil {
		return err
	}
	for _, d := range definitions {
		wrote, err := installDefinition(ctx, c, d)
		if err != nil {
			return fmt.Errorf("installing the definition %s: %w", d.Name, err)
		}
		if wrote && changed != nil {
			changed(d.Name)
		}
	}
	for _, d := range definitions {
		if err := awaitKind(ctx, c, d.Kind); err != nil {
			return err
		}
	}
	return nil
}

// awaitKind waits until a kind is served.
func awaitKind(ctx context.Context, c client.Client, kind string) error {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		_, err := c.RESTMapper().RESTMapping(schema.GroupKind{Group: v1alpha1.Group, Kind: kind}, v1alpha1.GroupVersion().Version)
		if err == nil {
			return nil
		}
		if !meta.IsNoMatchError(err) {
			return fmt.Errorf("asking for the kind %s: %w", kind, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until the kind %s is served: %w", kind, ctx.Err())
		case <-ticker.C:
		}
	}
}

// installDefinition says whether it wrote.
func installDefinition(ctx context.Context, c client.Client, d Definition) (bool, error) {
	there := &metav1.PartialObjectMetadata{}
	there.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	getErr := c.Get(ctx, client.ObjectKey{Name: d.Name}, there)
	switch {
	case getErr == nil && there.Annotations[annotationDefinition] == d.Digest:
		return false, nil
	case getErr != nil && !apierrors.IsNotFound(getErr):
		return false, getErr
	}
	want, err := d.Object()
	if err != nil {
		return false, err
	}
	if getErr != nil {
		return true, client.IgnoreAlreadyExists(c.Create(ctx, want))
	}
	want.SetResourceVersion(there.ResourceVersion)
	return true, c.Update(ctx, want)
}
