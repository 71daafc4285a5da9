package definitions

import (
	"compress/gzip"
	"context"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/version"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Bundle is the version of the definitions here.
const Bundle = "v1.6.0"

// The annotations by which the Gateway API's definitions say what they are.
const (
	annotationBundle  = "gateway.networking.k8s.io/bundle-version"
	annotationChannel = "gateway.networking.k8s.io/channel"
)

//go:embed *.json.gz LICENSE
var files embed.FS

// group is the API group of all of them.
const group = "gateway.networking.k8s.io"

// kinds are what a cluster has when Install is done, by file.
func kinds() map[string]string {
	return map[string]string{"gatewayclasses": "GatewayClass", "gateways": "Gateway", "httproutes": "HTTPRoute",
		"grpcroutes": "GRPCRoute", "referencegrants": "ReferenceGrant"}
}

// Install makes the definitions that are absent, renews those of the standard channel that are
// older, leaves all others alone, and waits until each kind is served. It reports whether it wrote any.
func Install(ctx context.Context, c client.Client) (wrote bool, err error) {
	for name := range kinds() {
		one, err := install(ctx, c, name)
		if err != nil {
			return wrote, fmt.Errorf("installing the definition of %s.%s: %w", name, group, err)
		}
		wrote = wrote || one
	}
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for name, kind := range kinds() {
		for {
			_, err := c.RESTMapper().RESTMapping(schema.GroupKind{Group: group, Kind: kind}, "v1")
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return wrote, fmt.Errorf("waiting until %s.%s is served: %w", name, group, err)
			case <-ticker.C:
			}
		}
	}
	return wrote, nil
}

func install(ctx context.Context, c client.Client, name string) (wrote bool, err error) {
	there := &metav1.PartialObjectMetadata{}
	there.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	err = c.Get(ctx, client.ObjectKey{Name: name + "." + group}, there)
	if err == nil && !older(there.Annotations) {
		return false, nil
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return false, err
	}
	want, readErr := read(name)
	if readErr != nil {
		return false, readErr
	}
	if err != nil {
		return true, client.IgnoreAlreadyExists(c.Create(ctx, want))
	}
	want.SetResourceVersion(there.ResourceVersion)
	return true, c.Update(ctx, want)
}

// older reports whether a definition is an earlier release of ours: one of the experimental
// channel, or that is not the project's at all, is somebody's choice.
func older(annotations map[string]string) bool {
	if annotations[annotationChannel] != "standard" {
		return false
	}
	has, err := version.ParseSemantic(annotations[annotationBundle])
	return err == nil && has.LessThan(version.MustParseSemantic(Bundle))
}

// read returns one definition.
func read(name string) (*unstructured.Unstructured, error) {
	f, err := files.Open(name + ".json.gz")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	unpacked, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(unpacked)
	if err != nil {
		return nil, err
	}
	out := &unstructured.Unstructured{}
	if err := out.UnmarshalJSON(data); err != nil {
		return nil, err
	}
	unstructured.RemoveNestedField(out.Object, "status")
	return out, nil
}

// License is the text of the definitions' licence.
func License() (string, error) {
	text, err := fs.ReadFile(files, "LICENSE")
	return strings.TrimSpace(string(text)), err
}
