package store

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Object is what the store keeps: a typed API object.
type Object interface {
	runtime.Object
	v1.Object
}

// Codec turns objects of one kind into bytes and back.
//
// Encode and Decode are the form kept in etcd, without resourceVersion. JSON and Proto are the
// forms served to clients, with it: JSON is one whole document that starts with kind and
// apiVersion; Proto is the bare message without the envelope that names its type, or nil for
// a kind that has no protobuf form. A codec only reads the objects it is given.
type Codec interface {
	Encode(obj Object) ([]byte, error)
	Decode(data []byte) (Object, error)
	JSON(obj Object) ([]byte, error)
	Proto(obj Object) ([]byte, error)
}

// Sealer encrypts values at rest. The key of the value is authenticated with it. Open also says
// whether Seal would do it otherwise now, with another key for instance.
type Sealer interface {
	Seal(key string, plain []byte) ([]byte, error)
	Open(key string, sealed []byte) (plain []byte, stale bool, err error)
}

// IndexFunc lists the values under which obj is found; it must be quick and pure.
type IndexFunc func(obj Object) []string

// Kind describes one table.
type Kind struct {
	Name       string // resource and group: "pods", "deployments.apps"
	Prefix     string // of the etcd keys, with both slashes: "/registry/pods/"
	Namespaced bool   // keys are "namespace/name", else "name"
	Codec      Codec
	Sealer     Sealer // nil stores in the clear
	Indexes    map[string]IndexFunc
}

// Key is the key of an object in its table.
func (k *Kind) Key(namespace, name string) string {
	if k.Namespaced {
		return namespace + "/" + name
	}
	return name
}
