package registry

import (
	"bytes"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"gantry.dev/gantry/internal/store"
)

// protoPrefix marks a protobuf value in etcd and on the wire (apimachinery, serializer/protobuf).
const protoPrefix = "k8s\x00"

// protoObject is what generated API types can do.
type protoObject interface {
	store.Object
	Size() int
	Marshal() ([]byte, error)
	MarshalToSizedBuffer([]byte) (int, error)
	Unmarshal([]byte) error
}

// typedCodec keeps objects of Go type T in etcd as upstream does: protobuf in an envelope
// that names the type, with an empty resourceVersion.
type typedCodec[T any, P interface {
	*T
	protoObject
}] struct {
	kind schema.GroupVersionKind
}

// Encode implements store.Codec.
func (c typedCodec[T, P]) Encode(obj store.Object) ([]byte, error) {
	typed, ok := obj.(P)
	if !ok {
		return nil, fmt.Errorf("a %T where %s was expected", obj, c.kind.Kind)
	}
	shallow := *(*T)(typed)
	P(&shallow).SetResourceVersion("")
	raw, err := P(&shallow).Marshal()
	if err != nil {
		return nil, err
	}
	return WrapProto(c.kind, raw)
}

// WrapProto puts a bare message into the envelope that names its type.
func WrapProto(kind schema.GroupVersionKind, raw []byte) ([]byte, error) {
	apiVersion, name := kind.ToAPIVersionAndKind()
	envelope := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: apiVersion, Kind: name}, Raw: raw}
	out := make([]byte, len(protoPrefix)+envelope.Size())
	copy(out, protoPrefix)
	if _, err := envelope.MarshalTo(out[len(protoPrefix):]); err != nil {
		return nil, err
	}
	return out, nil
}

// Decode implements store.Codec. Values of another version of the kind, or in JSON, as an
// upstream cluster may have left them, are converted; defaults are set as upstream sets them.
func (c typedCodec[T, P]) Decode(data []byte) (store.Object, error) {
	if rest, ok := bytes.CutPrefix(data, []byte(protoPrefix)); ok {
		var envelope runtime.Unknown
		if err := envelope.Unmarshal(rest); err != nil {
			return nil, err
		}
		if schema.FromAPIVersionAndKind(envelope.APIVersion, envelope.Kind) == c.kind {
			obj := P(new(T))
			if err := obj.Unmarshal(envelope.Raw); err != nil {
				return nil, err
			}
			obj.GetObjectKind().SetGroupVersionKind(c.kind)
			legacyscheme.Scheme.Default(obj)
			return obj, nil
		}
	}
	decoded, _, err := legacyscheme.Codecs.UniversalDeserializer().Decode(data, nil, nil)
	if err != nil {
		return nil, err
	}
	if same, ok := decoded.(P); ok {
		same.GetObjectKind().SetGroupVersionKind(c.kind)
		return same, nil
	}
	obj := P(new(T))
	if err := legacyscheme.Scheme.Convert(decoded, obj, nil); err != nil {
		internal, err := legacyscheme.Scheme.ConvertToVersion(decoded, c.kind.GroupKind().WithVersion(runtime.APIVersionInternal).GroupVersion())
		if err != nil {
			return nil, err
		}
		if err := legacyscheme.Scheme.Convert(internal, obj, nil); err != nil {
			return nil, err
		}
	}
	obj.GetObjectKind().SetGroupVersionKind(c.kind)
	return obj, nil
}

// JSON implements store.Codec.
func (c typedCodec[T, P]) JSON(obj store.Object) ([]byte, error) { return json.Marshal(obj) }

// Proto implements store.Codec.
func (c typedCodec[T, P]) Proto(obj store.Object) ([]byte, error) {
	typed, ok := obj.(P)
	if !ok {
		return nil, fmt.Errorf("a %T where %s was expected", obj, c.kind.Kind)
	}
	return typed.Marshal()
}

// jsonStored keeps objects in etcd as JSON with a line end, as upstream's serializer writes it.
type jsonStored struct{ store.Codec }

// Encode implements store.Codec.
func (c jsonStored) Encode(obj store.Object) ([]byte, error) {
	copied, ok := obj.DeepCopyObject().(store.Object)
	if !ok {
		return nil, fmt.Errorf("a copy of %T has no metadata", obj)
	}
	copied.SetResourceVersion("")
	data, err := json.Marshal(copied)
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

// AnswerCodec encodes objects that are served but never stored, such as a Scale.
type AnswerCodec struct{}

// Encode implements store.Codec; it always fails.
func (AnswerCodec) Encode(obj store.Object) ([]byte, error) {
	return nil, fmt.Errorf("%T is not stored", obj)
}

// Decode implements store.Codec; it always fails.
func (AnswerCodec) Decode([]byte) (store.Object, error) {
	return nil, fmt.Errorf("answers are not stored")
}

// JSON implements store.Codec.
func (AnswerCodec) JSON(obj store.Object) ([]byte, error) { return json.Marshal(obj) }

// Proto implements store.Codec.
func (AnswerCodec) Proto(obj store.Object) ([]byte, error) {
	if m, ok := obj.(protoObject); ok {
		return m.Marshal()
	}
	return nil, nil
}
