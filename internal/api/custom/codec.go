package custom

import (
	"encoding/json"
	"fmt"
	"maps"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"gantry.dev/gantry/internal/store"
)

// codec keeps custom resources as upstream does: as JSON, in the version that they were written in.
type codec struct{}

var _ store.Codec = codec{}

// Encode implements store.Codec.
func (codec) Encode(obj store.Object) ([]byte, error) {
	u, err := asUnstructured(obj)
	if err != nil {
		return nil, err
	}
	content := maps.Clone(u.Object)
	if metadata, ok := content["metadata"].(map[string]any); ok {
		metadata = maps.Clone(metadata)
		delete(metadata, "resourceVersion")
		content["metadata"] = metadata
	}
	return json.Marshal(content)
}

// Decode implements store.Codec.
func (codec) Decode(data []byte) (store.Object, error) {
	u := &unstructured.Unstructured{}
	if err := utiljson.Unmarshal(data, &u.Object); err != nil {
		return nil, err
	}
	if u.GetKind() == "" || u.GetAPIVersion() == "" {
		return nil, fmt.Errorf("an object without kind or apiVersion: %.80s", data)
	}
	return u, nil
}

// JSON implements store.Codec.
func (codec) JSON(obj store.Object) ([]byte, error) {
	u, err := asUnstructured(obj)
	if err != nil {
		return nil, err
	}
	return json.Marshal(u.Object)
}

// Proto implements store.Codec: custom resources have no such form.
func (codec) Proto(store.Object) ([]byte, error) { return nil, nil }

func asUnstructured(obj runtime.Object) (*unstructured.Unstructured, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("a %T where a custom resource was expected", obj)
	}
	return u, nil
}

// creator makes empty objects for upstream's decoders and field managers.
type creator struct{}

// New implements runtime.ObjectCreater.
func (creator) New(kind schema.GroupVersionKind) (runtime.Object, error) {
	return newObject(kind), nil
}

func newObject(kind schema.GroupVersionKind) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{}}
	u.SetGroupVersionKind(kind)
	return u
}
