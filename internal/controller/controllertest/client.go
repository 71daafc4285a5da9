package controllertest

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

var _ client.Client = (*Cluster)(nil)

func resource(gvk schema.GroupVersionKind) schema.GroupResource {
	plural, _ := meta.UnsafeGuessKindToResource(gvk)
	return plural.GroupResource()
}

// ask counts a write and lets the test refuse it.
func (c *Cluster) ask(w Write) error {
	c.mu.Lock()
	c.writes++
	before := c.before
	c.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(w)
}

// Get implements client.Reader.
func (c *Cluster) Get(_ context.Context, key client.ObjectKey, out client.Object, _ ...client.GetOption) error {
	gvk := c.kind(out)
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.tables[gvk][key]
	if !ok {
		return apierrors.NewNotFound(resource(gvk), key.Name)
	}
	return copyInto(out, r.obj, gvk)
}

// List implements client.Reader with namespace, label selector and the agreed indexes.
func (c *Cluster) List(_ context.Context, list client.ObjectList, opts ...client.ListOption) error {
	var o client.ListOptions
	o.ApplyOptions(opts)
	gvk := c.kind(list)
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []runtime.Object
	for _, obj := range c.rowsLocked(gvk) {
		if o.Namespace != "" && obj.GetNamespace() != o.Namespace {
			continue
		}
		if o.LabelSelector != nil && !o.LabelSelector.Matches(labels.Set(obj.GetLabels())) {
			continue
		}
		if o.FieldSelector != nil && !matchesFields(obj, o) {
			continue
		}
		found = append(found, obj)
	}
	list.SetResourceVersion(fmt.Sprint(c.version))
	return meta.SetList(list, found)
}

func matchesFields(obj client.Object, o client.ListOptions) bool {
	for _, req := range o.FieldSelector.Requirements() {
		var value string
		switch req.Field {
		case "metadata.name":
			value = obj.GetName()
		case "metadata.ownerUID":
			if ref := metav1.GetControllerOfNoCopy(obj); ref != nil {
				value = string(ref.UID)
			}
		case "spec.nodeName":
			if pod, ok := obj.(*corev1.Pod); ok {
				value = pod.Spec.NodeName
			}
		default:
			panic("no index " + req.Field)
		}
		if value != req.Value {
			return false
		}
	}
	return true
}

// Create implements client.Writer.
func (c *Cluster) Create(_ context.Context, obj client.Object, _ ...client.CreateOption) error {
	if err := c.ask(Write{Verb: "create", Object: obj}); err != nil {
		return err
	}
	gvk := c.kind(obj)
	stored, err := c.typed(obj)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, exists := c.tables[gvk][client.ObjectKeyFromObject(stored)]; exists && stored.GetName() != "" {
		return apierrors.NewAlreadyExists(resource(gvk), stored.GetName())
	}
	if key := (types.NamespacedName{Name: stored.GetNamespace()}); stored.GetNamespace() != "" {
		ns := c.tables[schema.GroupVersionKind{Version: "v1", Kind: "Namespace"}][key]
		if ns != nil && ns.obj.GetDeletionTimestamp() != nil {
			err := apierrors.NewForbidden(resource(gvk), stored.GetName(), fmt.Errorf("namespace %s is being terminated", key.Name))
			err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
			return err
		}
	}
	stored.SetUID("")
	stored.SetCreationTimestamp(metav1.Time{})
	c.stampLocked(stored)
	c.storeLocked(gvk, nil, stored)
	return copyInto(obj, stored, gvk)
}

// Update implements client.Writer.
func (c *Cluster) Update(_ context.Context, obj client.Object, _ ...client.UpdateOption) error {
	return c.update(Write{Verb: "update", Object: obj}, obj)
}

func (c *Cluster) update(w Write, obj client.Object) error {
	if err := c.ask(w); err != nil {
		return err
	}
	gvk := c.kind(obj)
	current, err := c.typed(obj)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.replaceLocked(gvk, w.Sub, current); err != nil {
		return err
	}
	return copyInto(obj, current, gvk)
}

// replaceLocked stores current over what is there, by the rules of the subresource.
func (c *Cluster) replaceLocked(gvk schema.GroupVersionKind, sub string, current client.Object) error {
	key := client.ObjectKeyFromObject(current)
	r, ok := c.tables[gvk][key]
	if !ok {
		return apierrors.NewNotFound(resource(gvk), key.Name)
	}
	old := r.obj
	if rv := current.GetResourceVersion(); rv != "" && rv != old.GetResourceVersion() {
		return apierrors.NewConflict(resource(gvk), key.Name, fmt.Errorf("the object has been modified"))
	}
	if uid := current.GetUID(); uid != "" && uid != old.GetUID() {
		return apierrors.NewConflict(resource(gvk), key.Name, fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s)", uid, old.GetUID()))
	}
	switch sub {
	case "status", "approval":
		setPart(current, old, "Spec")
		current.SetLabels(old.GetLabels())
		current.SetFinalizers(old.GetFinalizers())
		current.SetOwnerReferences(old.GetOwnerReferences())
	case "finalize":
		setPart(current, old, "Status")
	default:
		setPart(current, old, "Status")
		if ns, ok := current.(*corev1.Namespace); ok {
			ns.Spec.Finalizers = old.(*corev1.Namespace).Spec.Finalizers
		}
	}
	current.SetUID(old.GetUID())
	current.SetCreationTimestamp(old.GetCreationTimestamp())
	current.SetDeletionTimestamp(old.GetDeletionTimestamp())
	current.SetGeneration(old.GetGeneration())
	if sub == "" && !reflect.DeepEqual(part(old, "spec"), part(current, "spec")) {
		current.SetGeneration(old.GetGeneration() + 1)
	}
	if current.GetDeletionTimestamp() != nil && finalized(current) && (sub != "status") {
		c.removeLocked(gvk, old)
		return nil
	}
	current.SetResourceVersion(old.GetResourceVersion())
	if reflect.DeepEqual(encode(old), encode(current)) {
		return nil // a no-op write makes no new version
	}
	c.storeLocked(gvk, old, current)
	return nil
}

// finalized says whether nothing keeps a deleted object; a pod with grace left waits for its agent.
func finalized(obj client.Object) bool {
	if ns, ok := obj.(*corev1.Namespace); ok && len(ns.Spec.Finalizers) > 0 {
		return false
	}
	if pod, ok := obj.(*corev1.Pod); ok && pod.DeletionGracePeriodSeconds != nil && *pod.DeletionGracePeriodSeconds > 0 {
		return false
	}
	return len(obj.GetFinalizers()) == 0
}

// Patch implements client.Writer for merge, strategic merge and JSON patches.
func (c *Cluster) Patch(_ context.Context, obj client.Object, patch client.Patch, _ ...client.PatchOption) error {
	return c.patch(Write{Verb: "patch", Object: obj}, obj, patch)
}

func (c *Cluster) patch(w Write, obj client.Object, patch client.Patch) error {
	if err := c.ask(w); err != nil {
		return err
	}
	body, err := patch.Data(obj)
	if err != nil {
		return err
	}
	gvk := c.kind(obj)
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.tables[gvk][client.ObjectKeyFromObject(obj)]
	if !ok {
		return apierrors.NewNotFound(resource(gvk), obj.GetName())
	}
	current := reflect.New(reflect.TypeOf(r.obj).Elem()).Interface().(client.Object)
	var text []byte
	switch patch.Type() {
	case types.MergePatchType:
		text, err = jsonpatch.MergePatch(r.text, body)
	case types.StrategicMergePatchType:
		text, err = strategicpatch.StrategicMergePatch(r.text, body, current)
	case types.JSONPatchType:
		var ops jsonpatch.Patch
		if ops, err = jsonpatch.DecodePatch(body); err == nil {
			text, err = ops.Apply(r.text)
		}
	default:
		err = fmt.Errorf("patch type %s", patch.Type())
	}
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if err := json.Unmarshal(text, current); err != nil {
		return err
	}
	if err := c.replaceLocked(gvk, w.Sub, current); err != nil {
		return err
	}
	return copyInto(obj, current, gvk)
}

// Delete implements client.Writer with preconditions, propagation, finalizers and grace.
func (c *Cluster) Delete(_ context.Context, obj client.Object, opts ...client.DeleteOption) error {
	if err := c.ask(Write{Verb: "delete", Object: obj}); err != nil {
		return err
	}
	var o client.DeleteOptions
	o.ApplyOptions(opts)
	gvk := c.kind(obj)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deleteLocked(gvk, client.ObjectKeyFromObject(obj), &o)
}

func (c *Cluster) deleteLocked(gvk schema.GroupVersionKind, key types.NamespacedName, o *client.DeleteOptions) error {
	r, ok := c.tables[gvk][key]
	if !ok {
		return apierrors.NewNotFound(resource(gvk), key.Name)
	}
	old := r.obj
	if p := o.Preconditions; p != nil {
		if (p.UID != nil && *p.UID != old.GetUID()) || (p.ResourceVersion != nil && *p.ResourceVersion != old.GetResourceVersion()) {
			return apierrors.NewConflict(resource(gvk), key.Name, fmt.Errorf("precondition"))
		}
	}
	current := old.DeepCopyObject().(client.Object)
	if o.PropagationPolicy != nil {
		finalizers := slices.DeleteFunc(current.GetFinalizers(), func(f string) bool {
			return f == metav1.FinalizerOrphanDependents || f == metav1.FinalizerDeleteDependents
		})
		switch *o.PropagationPolicy {
		case metav1.DeletePropagationForeground:
			finalizers = append(finalizers, metav1.FinalizerDeleteDependents)
		case metav1.DeletePropagationOrphan:
			finalizers = append(finalizers, metav1.FinalizerOrphanDependents)
		}
		current.SetFinalizers(finalizers)
	}
	if pod, ok := current.(*corev1.Pod); ok && pod.Spec.NodeName != "" && pod.DeletionGracePeriodSeconds == nil {
		grace := int64(30)
		if o.GracePeriodSeconds != nil {
			grace = *o.GracePeriodSeconds
		}
		pod.DeletionGracePeriodSeconds = &grace
	} else if ok && o.GracePeriodSeconds != nil {
		pod.DeletionGracePeriodSeconds = o.GracePeriodSeconds
	}
	if ns, ok := current.(*corev1.Namespace); ok {
		ns.Status.Phase = corev1.NamespaceTerminating
	}
	if finalized(current) {
		c.removeLocked(gvk, old)
		return nil
	}
	if current.GetDeletionTimestamp() == nil {
		now := metav1.NewTime(time.Now().Truncate(time.Second))
		current.SetDeletionTimestamp(&now)
	} else if reflect.DeepEqual(encode(old), encode(current)) {
		return nil
	}
	c.storeLocked(gvk, old, current)
	return nil
}

// DeleteAllOf implements client.Writer.
func (c *Cluster) DeleteAllOf(_ context.Context, obj client.Object, opts ...client.DeleteAllOfOption) error {
	if err := c.ask(Write{Verb: "deletecollection", Object: obj}); err != nil {
		return err
	}
	var o client.DeleteAllOfOptions
	o.ApplyOptions(opts)
	gvk := c.kind(obj)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, found := range c.rowsLocked(gvk) {
		if o.Namespace != "" && found.GetNamespace() != o.Namespace {
			continue
		}
		if o.LabelSelector != nil && !o.LabelSelector.Matches(labels.Set(found.GetLabels())) {
			continue
		}
		if err := c.deleteLocked(gvk, client.ObjectKeyFromObject(found), &o.DeleteOptions); err != nil {
			return err
		}
	}
	return nil
}

// Apply implements client.Writer; no controller here uses server-side apply.
func (c *Cluster) Apply(context.Context, runtime.ApplyConfiguration, ...client.ApplyOption) error {
	return fmt.Errorf("controllertest: apply is not part of this API")
}

// Scheme implements client.Client.
func (c *Cluster) Scheme() *runtime.Scheme { return c.scheme }

// RESTMapper implements client.Client; it knows no mapping.
func (c *Cluster) RESTMapper() meta.RESTMapper { return meta.NewDefaultRESTMapper(nil) }

// GroupVersionKindFor implements client.Client.
func (c *Cluster) GroupVersionKindFor(obj runtime.Object) (schema.GroupVersionKind, error) {
	return c.kind(obj), nil
}

// IsObjectNamespaced implements client.Client for the kinds tests use.
func (c *Cluster) IsObjectNamespaced(obj runtime.Object) (bool, error) {
	kind := c.kind(obj).Kind
	return !slices.Contains([]string{"Namespace", "Node", "PersistentVolume", "ClusterRole", "ClusterRoleBinding"}, kind), nil
}
