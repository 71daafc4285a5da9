package controllertest

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Status implements client.Client.
func (c *Cluster) Status() client.SubResourceWriter { return subresource{c, "status"} }

// SubResource implements client.Client for status, binding, finalize and eviction.
func (c *Cluster) SubResource(name string) client.SubResourceClient { return subresource{c, name} }

type subresource struct {
	c    *Cluster
	name string
}

func (s subresource) Get(context.Context, client.Object, client.Object, ...client.SubResourceGetOption) error {
	return fmt.Errorf("controllertest: no get of %s", s.name)
}

func (s subresource) Create(ctx context.Context, obj, sub client.Object, _ ...client.SubResourceCreateOption) error {
	if err := s.c.ask(Write{Verb: "create", Sub: s.name, Object: obj}); err != nil {
		return err
	}
	if s.name == "eviction" {
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		return s.c.deleteLocked(s.c.kind(obj), client.ObjectKeyFromObject(obj), &client.DeleteOptions{})
	}
	binding, ok := sub.(*corev1.Binding)
	if !ok || s.name != "binding" {
		return fmt.Errorf("controllertest: no create of %s with %T", s.name, sub)
	}
	gvk := s.c.kind(obj)
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	r, found := s.c.tables[gvk][client.ObjectKeyFromObject(obj)]
	if !found {
		return apierrors.NewNotFound(resource(gvk), obj.GetName())
	}
	old := r.obj.(*corev1.Pod)
	if old.Spec.NodeName != "" {
		return apierrors.NewConflict(resource(gvk), old.Name, fmt.Errorf("pod %s is already assigned to node %q", old.Name, old.Spec.NodeName))
	}
	if binding.UID != "" && binding.UID != old.UID {
		return apierrors.NewConflict(resource(gvk), old.Name, fmt.Errorf("UID"))
	}
	pod := old.DeepCopy()
	pod.Spec.NodeName = binding.Target.Name
	s.c.storeLocked(gvk, old, pod)
	return nil
}

func (s subresource) Update(_ context.Context, obj client.Object, opts ...client.SubResourceUpdateOption) error {
	var o client.SubResourceUpdateOptions
	o.ApplyOptions(opts)
	if o.SubResourceBody != nil {
		obj = o.SubResourceBody
	}
	return s.c.update(Write{Verb: "update", Sub: s.name, Object: obj}, obj)
}

func (s subresource) Patch(_ context.Context, obj client.Object, patch client.Patch, _ ...client.SubResourcePatchOption) error {
	return s.c.patch(Write{Verb: "patch", Sub: s.name, Object: obj}, obj, patch)
}

func (s subresource) Apply(context.Context, runtime.ApplyConfiguration, ...client.SubResourceApplyOption) error {
	return fmt.Errorf("controllertest: apply is not part of this API")
}
