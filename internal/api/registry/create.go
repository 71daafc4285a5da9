package registry

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"gantry.dev/gantry/internal/store"
)

// maxNameAttempts is how often a generated name is tried again when it is taken (apiserver,
// registry.maxNameGenerationCreateAttempts).
const maxNameAttempts = 8

// Create stores a new object of the served version, which it takes over. manager is the
// field manager.
func (r *Resource) Create(ctx context.Context, namespace string, in runtime.Object, manager string, opts *metav1.CreateOptions) (*store.Entry, error) {
	obj, err := r.own(in)
	if err != nil {
		return nil, err
	}
	if obj.GetResourceVersion() != "" && obj.GetResourceVersion() != "0" {
		return nil, errors.New("resourceVersion should not be set on objects to be created")
	}
	ctx = r.requestContext(ctx, namespace, "create", obj.GetName(), "")
	rest.WipeObjectMetaSystemFields(obj)
	if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(rest.ExpectedNamespaceForScope(namespace, r.Namespaced), obj); err != nil {
		return nil, err
	}
	r.setDefaults(obj)
	if obj, err = r.normalize(obj); err != nil {
		return nil, err
	}
	if obj, err = r.managers[""].update(r.def.newObj(), obj, manager); err != nil {
		return nil, err
	}
	entry, err := r.createPrepared(ctx, namespace, obj, opts)
	if err != nil {
		return nil, err
	}
	return r.view(entry)
}

// createPrepared stores obj, of the served version, which has its defaults and managed fields.
func (r *Resource) createPrepared(ctx context.Context, namespace string, obj store.Object, opts *metav1.CreateOptions) (*store.Entry, error) {
	internal, err := r.def.versions.ToInternal(obj)
	if err != nil {
		return nil, err
	}
	attributes := func(obj runtime.Object, name string) admission.Attributes {
		return r.attributes(ctx, obj, nil, namespace, name, "", admission.Create, opts, isDryRun(opts.DryRun))
	}
	if adm := r.registry.admission; adm != nil {
		if err := adm.Admit(ctx, attributes(internal, obj.GetName())); err != nil {
			return nil, err
		}
	}
	meta, err := metaOf(internal)
	if err != nil {
		return nil, err
	}
	rest.FillObjectMetaSystemFields(meta)
	generated := meta.GetGenerateName() != "" && meta.GetName() == ""
	for attempt := 1; ; attempt++ {
		if generated {
			meta.SetName(r.def.strategy.GenerateName(meta.GetGenerateName()))
		}
		candidate := internal
		if generated && attempt < maxNameAttempts {
			candidate = internal.DeepCopyObject()
			if copied, err := metaOf(candidate); err == nil {
				copied.SetManagedFields(meta.GetManagedFields()) // they share memory with other objects, and may go on doing so
			}
		}
		entry, err := r.createOnce(ctx, candidate, attributes, opts)
		if !generated || !apierrors.IsAlreadyExists(err) {
			return entry, err
		}
		if attempt == maxNameAttempts {
			return nil, apierrors.NewGenerateNameConflict(r.Resource.GroupResource(), meta.GetName(), 1)
		}
	}
}

func (r *Resource) createOnce(ctx context.Context, internal runtime.Object, attributes func(runtime.Object, string) admission.Attributes, opts *metav1.CreateOptions) (*store.Entry, error) {
	finish, err := r.begin(ctx, internal, nil, opts.DryRun)
	if err != nil {
		return nil, err
	}
	stored := false
	defer func() { finish(stored) }()
	if err := rest.BeforeCreate(r.def.strategy, ctx, internal); err != nil {
		return nil, err
	}
	meta, err := metaOf(internal)
	if err != nil {
		return nil, err
	}
	if adm := r.registry.admission; adm != nil {
		if err := adm.Validate(ctx, attributes(internal, meta.GetName())); err != nil {
			return nil, err
		}
	}
	obj, err := r.def.versions.ToStored(internal)
	if err != nil {
		return nil, err
	}
	name := obj.GetName()
	key := r.def.stored.Key(obj.GetNamespace(), name)
	if isDryRun(opts.DryRun) {
		if err := r.store.Sync(ctx); err != nil {
			return nil, statusError(err, r.Resource.GroupResource(), name)
		}
		if _, err := r.store.Get(r.def.stored.Name, key); err == nil {
			return nil, apierrors.NewAlreadyExists(r.Resource.GroupResource(), name)
		}
		return store.NewEntry(obj, r.def.stored.Codec), nil
	}
	truncateTimes(obj)
	entry, err := r.store.Create(ctx, r.def.stored.Name, key, obj)
	stored = err == nil
	if errors.Is(err, store.ErrExists) {
		return nil, r.existing(key, name)
	}
	return entry, statusError(err, r.Resource.GroupResource(), name)
}

// begin runs the kind's hook; the finish it returns is never nil.
func (r *Resource) begin(ctx context.Context, obj, old runtime.Object, dryRun []string) (finish func(stored bool), err error) {
	if r.def.hooks.begin == nil {
		return func(bool) {}, nil
	}
	finish, err = r.def.hooks.begin(ctx, obj, old, isDryRun(dryRun))
	if finish == nil {
		finish = func(bool) {}
	}
	return finish, err
}

// existing is the answer to a create whose name is taken; it says when the object in the way
// is on its way out.
func (r *Resource) existing(key, name string) error {
	err := apierrors.NewAlreadyExists(r.Resource.GroupResource(), name)
	if e, getErr := r.store.Get(r.def.stored.Name, key); getErr == nil && e.Object.GetDeletionTimestamp() != nil {
		err.ErrStatus.Message = fmt.Sprintf("object is being deleted: %s", err.ErrStatus.Message)
	}
	return err
}

// own checks that in is of the served type and returns it.
func (r *Resource) own(in runtime.Object) (store.Object, error) {
	obj, ok := in.(store.Object)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("a %T is not an object of %s", in, r.Resource.GroupResource()))
	}
	if kind := in.GetObjectKind().GroupVersionKind(); kind != r.Kind {
		if !kind.Empty() {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("the object provided is a %s, want %s", kind, r.Kind))
		}
		obj.GetObjectKind().SetGroupVersionKind(r.Kind)
	}
	if r.def.custom != nil {
		if _, err := r.def.custom.Coerce(obj, false); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	}
	return obj, nil
}

// setDefaults fills what the client left out.
func (r *Resource) setDefaults(obj store.Object) {
	if r.def.custom != nil {
		r.def.custom.SetDefaults(obj)
		return
	}
	legacyscheme.Scheme.Default(obj)
}

// requestContext carries what upstream's strategies look for in a request.
func (r *Resource) requestContext(ctx context.Context, namespace, verb, name, sub string) context.Context {
	ctx = genericapirequest.WithNamespace(ctx, namespace)
	if info, ok := genericapirequest.RequestInfoFrom(ctx); ok && info.Resource == r.Resource.Resource && info.APIGroup == r.Resource.Group {
		return ctx // of the request itself, not of one that needs this as a step
	}
	return genericapirequest.WithRequestInfo(ctx, &genericapirequest.RequestInfo{
		IsResourceRequest: true, Verb: verb, APIGroup: r.Resource.Group, APIVersion: r.Resource.Version,
		Namespace: namespace, Resource: r.Resource.Resource, Subresource: sub, Name: name,
	})
}

func metaOf(obj runtime.Object) (metav1.Object, error) {
	switch o := obj.(type) {
	case metav1.ObjectMetaAccessor:
		return o.GetObjectMeta(), nil
	case metav1.Object:
		return o, nil
	}
	return nil, fmt.Errorf("%T has no metadata", obj)
}

func isDryRun(flags []string) bool { return len(flags) > 0 }
