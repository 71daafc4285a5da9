package disruption

import (
	"context"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// owner is something with a scale, whose pods a budget covers.
type owner struct {
	uid   types.UID
	scale int32
}

// expectedPods adds up the scales of the pods' owners. Pods without one are returned by name.
func (c *Controller) expectedPods(ctx context.Context, pods []*corev1.Pod) (expected int32, unmanaged []string, err error) {
	asked := map[types.UID]bool{}
	scales := map[types.UID]int32{}
	for _, pod := range pods {
		ref := metav1.GetControllerOfNoCopy(pod)
		if ref == nil {
			unmanaged = append(unmanaged, pod.Name)
			continue
		}
		if asked[ref.UID] {
			continue
		}
		asked[ref.UID] = true
		found, err := c.ownerOf(ctx, ref, pod.Namespace)
		if err != nil {
			return 0, unmanaged, err
		}
		if found == nil {
			return 0, unmanaged, fmt.Errorf("found no controllers for pod %q", pod.Name)
		}
		scales[found.uid] = found.scale
	}
	for _, scale := range scales {
		expected += scale
	}
	return expected, unmanaged, nil
}

// ownerOf finds what has the scale of the pods that ref owns: a Deployment for those of its
// ReplicaSets, else what ref names. It is nil if that is gone.
func (c *Controller) ownerOf(ctx context.Context, ref *metav1.OwnerReference, namespace string) (*owner, error) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return nil, err
	}
	apps := slices.Contains([]string{"apps", "extensions"}, gv.Group)
	switch {
	case ref.Kind == "ReplicationController" && gv.Group == "":
		var rc corev1.ReplicationController
		ok, err := c.fetch(ctx, ref, namespace, &rc)
		if ok || err != nil {
			return &owner{rc.UID, replicas(rc.Spec.Replicas)}, err
		}
	case ref.Kind == "ReplicaSet" && apps:
		found, err := c.replicaSetOwner(ctx, ref, namespace)
		if found != nil || err != nil {
			return found, err
		}
	case ref.Kind == "StatefulSet" && gv.Group == "apps":
		var set appsv1.StatefulSet
		ok, err := c.fetch(ctx, ref, namespace, &set)
		if ok || err != nil {
			return &owner{set.UID, replicas(set.Spec.Replicas)}, err
		}
	}
	return c.scaleOf(ctx, ref, gv, namespace)
}

func (c *Controller) replicaSetOwner(ctx context.Context, ref *metav1.OwnerReference, namespace string) (*owner, error) {
	var rs appsv1.ReplicaSet
	if ok, err := c.fetch(ctx, ref, namespace, &rs); !ok || err != nil {
		return nil, err
	}
	above := metav1.GetControllerOfNoCopy(&rs)
	if above == nil || above.Kind != "Deployment" {
		return &owner{rs.UID, replicas(rs.Spec.Replicas)}, nil
	}
	var d appsv1.Deployment
	if ok, err := c.fetch(ctx, above, namespace, &d); !ok || err != nil {
		return nil, err
	}
	return &owner{d.UID, replicas(d.Spec.Replicas)}, nil
}

// replicas is the API's default for what is not set.
func replicas(asked *int32) int32 {
	if asked == nil {
		return 1
	}
	return *asked
}

// fetch reads what ref names and says whether it is still there.
func (c *Controller) fetch(ctx context.Context, ref *metav1.OwnerReference, namespace string, into client.Object) (bool, error) {
	err := c.client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: ref.Name}, into)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("getting %s %s/%s: %w", ref.Kind, namespace, ref.Name, err)
	}
	return into.GetUID() == ref.UID, nil
}

// scaleOf asks for the scale subresource of whatever ref names.
func (c *Controller) scaleOf(ctx context.Context, ref *metav1.OwnerReference, gv schema.GroupVersion, namespace string) (*owner, error) {
	mapping, err := c.client.RESTMapper().RESTMapping(schema.GroupKind{Group: gv.Group, Kind: ref.Kind}, gv.Version)
	if err != nil {
		return nil, err
	}
	obj := &unstructured.Unstructured{}
	obj.SetGroupVersionKind(mapping.GroupVersionKind)
	obj.SetNamespace(namespace)
	obj.SetName(ref.Name)
	var scale autoscalingv1.Scale
	err = c.client.SubResource("scale").Get(ctx, obj, &scale)
	switch {
	case apierrors.IsNotFound(err) && c.exists(ctx, obj):
		return nil, fmt.Errorf("%s does not implement the scale subresource", mapping.Resource.GroupResource())
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	case scale.UID != ref.UID:
		return nil, nil
	}
	return &owner{scale.UID, scale.Spec.Replicas}, nil
}

func (c *Controller) exists(ctx context.Context, obj *unstructured.Unstructured) bool {
	return c.client.Get(ctx, client.ObjectKeyFromObject(obj), obj) == nil
}
