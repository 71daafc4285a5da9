package app

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
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

// InstallDefinitions makes the definitions of gantry.dev that are absent or other than ours, and waits until their kinds
// are served.
func InstallDefinitions(ctx context.Context, c client.Client) error {
	files, err := fs.Glob(crds.Files, "*.yaml")
	if err != nil {
		return fmt.Errorf("listing the definitions of %s: %w", v1alpha1.Group, err)
	}
	for _, file := range files {
		if err := installDefinition(ctx, c, file); err != nil {
			return fmt.Errorf("installing the definition %s: %w", file, err)
		}
	}
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for _, kind := range []string{"App", "Release", "Build"} {
		for {
			_, err := c.RESTMapper().RESTMapping(schema.GroupKind{Group: v1alpha1.Group, Kind: kind}, v1alpha1.GroupVersion().Version)
			if err == nil {
				break
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
	return nil
}

func installDefinition(ctx context.Context, c client.Client, file string) error {
	text, err := fs.ReadFile(crds.Files, file)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(text)
	digest := hex.EncodeToString(sum[:])
	group, plural, _ := strings.Cut(strings.TrimSuffix(file, ".yaml"), "_")
	there := &metav1.PartialObjectMetadata{}
	there.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	getErr := c.Get(ctx, client.ObjectKey{Name: plural + "." + group}, there)
	switch {
	case getErr == nil && there.Annotations[annotationDefinition] == digest:
		return nil
	case getErr != nil && !apierrors.IsNotFound(getErr):
		return getErr
	}
	want := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(text, &want.Object); err != nil {
		return err
	}
	annotations := want.GetAnnotations()
	annotations[annotationDefinition] = digest
	want.SetAnnotations(annotations)
	if getErr != nil {
		return client.IgnoreAlreadyExists(c.Create(ctx, want))
	}
	want.SetResourceVersion(there.ResourceVersion)
	return c.Update(ctx, want)
}
