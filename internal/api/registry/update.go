package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/endpoints/handlers/fieldmanager"
	"k8s.io/apiserver/pkg/registry/rest"

	"gantry.dev/gantry/internal/store"
)

// change makes the new object from the current one, both of the served version, which it must
// not touch; current is nil when there is none. The result has its managed fields and is the caller's own.
type change func(current store.Object) (store.Object, error)

// updating is one update on its way.
type updating struct {
	namespace   string
	name        string
	sub         string
	strategy    rest.RESTUpdateStrategy
	opts        *metav1.UpdateOptions
	uid         types.UID // must match when set
	apply       change
	forceCreate bool // create when there is none, as server-side apply does
	// mapped is the subresource of another type through which the object is changed. Admission
	// sees that: what it changes, apply has done; what it refuses is asked here.
	mapped *subresource
}

// Update replaces the object, or what the subresource shows of it, by in, which it takes
// over. created is true when there was none and the kind may be created by update.
func (r *Resource) Update(ctx context.Context, namespace, name, sub string, in runtime.Object, manager string, opts *metav1.UpdateOptions) (entry *store.Entry, created bool, err error) {
	s := r.subs[sub]
	if s != nil && s.toParent != nil {
		return r.updateMapped(ctx, namespace, name, s, in, manager, opts)
	}
	obj, err := r.own(in)
	if err != nil {
		return nil, false, err
	}
	ctx = r.requestContext(ctx, namespace, "update", name, sub)
	if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(rest.ExpectedNamespaceForScope(namespace, r.Namespaced), obj); err != nil {
		return nil, false, err
	}
	if err := checkName(obj, namespace, name); err != nil {
		return nil, false, err
	}
	r.setDefaults(obj)
	if obj, err = r.normalize(obj); err != nil {
		return nil, false, err
	}
	u := updating{namespace: namespace, name: name, sub: sub, strategy: r.updateStrategy(sub), opts: opts, uid: obj.GetUID()}
	u.apply = func(current store.Object) (store.Object, error) {
		next := obj.DeepCopyObject().(store.Object) // a lost race starts again from what the client sent
		if current == nil {
			current = r.def.newObj()
		}
		return r.managers[sub].update(current, next, manager)
	}
	return r.updateView(ctx, u)
}

// updateView is update, answered in the served version.
func (r *Resource) updateView(ctx context.Context, u updating) (*store.Entry, bool, error) {
	entry, created, err := r.update(ctx, u)
	if err != nil {
		return nil, false, err
	}
	entry, err = r.view(entry)
	return entry, created, err
}

func (r *Resource) updateStrategy(sub string) rest.RESTUpdateStrategy {
	if s := r.subs[sub]; s != nil && s.strategy != nil {
		return s.strategy
	}
	return r.def.strategy
}

func checkName(obj store.Object, namespace, name string) error {
	if obj.GetName() == "" {
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s based on URL) was undeterminable: name must be provided", name))
	}
	if obj.GetName() != name {
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", obj.GetName(), name))
	}
	if namespace != "" && obj.GetNamespace() != "" && obj.GetNamespace() != namespace {
		return apierrors.NewBadRequest(fmt.Sprintf("the namespace of the object (%s) does not match the namespace on the request (%s)", obj.GetNamespace(), namespace))
	}
	return nil
}

// update runs u until it is stored or fails; a lost race starts it again. It returns the stored entry.
func (r *Resource) update(ctx context.Context, u updating) (*store.Entry, bool, error) {
	key := r.def.stored.Key(u.namespace, u.name)
	checked := false
	for ctx.Err() == nil {
		current, err := r.store.Current(ctx, r.def.stored.Name, key)
		if errors.Is(err, store.ErrNotFound) {
			if !u.forceCreate && !u.strategy.AllowCreateOnUpdate() {
				return nil, false, apierrors.NewNotFound(r.Resource.GroupResource(), u.name)
			}
			entry, err := r.createByUpdate(ctx, u)
			if u.forceCreate && apierrors.IsAlreadyExists(err) {
				continue
			}
			return entry, err == nil, err
		}
		if err != nil {
			return nil, false, statusError(err, r.Resource.GroupResource(), u.name)
		}
		entry, again, err := r.updateOnce(ctx, u, key, current)
		if err != nil && !again && !checked { // a refusal must not rest on what another server has changed
			checked = true
			again = r.outdated(ctx, key, current)
		}
		if !again {
			return entry, false, err
		}
	}
	return nil, false, statusError(ctx.Err(), r.Resource.GroupResource(), u.name)
}

// createGuardKey is where a context carries what WithCreateGuard was given.
type createGuardKey struct{}

// WithCreateGuard makes an update or apply that finds nothing of its name ask allowed before it creates: a right to
// change objects is none to make them. Without a guard it just creates.
func WithCreateGuard(ctx context.Context, allowed func(context.Context) error) context.Context {
	return context.WithValue(ctx, createGuardKey{}, allowed)
}

func (r *Resource) createByUpdate(ctx context.Context, u updating) (*store.Entry, error) {
	if allowed, ok := ctx.Value(createGuardKey{}).(func(context.Context) error); ok {
		if err := allowed(ctx); err != nil {
			return nil, err
		}
	}
	obj, err := u.apply(nil)
	if err != nil {
		return nil, err
	}
	if obj.GetUID() != "" {
		return nil, apierrors.NewConflict(r.Resource.GroupResource(), u.name,
			fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", obj.GetUID()))
	}
	if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(rest.ExpectedNamespaceForScope(u.namespace, r.Namespaced), obj); err != nil {
		return nil, err
	}
	if err := checkName(obj, u.namespace, u.name); err != nil {
		return nil, err
	}
	rest.WipeObjectMetaSystemFields(obj)
	obj.SetResourceVersion("")
	opts := &metav1.CreateOptions{DryRun: u.opts.DryRun, FieldManager: u.opts.FieldManager, FieldValidation: u.opts.FieldValidation}
	return r.createPrepared(ctx, u.namespace, obj, opts)
}

// updateOnce tries u on the current entry. again says that the object changed meanwhile.
func (r *Resource) updateOnce(ctx context.Context, u updating, key string, current *store.Entry) (entry *store.Entry, again bool, err error) {
	if u.uid != "" && u.uid != current.Object.GetUID() {
		return nil, false, apierrors.NewConflict(r.Resource.GroupResource(), u.name,
			preconditionError("UID", u.uid, current.Object.GetUID()))
	}
	live, err := r.view(current)
	if err != nil {
		return nil, false, err
	}
	obj, err := u.apply(live.Object)
	if err != nil {
		return nil, false, err
	}
	if err := r.checkRevision(u, obj, current); err != nil {
		return nil, false, err
	}
	internal, err := r.def.versions.ToInternal(obj)
	if err != nil {
		return nil, false, err
	}
	// A copy: strategies share the old object's insides with the new.
	oldInternal, err := r.def.versions.Old(current.Object, live.Object)
	if err != nil {
		return nil, false, err
	}
	if adm := r.registry.admission; adm != nil && u.mapped == nil {
		if err := adm.Admit(ctx, r.updateAttributes(ctx, u, internal, oldInternal)); err != nil {
			return nil, false, err
		}
	}
	finish := func(bool) {}
	if u.sub == "" {
		if finish, err = r.begin(ctx, internal, oldInternal, u.opts.DryRun); err != nil {
			return nil, false, err
		}
	}
	stored := false
	defer func() { finish(stored) }()
	internal, remove, err := r.prepareUpdate(ctx, u, internal, oldInternal)
	if err != nil {
		return nil, false, err
	}
	if obj, err = r.def.versions.ToStored(internal); err != nil {
		return nil, false, err
	}
	if remove {
		return r.removeFinalized(ctx, u, key, current, obj)
	}
	entry, again, err = r.storeUpdate(ctx, u, key, current, obj)
	stored = err == nil && !again
	return entry, again, err
}

// checkRevision compares the revision that the client read with what is there.
func (r *Resource) checkRevision(u updating, obj store.Object, current *store.Entry) error {
	revision := obj.GetResourceVersion()
	if revision == "" || revision == "0" {
		if !u.strategy.AllowUnconditionalUpdate() {
			return apierrors.NewInvalid(schema.GroupKind{Group: r.Resource.Group, Kind: r.Resource.Resource}, u.name, field.ErrorList{
				field.Invalid(field.NewPath("metadata").Child("resourceVersion"), 0, "must be specified for an update"),
			})
		}
		obj.SetResourceVersion(strconv.FormatInt(current.Rev, 10))
		return nil
	}
	if revision != strconv.FormatInt(current.Rev, 10) {
		return apierrors.NewConflict(r.Resource.GroupResource(), u.name, errors.New(conflictMessage))
	}
	return nil
}

// prepareUpdate takes the new object through strategy, validation and validating admission. remove says
// that the update took the last finalizer of an object that is being deleted.
func (r *Resource) prepareUpdate(ctx context.Context, u updating, internal, oldInternal runtime.Object) (prepared runtime.Object, remove bool, err error) {
	if err := rest.BeforeUpdate(u.strategy, ctx, internal, oldInternal); err != nil {
		return nil, false, err
	}
	if internal, err = fieldmanager.IgnoreManagedFieldsTimestampsTransformer(ctx, internal, oldInternal); err != nil {
		return nil, false, err
	}
	if err := r.validateUpdate(ctx, u, internal, oldInternal); err != nil {
		return nil, false, err
	}
	meta, err := metaOf(internal)
	if err != nil {
		return nil, false, err
	}
	oldMeta, err := metaOf(oldInternal)
	if err != nil {
		return nil, false, err
	}
	grace := oldMeta.GetDeletionGracePeriodSeconds()
	remove = len(meta.GetFinalizers()) == 0 && oldMeta.GetDeletionTimestamp() != nil && (grace == nil || *grace == 0) && namespaceFinalized(internal)
	return internal, remove, nil
}

func (r *Resource) removeFinalized(ctx context.Context, u updating, key string, current *store.Entry, obj store.Object) (*store.Entry, bool, error) {
	if isDryRun(u.opts.DryRun) {
		return store.NewEntry(obj, r.def.stored.Codec), false, nil
	}
	_, err := r.store.Delete(ctx, r.def.stored.Name, key, current.Rev)
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, statusError(err, r.Resource.GroupResource(), u.name)
	}
	if hook := r.def.hooks.afterDelete; hook != nil {
		hook(ctx, obj)
	}
	return store.NewEntry(obj, r.def.stored.Codec), false, nil
}

// outdated reports whether the object has changed since it was read, as far as can be told.
func (r *Resource) outdated(ctx context.Context, key string, known *store.Entry) bool {
	changed, err := r.store.Outdated(ctx, r.def.stored.Name, key, known)
	return changed && err == nil
}

func (r *Resource) storeUpdate(ctx context.Context, u updating, key string, current *store.Entry, obj store.Object) (*store.Entry, bool, error) {
	if isDryRun(u.opts.DryRun) {
		return store.NewEntry(obj, r.def.stored.Codec), false, nil
	}
	same, err := r.equal(obj, current.Object)
	if same && err == nil && r.def.stored.Sealer != nil {
		stale, staleErr := r.store.Stale(ctx, r.def.stored.Name, key)
		same, err = !stale, statusError(staleErr, r.Resource.GroupResource(), u.name) // a new key is reason enough to write
	}
	if err != nil || same {
		if err == nil {
			changed, err := r.store.Outdated(ctx, r.def.stored.Name, key, current)
			return current, changed, statusError(err, r.Resource.GroupResource(), u.name)
		}
		return current, false, err
	}
	r.share(obj, current)
	truncateTimes(obj)
	entry, err := r.store.Update(ctx, r.def.stored.Name, key, current.Rev, obj)
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		return nil, true, nil
	}
	return entry, false, statusError(err, r.Resource.GroupResource(), u.name)
}

func (r *Resource) share(obj store.Object, current *store.Entry) {
	if r.def.hooks.share != nil {
		r.def.hooks.share(obj, current.Object)
	}
}

// equal reports whether two objects are stored as the same bytes.
func (r *Resource) equal(a, b store.Object) (bool, error) {
	left, err := r.def.stored.Codec.Encode(a)
	if err != nil {
		return false, err
	}
	right, err := r.def.stored.Codec.Encode(b)
	return bytes.Equal(left, right), err
}
