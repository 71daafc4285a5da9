package registry

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/autoscaling"
	"k8s.io/kubernetes/pkg/apis/autoscaling/validation"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"gantry.dev/gantry/internal/store"
)

// scaleMapping finds the numbers of a Scale in an object.
type scaleMapping struct {
	replicas func(obj store.Object) *int32 // spec.replicas, never nil after defaulting
	set      func(obj store.Object, replicas int32)
	current  func(obj store.Object) int32
	selector func(obj store.Object) *metav1.LabelSelector
}

// replicasPath is where every kind with a scale keeps its replicas.
func replicasPath(obj store.Object) managedfields.ResourcePathMappings {
	return managedfields.ResourcePathMappings{
		obj.GetObjectKind().GroupVersionKind().GroupVersion().String(): fieldpath.MakePathOrDie("spec", "replicas"),
	}
}

func deploymentScale() scaleMapping {
	return scaleMapping{
		replicas: func(obj store.Object) *int32 { return obj.(*appsv1.Deployment).Spec.Replicas },
		set:      func(obj store.Object, n int32) { obj.(*appsv1.Deployment).Spec.Replicas = &n },
		current:  func(obj store.Object) int32 { return obj.(*appsv1.Deployment).Status.Replicas },
		selector: func(obj store.Object) *metav1.LabelSelector { return obj.(*appsv1.Deployment).Spec.Selector },
	}
}

func replicaSetScale() scaleMapping {
	return scaleMapping{
		replicas: func(obj store.Object) *int32 { return obj.(*appsv1.ReplicaSet).Spec.Replicas },
		set:      func(obj store.Object, n int32) { obj.(*appsv1.ReplicaSet).Spec.Replicas = &n },
		current:  func(obj store.Object) int32 { return obj.(*appsv1.ReplicaSet).Status.Replicas },
		selector: func(obj store.Object) *metav1.LabelSelector { return obj.(*appsv1.ReplicaSet).Spec.Selector },
	}
}

func statefulSetScale() scaleMapping {
	return scaleMapping{
		replicas: func(obj store.Object) *int32 { return obj.(*appsv1.StatefulSet).Spec.Replicas },
		set:      func(obj store.Object, n int32) { obj.(*appsv1.StatefulSet).Spec.Replicas = &n },
		current:  func(obj store.Object) int32 { return obj.(*appsv1.StatefulSet).Status.Replicas },
		selector: func(obj store.Object) *metav1.LabelSelector { return obj.(*appsv1.StatefulSet).Spec.Selector },
	}
}

func replicationControllerScale() scaleMapping {
	return scaleMapping{
		replicas: func(obj store.Object) *int32 { return obj.(*corev1.ReplicationController).Spec.Replicas },
		set:      func(obj store.Object, n int32) { obj.(*corev1.ReplicationController).Spec.Replicas = &n },
		current:  func(obj store.Object) int32 { return obj.(*corev1.ReplicationController).Status.Replicas },
		selector: func(obj store.Object) *metav1.LabelSelector {
			return &metav1.LabelSelector{MatchLabels: obj.(*corev1.ReplicationController).Spec.Selector}
		},
	}
}

func (m scaleMapping) toScale(parent store.Object) (store.Object, error) {
	selector, err := metav1.LabelSelectorAsSelector(m.selector(parent))
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	scale := &autoscalingv1.Scale{
		TypeMeta: metav1.TypeMeta{Kind: "Scale", APIVersion: autoscalingv1.SchemeGroupVersion.String()},
		ObjectMeta: metav1.ObjectMeta{
			Name: parent.GetName(), Namespace: parent.GetNamespace(), UID: parent.GetUID(),
			ResourceVersion: parent.GetResourceVersion(), CreationTimestamp: parent.GetCreationTimestamp(),
		},
		Status: autoscalingv1.ScaleStatus{Replicas: m.current(parent), Selector: selector.String()},
	}
	if n := m.replicas(parent); n != nil {
		scale.Spec.Replicas = *n
	}
	return scale, nil
}

func (m scaleMapping) fromScale(parent, sub store.Object) error {
	scale := sub.(*autoscalingv1.Scale)
	var internal autoscaling.Scale
	if err := legacyscheme.Scheme.Convert(scale, &internal, nil); err != nil {
		return fmt.Errorf("converting Scale: %w", err)
	}
	if errs := validation.ValidateScale(&internal); len(errs) > 0 {
		return apierrors.NewInvalid(autoscaling.Kind("Scale"), parent.GetName(), errs)
	}
	if scale.UID != "" && scale.UID != parent.GetUID() {
		return apierrors.NewConflict(autoscalingv1.Resource("scale"), parent.GetName(), preconditionError("UID", scale.UID, parent.GetUID()))
	}
	m.set(parent, scale.Spec.Replicas)
	parent.SetResourceVersion(scale.ResourceVersion)
	return nil
}

// toChange is what is shown of a parent to whoever changes it.
func (s *subresource) toChange(parent store.Object) (store.Object, error) {
	if s.before != nil {
		return s.before(parent)
	}
	return s.fromParent(parent)
}

// changeMapped makes the change of a parent from a change of its mapped subresource.
func (r *Resource) changeMapped(ctx context.Context, s *subresource, opts *metav1.UpdateOptions, apply change) change {
	return func(current store.Object) (store.Object, error) {
		if current == nil {
			return nil, apierrors.NewNotFound(r.Resource.GroupResource(), "")
		}
		parent := current.DeepCopyObject().(store.Object)
		paths := s.replicas
		if paths == nil {
			paths = replicasPath(parent)
		}
		fields := managedfields.NewScaleHandler(parent.GetManagedFields(), r.Kind.GroupVersion(), paths)
		before, err := s.toChange(parent)
		if err != nil {
			return nil, err
		}
		subFields, err := fields.ToSubresource()
		if err != nil {
			return nil, err
		}
		before.SetManagedFields(subFields)
		after, err := apply(before)
		if err != nil {
			return nil, err
		}
		if after, err = r.admitMapped(ctx, s, parent, after, opts); err != nil {
			return nil, err
		}
		if err := s.toParent(parent, after); err != nil {
			return nil, err
		}
		parentFields, err := fields.ToParent(after.GetManagedFields())
		if err != nil {
			return nil, err
		}
		parent.SetManagedFields(parentFields)
		return parent, nil
	}
}

// updateMapped replaces a subresource of another type.
func (r *Resource) updateMapped(ctx context.Context, namespace, name string, s *subresource, in runtime.Object, manager string, opts *metav1.UpdateOptions) (*store.Entry, bool, error) {
	obj, ok := in.(store.Object)
	if !ok {
		return nil, false, apierrors.NewBadRequest(fmt.Sprintf("a %T where a %s was expected", in, s.info.Kind.Kind))
	}
	if err := checkName(obj, namespace, name); err != nil {
		return nil, false, err
	}
	entry, err := r.storeMapped(ctx, namespace, name, s, opts, func(before store.Object) (store.Object, error) {
		return r.subManager(s).update(before, obj.DeepCopyObject().(store.Object), manager)
	})
	return entry, false, err
}

// storeMapped changes the parent through one of its mapped subresources and returns the
// subresource as it is then.
func (r *Resource) storeMapped(ctx context.Context, namespace, name string, s *subresource, opts *metav1.UpdateOptions, apply change) (*store.Entry, error) {
	ctx = r.requestContext(ctx, namespace, "update", name, s.info.Name)
	u := updating{
		namespace: namespace, name: name, sub: s.info.Name, strategy: r.def.strategy, opts: opts, mapped: s,
		apply: r.changeMapped(ctx, s, opts, apply),
	}
	entry, _, err := r.update(ctx, u)
	if err != nil {
		return nil, err
	}
	if entry, err = r.view(entry); err != nil {
		return nil, err
	}
	result, err := s.fromParent(entry.Object)
	if err != nil {
		return nil, err
	}
	return store.NewEntry(result, AnswerCodec{}), nil
}
