package registry

import (
	"context"
	"fmt"
	"maps"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"

	"gantry.dev/gantry/internal/store"
)

// success is what actions on objects answer.
func success() runtime.Object {
	return &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess}
}

// CreateSub performs the action that a subresource stands for, such as binding or eviction.
func (r *Resource) CreateSub(ctx context.Context, namespace, name, sub string, obj runtime.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
	s := r.subs[sub]
	if s == nil || s.create == nil {
		return nil, apierrors.NewMethodNotSupported(r.Resource.GroupResource(), "create")
	}
	ctx = r.requestContext(ctx, namespace, "create", name, sub)
	if meta, ok := obj.(metav1.ObjectMetaAccessor); ok {
		if meta.GetObjectMeta().GetName() == "" {
			meta.GetObjectMeta().SetName(name)
		}
		if meta.GetObjectMeta().GetName() != name {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("name in URL (%s) does not match name in %s object (%s)", name, s.info.Kind.Kind, meta.GetObjectMeta().GetName()))
		}
	}
	obj, err := r.admitAction(ctx, s, namespace, name, obj, opts)
	if err != nil {
		return nil, err
	}
	return s.create(ctx, r, namespace, name, obj, opts)
}

func bindingSubresource() *subresource {
	return &subresource{
		info:   SubresourceInfo{Name: "binding", Kind: corev1.SchemeGroupVersion.WithKind("Binding"), Verbs: []string{"create"}},
		newObj: func() runtime.Object { return &corev1.Binding{} },
		create: bind,
	}
}

// bind assigns a pod to a node, once.
func bind(ctx context.Context, r *Resource, namespace, name string, in runtime.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
	binding, ok := in.(*corev1.Binding)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("not a Binding object: %T", in))
	}
	var internal api.Binding
	if err := legacyscheme.Scheme.Convert(binding, &internal, nil); err != nil {
		return nil, fmt.Errorf("converting Binding: %w", err)
	}
	if errs := validation.ValidatePodBinding(&internal); len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	_, err := r.change(ctx, namespace, name, isDryRun(opts.DryRun), func(current *store.Entry) (store.Object, error) {
		pod := current.Object.(*corev1.Pod)
		if err := checkBinding(pod, current, binding); err != nil {
			return nil, err
		}
		return boundPod(pod, binding), nil
	})
	if err != nil {
		if _, ok := err.(apierrors.APIStatus); !ok {
			err = apierrors.NewConflict(corev1.Resource("pods/binding"), name, err)
		}
		return nil, err
	}
	return success(), nil
}

func checkBinding(pod *corev1.Pod, current *store.Entry, binding *corev1.Binding) error {
	switch {
	case binding.UID != "" && binding.UID != pod.UID:
		return preconditionError("UID", binding.UID, pod.UID)
	case binding.ResourceVersion != "" && binding.ResourceVersion != strconv.FormatInt(current.Rev, 10):
		return preconditionError("ResourceVersion", binding.ResourceVersion, current.Rev)
	case pod.DeletionTimestamp != nil:
		return fmt.Errorf("pod %s is being deleted, cannot be assigned to a host", pod.Name)
	case pod.Spec.NodeName != "":
		return fmt.Errorf("pod %s is already assigned to node %q", pod.Name, pod.Spec.NodeName)
	case len(pod.Spec.SchedulingGates) != 0:
		return fmt.Errorf("pod %s has non-empty .spec.schedulingGates", pod.Name)
	}
	return nil
}

// boundPod is pod on the node of the binding. It shares what does not change.
func boundPod(pod *corev1.Pod, binding *corev1.Binding) *corev1.Pod {
	bound := *pod
	bound.Spec.NodeName = binding.Target.Name
	bound.Status.NominatedNodeName = ""
	if len(binding.Annotations) > 0 {
		bound.Annotations = merged(pod.Annotations, binding.Annotations)
	}
	if len(binding.Labels) > 0 {
		bound.Labels = merged(pod.Labels, binding.Labels)
	}
	bound.Status.Conditions = withCondition(pod.Status.Conditions, corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionTrue, ObservedGeneration: pod.Generation,
	})
	return &bound
}

func merged(base, over map[string]string) map[string]string {
	out := make(map[string]string, len(base)+len(over))
	maps.Copy(out, base)
	maps.Copy(out, over)
	return out
}

// withCondition is conditions with one set; its time moves only when its status changes.
func withCondition(conditions []corev1.PodCondition, set corev1.PodCondition) []corev1.PodCondition {
	out := make([]corev1.PodCondition, 0, len(conditions)+1)
	set.LastTransitionTime = metav1.Now()
	found := false
	for _, c := range conditions {
		if c.Type == set.Type {
			if c.Status == set.Status {
				set.LastTransitionTime = c.LastTransitionTime
			}
			c, found = set, true
		}
		out = append(out, c)
	}
	if !found {
		out = append(out, set)
	}
	return out
}

// change stores what edit makes of the current object, until no one else was faster. It is
// for the server's own steps: they pass no strategy. edit must not touch what it is given.
func (r *Resource) change(ctx context.Context, namespace, name string, dryRun bool, edit func(current *store.Entry) (store.Object, error)) (*store.Entry, error) {
	key := r.def.stored.Key(namespace, name)
	for ctx.Err() == nil {
		current, err := r.store.Get(r.def.stored.Name, key)
		if err != nil {
			return nil, statusError(err, r.Resource.GroupResource(), name)
		}
		next, err := edit(current)
		if err != nil || dryRun {
			return current, err
		}
		truncateTimes(next)
		entry, err := r.store.Update(ctx, r.def.stored.Name, key, current.Rev, next)
		if !isLostRace(err) {
			return entry, statusError(err, r.Resource.GroupResource(), name)
		}
	}
	return nil, statusError(ctx.Err(), r.Resource.GroupResource(), name)
}
