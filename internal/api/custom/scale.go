package custom

import (
	"fmt"
	"math"
	"strings"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/store"
)

// noReplicas marks a Scale whose object has no number of replicas, and which must be given one.
const noReplicas = math.MinInt32

// scale finds the numbers of a Scale in an object, by paths of the definition.
type scale struct {
	spec     string // of spec.replicas, as the definition has it
	specPath []string
	status   []string
	selector []string // nil: there is none
}

func newScale(crd *apiextensionsv1.CustomResourceDefinition, def *apiextensionsv1.CustomResourceSubresourceScale) *registry.CustomScale {
	s := &scale{spec: def.SpecReplicasPath, specPath: splitPath(def.SpecReplicasPath), status: splitPath(def.StatusReplicasPath)}
	if def.LabelSelectorPath != nil && *def.LabelSelectorPath != "" {
		s.selector = splitPath(*def.LabelSelectorPath)
	}
	out := &registry.CustomScale{FromParent: s.fromParent, Before: s.before, ToParent: s.toParent, Replicas: managedfields.ResourcePathMappings{}}
	for _, v := range crd.Spec.Versions {
		var path fieldpath.Path
		if v.Subresources != nil && v.Subresources.Scale != nil {
			for _, name := range splitPath(v.Subresources.Scale.SpecReplicasPath) {
				path = append(path, fieldpath.PathElement{FieldName: &name})
			}
		}
		out.Replicas[crd.Spec.Group+"/"+v.Name] = path
	}
	return out
}

func splitPath(path string) []string { return strings.Split(strings.TrimPrefix(path, "."), ".") }

// read makes the Scale of an object; found is false if the object has no number of replicas.
func (s *scale) read(parent store.Object) (out *autoscalingv1.Scale, found bool, err error) {
	u, err := asUnstructured(parent)
	if err != nil {
		return nil, false, err
	}
	spec, found, err := unstructured.NestedInt64(u.Object, s.specPath...)
	if err != nil {
		return nil, false, err
	}
	status, _, err := unstructured.NestedInt64(u.Object, s.status...)
	if err != nil {
		return nil, false, err
	}
	selector := ""
	if s.selector != nil {
		if selector, _, err = unstructured.NestedString(u.Object, s.selector...); err != nil {
			return nil, false, err
		}
	}
	return &autoscalingv1.Scale{
		TypeMeta: metav1.TypeMeta{Kind: "Scale", APIVersion: autoscalingv1.SchemeGroupVersion.String()},
		ObjectMeta: metav1.ObjectMeta{
			Name: u.GetName(), Namespace: u.GetNamespace(), UID: u.GetUID(),
			ResourceVersion: u.GetResourceVersion(), CreationTimestamp: u.GetCreationTimestamp(),
		},
		Spec:   autoscalingv1.ScaleSpec{Replicas: int32(spec)},
		Status: autoscalingv1.ScaleStatus{Replicas: int32(status), Selector: selector},
	}, found, nil
}

func (s *scale) fromParent(parent store.Object) (store.Object, error) {
	out, found, err := s.read(parent)
	if err == nil && !found {
		err = apierrors.NewInternalError(fmt.Errorf("the spec replicas field %q does not exist", s.spec))
	}
	return out, err
}

func (s *scale) before(parent store.Object) (store.Object, error) {
	out, found, err := s.read(parent)
	if err == nil && !found {
		out.Spec.Replicas = noReplicas
	}
	return out, err
}

func (s *scale) toParent(parent, sub store.Object) error {
	u, err := asUnstructured(parent)
	if err != nil {
		return err
	}
	in, ok := sub.(*autoscalingv1.Scale)
	if !ok {
		return apierrors.NewBadRequest(fmt.Sprintf("wrong object passed to Scale update: %v", sub))
	}
	if in.Spec.Replicas == noReplicas {
		return apierrors.NewBadRequest(fmt.Sprintf("the spec replicas field %q cannot be empty", s.spec))
	}
	if err := unstructured.SetNestedField(u.Object, int64(in.Spec.Replicas), s.specPath...); err != nil {
		return err
	}
	if in.ResourceVersion != "" {
		u.SetResourceVersion(in.ResourceVersion)
	}
	return nil
}
