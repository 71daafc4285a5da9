package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group is the API group of everything here.
const Group = "gantry.dev"

// GroupVersion returns the group and version of the types here.
func GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: Group, Version: "v1alpha1"}
}

// AddToScheme makes the types known to a scheme.
func AddToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion(), &App{}, &AppList{}, &Release{}, &ReleaseList{}, &Build{}, &BuildList{})
	metav1.AddToGroupVersion(scheme, GroupVersion())
	return nil
}
