package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// indexOwnerUID lists the objects that a controller owns by the owner's UID.
const indexOwnerUID = "metadata.ownerUID"

// errOwnerGone stops an adoption by an owner that was deleted or replaced meanwhile.
var errOwnerGone = errors.New("the owner is gone or being deleted")

// claimer decides who belongs to one owner: it takes orphans that match the selector
// and lets go of owned objects that no longer do.
type claimer struct {
	client   client.Client
	owner    client.Object
	kind     schema.GroupVersionKind
	selector labels.Selector
	// member says besides the selector who may belong to the owner; nil for everybody.
	member func(client.Object) bool
	// pass says whose owner is left as it is, and who does not count; nil for nobody.
	pass func(client.Object) bool

	checked bool // canAdopt has been asked
	refusal error
}

// claim says whether obj belongs to the owner, after adopting or releasing it if needed.
func (c *claimer) claim(ctx context.Context, obj client.Object) (bool, error) {
	if c.pass != nil && c.pass(obj) {
		return false, nil
	}
	matches := c.selector.Matches(labels.Set(obj.GetLabels())) && (c.member == nil || c.member(obj))
	ref := metav1.GetControllerOfNoCopy(obj)
	switch {
	case ref != nil && ref.UID != c.owner.GetUID():
		return false, nil
	case ref != nil && matches:
		return true, nil
	case ref != nil:
		if c.owner.GetDeletionTimestamp() != nil {
			return false, nil
		}
		return false, c.release(ctx, obj)
	case !matches || c.owner.GetDeletionTimestamp() != nil || obj.GetDeletionTimestamp() != nil:
		return false, nil
	}
	if err := c.adopt(ctx, obj); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	return true, nil
}

// adopt makes the owner obj's controller. The UID in the patch keeps it from a new
// object of the same name.
func (c *claimer) adopt(ctx context.Context, obj client.Object) error {
	if err := c.canAdopt(ctx); err != nil {
		return fmt.Errorf("adopting %s/%s: %w", obj.GetNamespace(), obj.GetName(), err)
	}
	return c.patch(ctx, obj, *metav1.NewControllerRef(c.owner, c.kind))
}

// release drops the owner's reference from obj.
func (c *claimer) release(ctx context.Context, obj client.Object) error {
	err := c.patch(ctx, obj, map[string]string{"$patch": "delete", "uid": string(c.owner.GetUID())})
	if apierrors.IsNotFound(err) || apierrors.IsInvalid(err) {
		return nil // it is gone, or another object has its name now
	}
	return err
}

func (c *claimer) patch(ctx context.Context, obj client.Object, reference any) error {
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": obj.GetUID(), "ownerReferences": []any{reference},
	}})
	if err != nil {
		return fmt.Errorf("encoding an owner reference: %w", err)
	}
	target := obj.DeepCopyObject().(client.Object)
	return c.client.Patch(ctx, target, client.RawPatch(types.StrategicMergePatchType, body))
}

// canAdopt reads the owner once more before the first adoption of a pass.
func (c *claimer) canAdopt(ctx context.Context) error {
	if c.checked {
		return c.refusal
	}
	c.checked = true
	fresh := c.owner.DeepCopyObject().(client.Object)
	err := c.client.Get(ctx, client.ObjectKeyFromObject(c.owner), fresh)
	switch {
	case err != nil:
		c.refusal = err
	case fresh.GetUID() != c.owner.GetUID() || fresh.GetDeletionTimestamp() != nil:
		c.refusal = errOwnerGone
	}
	return c.refusal
}

// lister reads objects of one kind; the items share their insides with the store.
type lister[P client.Object] func(ctx context.Context, c client.Client, opts ...client.ListOption) ([]P, error)

// object is a pointer to a T that is an object of the API.
type object[T any] interface {
	*T
	client.Object
}

// claimed lists the objects that the claimer's owner controls, after adopting orphans that
// match and releasing objects that no longer do. Orphans are those that events told of,
// unless the owner is new or changed: it may be ahead of the events, so all are looked at.
func claimed[T any, P object[T]](ctx context.Context, c *claimer, strays *controller.Orphans, list lister[P], changed bool) ([]P, error) {
	namespace := c.owner.GetNamespace()
	candidates, err := list(ctx, c.client, client.InNamespace(namespace), client.MatchingFields{indexOwnerUID: string(c.owner.GetUID())})
	if err != nil {
		return nil, err
	}
	stray := func(obj P) bool { return metav1.GetControllerOfNoCopy(obj) == nil }
	switch {
	case c.owner.GetDeletionTimestamp() != nil:
		// adopts nothing any more
	case changed:
		all, err := list(ctx, c.client, client.InNamespace(namespace), client.MatchingLabelsSelector{Selector: c.selector})
		if err != nil {
			return nil, err
		}
		for _, obj := range all {
			if stray(obj) {
				candidates = append(candidates, obj)
			}
		}
	default:
		for _, name := range strays.Matching(namespace, c.selector) {
			obj := P(new(T))
			err := c.client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, obj)
			if err != nil && !apierrors.IsNotFound(err) {
				return nil, fmt.Errorf("getting %s/%s to adopt it: %w", namespace, name, err)
			}
			if err == nil && stray(obj) {
				candidates = append(candidates, obj)
			}
		}
	}
	mine := candidates[:0]
	var failures []error
	for _, obj := range candidates {
		ok, err := c.claim(ctx, obj)
		if err != nil {
			failures = append(failures, err)
		} else if ok {
			mine = append(mine, obj)
		}
	}
	return mine, errors.Join(failures...)
}

func listPods(ctx context.Context, c client.Client, opts ...client.ListOption) ([]*corev1.Pod, error) {
	var list corev1.PodList
	if err := c.List(ctx, &list, opts...); err != nil {
		return nil, fmt.Errorf("listing pods: %w", err)
	}
	return pointers(list.Items), nil
}

func listReplicaSets(ctx context.Context, c client.Client, opts ...client.ListOption) ([]*appsv1.ReplicaSet, error) {
	var list appsv1.ReplicaSetList
	if err := c.List(ctx, &list, opts...); err != nil {
		return nil, fmt.Errorf("listing replica sets: %w", err)
	}
	return pointers(list.Items), nil
}

func listRevisions(ctx context.Context, c client.Client, opts ...client.ListOption) ([]*appsv1.ControllerRevision, error) {
	var list appsv1.ControllerRevisionList
	if err := c.List(ctx, &list, opts...); err != nil {
		return nil, fmt.Errorf("listing controller revisions: %w", err)
	}
	return pointers(list.Items), nil
}

func pointers[T any](items []T) []*T {
	out := make([]*T, len(items))
	for i := range items {
		out[i] = &items[i]
	}
	return out
}

// podsOf lists the pods whose controller has a UID.
func podsOf(ctx context.Context, c client.Client, namespace string, owner types.UID) ([]*corev1.Pod, error) {
	return listPods(ctx, c, client.InNamespace(namespace), client.MatchingFields{indexOwnerUID: string(owner)})
}
