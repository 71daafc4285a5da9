package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
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

	checked bool // canAdopt has been asked
	refusal error
}

// claim says whether obj belongs to the owner, after adopting or releasing it if needed.
func (c *claimer) claim(ctx context.Context, obj client.Object) (bool, error) {
	matches := c.selector.Matches(labels.Set(obj.GetLabels()))
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

// orphans knows the objects of a kind that no controller owns, by namespace. It is kept
// up by events, so that looking for something to adopt needs no scan.
type orphans struct {
	mu          sync.Mutex // guards byNamespace
	byNamespace map[string]map[string]labels.Set
}

// observe takes an event.
func (o *orphans) observe(old, current client.Object) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if current != nil && metav1.GetControllerOfNoCopy(current) == nil && current.GetDeletionTimestamp() == nil {
		if o.byNamespace == nil {
			o.byNamespace = map[string]map[string]labels.Set{}
		}
		names := o.byNamespace[current.GetNamespace()]
		if names == nil {
			names = map[string]labels.Set{}
			o.byNamespace[current.GetNamespace()] = names
		}
		names[current.GetName()] = current.GetLabels()
		return
	}
	gone := current
	if gone == nil {
		gone = old
	}
	names := o.byNamespace[gone.GetNamespace()]
	delete(names, gone.GetName())
	if len(names) == 0 {
		delete(o.byNamespace, gone.GetNamespace())
	}
}

// matching returns the names of the orphans that selector selects.
func (o *orphans) matching(namespace string, selector labels.Selector) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var names []string
	for name, set := range o.byNamespace[namespace] {
		if selector.Matches(set) {
			names = append(names, name)
		}
	}
	return names
}
