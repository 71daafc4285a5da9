package registry

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"gantry.dev/gantry/internal/store"
)

// attributes describes a change of an object of the resource, or of a view of it.
func (r *Resource) attributes(ctx context.Context, obj, old runtime.Object, namespace, name, sub string, op admission.Operation, opts runtime.Object, dryRun bool) admission.Attributes {
	return r.attributesOf(ctx, r.Kind, obj, old, namespace, name, sub, op, opts, dryRun)
}

// attributesOf is attributes for objects of a kind that a subresource takes.
func (r *Resource) attributesOf(ctx context.Context, kind schema.GroupVersionKind, obj, old runtime.Object, namespace, name, sub string,
	op admission.Operation, opts runtime.Object, dryRun bool) admission.Attributes {
	user, _ := genericapirequest.UserFrom(ctx)
	if op != admission.Create && r.Resource.Resource == "namespaces" && r.Resource.Group == corev1.GroupName {
		namespace = name // as upstream reads it from the path: a namespace is in itself
	}
	if opts != nil {
		if kind := opts.GetObjectKind(); kind.GroupVersionKind().Empty() {
			kind.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind(optionsKind(opts))) // webhooks are shown it
		}
	}
	return admission.NewAttributesRecord(obj, old, kind, namespace, name, r.Resource, sub, op, opts, dryRun, user)
}

// AdmitReview asks admission about a question, such as a SubjectAccessReview, which is answered and not stored. obj is of
// the served version; admission may change it.
func (r *Registry) AdmitReview(ctx context.Context, resource schema.GroupVersionResource, kind schema.GroupVersionKind, namespace string,
	obj runtime.Object, opts *metav1.CreateOptions) error {
	if r.admission == nil {
		return nil
	}
	user, _ := genericapirequest.UserFrom(ctx)
	obj.GetObjectKind().SetGroupVersionKind(kind)
	opts.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind(optionsKind(opts)))
	a := admission.NewAttributesRecord(obj, nil, kind, namespace, "", resource, "", admission.Create, opts, isDryRun(opts.DryRun), user)
	if err := r.admission.Admit(ctx, a); err != nil {
		return err
	}
	return r.admission.Validate(ctx, a)
}

func optionsKind(opts runtime.Object) string {
	switch opts.(type) {
	case *metav1.CreateOptions:
		return "CreateOptions"
	case *metav1.DeleteOptions:
		return "DeleteOptions"
	}
	return "UpdateOptions"
}

func (r *Resource) updateAttributes(ctx context.Context, u updating, obj, old runtime.Object) admission.Attributes {
	kind := r.Kind
	if u.mapped != nil {
		kind = u.mapped.info.Kind
	}
	return r.attributesOf(ctx, kind, obj, old, u.namespace, u.name, u.sub, admission.Update, u.opts, isDryRun(u.opts.DryRun))
}

// validateUpdate asks validating admission about an update, in terms of what the client sees.
func (r *Resource) validateUpdate(ctx context.Context, u updating, internal, oldInternal runtime.Object) error {
	adm := r.registry.admission
	if adm == nil {
		return nil
	}
	if u.mapped != nil {
		var err error
		if internal, err = r.mappedInternal(u.mapped, internal); err != nil {
			return err
		}
		if oldInternal, err = r.mappedInternal(u.mapped, oldInternal); err != nil {
			return err
		}
	}
	return adm.Validate(ctx, r.updateAttributes(ctx, u, internal, oldInternal))
}

// mappedInternal is the subresource of another type that belongs to an object that strategies work on.
func (r *Resource) mappedInternal(s *subresource, internal runtime.Object) (runtime.Object, error) {
	parent, custom := internal.(store.Object) // a custom resource as it is served
	if !custom || r.def.custom == nil {
		var err error
		if parent, err = r.def.versions.ToStored(internal.DeepCopyObject()); err != nil {
			return nil, err
		}
	}
	sub, err := s.toChange(parent)
	if err != nil {
		return nil, err
	}
	return unsafeConvert(sub, internalVersion(s.info.Kind))
}

// admitMapped lets admission change a subresource of another type on its way into parent.
func (r *Resource) admitMapped(ctx context.Context, s *subresource, parent, after store.Object, opts *metav1.UpdateOptions) (store.Object, error) {
	adm := r.registry.admission
	if adm == nil {
		return after, nil
	}
	before, err := s.toChange(parent)
	if err != nil {
		return nil, err
	}
	old, err := unsafeConvert(before, internalVersion(s.info.Kind))
	if err != nil {
		return nil, err
	}
	internal, err := unsafeConvert(after, internalVersion(s.info.Kind))
	if err != nil {
		return nil, err
	}
	u := updating{namespace: parent.GetNamespace(), name: parent.GetName(), sub: s.info.Name, opts: opts, mapped: s}
	if err := adm.Admit(ctx, r.updateAttributes(ctx, u, internal, old)); err != nil {
		return nil, err
	}
	return versioned(internal, s.info.Kind)
}

// admitAction takes what a client sent to a subresource that stands for an action through
// admission and returns it as admission left it.
func (r *Resource) admitAction(ctx context.Context, s *subresource, namespace, name string, obj runtime.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
	adm := r.registry.admission
	if adm == nil {
		return obj, nil
	}
	legacyscheme.Scheme.Default(obj) // internal types have no way to say that a field is not set
	internal, err := legacyscheme.Scheme.UnsafeConvertToVersion(obj, internalVersion(s.info.Kind))
	if err != nil {
		return nil, err
	}
	a := r.attributesOf(ctx, s.info.Kind, internal, nil, namespace, name, s.info.Name, admission.Create, opts, isDryRun(opts.DryRun))
	if err := adm.Admit(ctx, a); err != nil {
		return nil, err
	}
	if err := adm.Validate(ctx, a); err != nil {
		return nil, err
	}
	out, err := unsafeConvert(internal, s.info.Kind.GroupVersion())
	if err != nil {
		return nil, err
	}
	out.GetObjectKind().SetGroupVersionKind(s.info.Kind)
	return out, nil
}

// Connect asks admission whether a stream to the object may be opened. opts are what the client
// asks of it, in the internal type.
func (r *Resource) Connect(ctx context.Context, namespace, name, sub string, opts runtime.Object) error {
	adm := r.registry.admission
	if adm == nil {
		return nil
	}
	a := r.attributesOf(ctx, r.connectKind(sub), opts, nil, namespace, name, sub, admission.Connect, nil, false)
	if err := adm.Admit(ctx, a); err != nil {
		return err
	}
	return adm.Validate(ctx, a)
}

func (r *Resource) connectKind(sub string) schema.GroupVersionKind {
	if s := r.subs[sub]; s != nil {
		return s.info.Kind
	}
	return r.Kind
}
