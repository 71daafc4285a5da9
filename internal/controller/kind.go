package controller

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Kind is a kind that the API serves, as discovery tells it.
type Kind struct {
	GVK        schema.GroupVersionKind
	Resource   string // plural, as "pods"
	Namespaced bool
}

// NewObject returns an empty object of a kind: typed if scheme knows it, else unstructured.
func NewObject(scheme *runtime.Scheme, gvk schema.GroupVersionKind) (client.Object, error) {
	if !scheme.Recognizes(gvk) {
		obj := &unstructured.Unstructured{}
		obj.SetGroupVersionKind(gvk)
		return obj, nil
	}
	made, err := scheme.New(gvk)
	if err != nil {
		return nil, fmt.Errorf("making a %s: %w", gvk, err)
	}
	obj, ok := made.(client.Object)
	if !ok {
		return nil, fmt.Errorf("making a %s: %T has no metadata", gvk, made)
	}
	return obj, nil
}

// NewList returns an empty list of a kind, as NewObject does an object.
func NewList(scheme *runtime.Scheme, gvk schema.GroupVersionKind) (client.ObjectList, error) {
	gvk.Kind += "List"
	if !scheme.Recognizes(gvk) {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(gvk)
		return list, nil
	}
	made, err := scheme.New(gvk)
	if err != nil {
		return nil, fmt.Errorf("making a %s: %w", gvk, err)
	}
	list, ok := made.(client.ObjectList)
	if !ok {
		return nil, fmt.Errorf("making a %s: %T is no list", gvk, made)
	}
	return list, nil
}
