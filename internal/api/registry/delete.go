package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/registry/rest"
	api "k8s.io/kubernetes/pkg/apis/core"

	"gantry.dev/gantry/internal/store"
)

// deleteWorkers is how many objects of a collection are deleted at once.
const deleteWorkers = 16

// Delete removes the object, or marks it for removal where a grace period or finalizers
// hold it. opts may be changed.
func (r *Resource) Delete(ctx context.Context, namespace, name string, opts *metav1.DeleteOptions) (DeleteResult, error) {
	ctx = r.requestContext(ctx, namespace, "delete", name, "")
	if warn := r.def.hooks.beforeDelete; warn != nil {
		warn(ctx, opts)
	}
	key := r.def.stored.Key(namespace, name)
	var marked *store.Entry // by this call, for removal at once
	checked := false
	for ctx.Err() == nil {
		current, err := r.store.Current(ctx, r.def.stored.Name, key)
		if err != nil && marked == nil {
			return DeleteResult{}, statusError(err, r.Resource.GroupResource(), name)
		}
		var result DeleteResult
		var again bool
		if err == nil {
			result, again, err = r.deleteOnce(ctx, namespace, key, current, opts)
			if !again && err != nil && marked == nil && !checked { // as for updates
				checked = true
				again = r.outdated(ctx, key, current)
			}
		}
		if again {
			marked = cmp.Or(result.Entry, marked)
			continue
		}
		if marked != nil && (apierrors.IsNotFound(err) || errors.Is(err, store.ErrNotFound)) {
			// A node that saw the mark was quicker: what was asked for is done.
			result, err = DeleteResult{Entry: marked, Done: true, ReturnsObject: r.def.returnDeleted}, nil
		}
		if err == nil {
			result.Entry, err = r.view(result.Entry)
		}
		return result, err
	}
	return DeleteResult{}, statusError(ctx.Err(), r.Resource.GroupResource(), name)
}

// deleteOnce tries to delete the current entry. again says that it changed meanwhile.
func (r *Resource) deleteOnce(ctx context.Context, namespace, key string, current *store.Entry, opts *metav1.DeleteOptions) (result DeleteResult, again bool, err error) {
	if err := r.checkPreconditions(current, opts); err != nil {
		return DeleteResult{}, false, err
	}
	served, err := r.view(current)
	if err != nil {
		return DeleteResult{}, false, err
	}
	internal, err := r.def.versions.Old(current.Object, served.Object)
	if err != nil {
		return DeleteResult{}, false, err
	}
	if adm := r.registry.admission; adm != nil && !r.quiet {
		attributes := r.attributes(ctx, nil, internal, namespace, current.Object.GetName(), "", admission.Delete, opts, isDryRun(opts.DryRun))
		if err := adm.Admit(ctx, attributes); err != nil {
			return DeleteResult{}, false, err
		}
		if err := adm.Validate(ctx, attributes); err != nil {
			return DeleteResult{}, false, err
		}
	}
	mark, gone, err := r.planDelete(ctx, internal, current, opts)
	if err != nil {
		return DeleteResult{}, false, err
	}
	if !mark && !gone { // already on its way
		return DeleteResult{Entry: current}, false, nil
	}
	if mark {
		obj, err := r.def.versions.ToStored(internal)
		if err != nil {
			return DeleteResult{}, false, err
		}
		if current, again, err = r.mark(ctx, key, current, obj, opts); err != nil || again || !gone {
			return DeleteResult{Entry: current}, again, err
		}
	}
	result, again, err = r.remove(ctx, key, current, opts)
	if mark && (again || apierrors.IsNotFound(err)) {
		return DeleteResult{Entry: current}, true, nil
	}
	return result, again, err
}

// planDelete marks internal as upstream's strategies would. mark says that the marked object
// must be stored, gone that the object then goes.
func (r *Resource) planDelete(ctx context.Context, internal runtime.Object, current *store.Entry, opts *metav1.DeleteOptions) (mark, gone bool, err error) {
	if mark := r.def.hooks.markDeleted; mark != nil && current.Object.GetDeletionTimestamp() == nil {
		mark(internal)
		return true, false, nil
	}
	if ns, ok := internal.(*api.Namespace); ok && (ns.DeletionTimestamp.IsZero() || len(ns.Spec.Finalizers) > 0) {
		return markNamespace(ns, opts), false, nil
	}
	marked := current.Object.GetDeletionTimestamp() != nil
	graceful, pending, err := rest.BeforeDelete(r.def.strategy, ctx, internal, opts)
	if err != nil || pending {
		return false, false, err
	}
	meta, err := metaOf(internal)
	if err != nil {
		return false, false, err
	}
	finalizers := r.deletionFinalizers(ctx, meta, opts)
	changed := !sameSet(finalizers, meta.GetFinalizers())
	meta.SetFinalizers(finalizers)
	switch {
	case len(finalizers) > 0:
		if !graceful {
			markDeleting(meta, time.Now())
		}
		return graceful || changed || !marked, false, nil
	case !graceful:
		return false, true, nil
	case *opts.GracePeriodSeconds > 0:
		return true, false, nil
	}
	// Without a grace period the object goes at once; a watcher that has not seen it marked
	// sees it marked first, as upstream writes it.
	return !marked, true, nil
}

// markNamespace starts the termination of a namespace; false when it had started.
func markNamespace(ns *api.Namespace, opts *metav1.DeleteOptions) bool {
	if !ns.DeletionTimestamp.IsZero() {
		return false
	}
	now := metav1.Now()
	ns.DeletionTimestamp = &now
	ns.Status.Phase = api.NamespaceTerminating
	if opts.PropagationPolicy != nil {
		ns.Finalizers = slices.DeleteFunc(ns.Finalizers, isGarbageFinalizer)
		switch *opts.PropagationPolicy {
		case metav1.DeletePropagationOrphan:
			ns.Finalizers = append(ns.Finalizers, metav1.FinalizerOrphanDependents)
		case metav1.DeletePropagationForeground:
			ns.Finalizers = append(ns.Finalizers, metav1.FinalizerDeleteDependents)
		}
	}
	return true
}

// namespaceFinalized is false for a namespace that its controller has not emptied.
func namespaceFinalized(internal runtime.Object) bool {
	ns, ok := internal.(*api.Namespace)
	return !ok || len(ns.Spec.Finalizers) == 0
}

func isGarbageFinalizer(name string) bool {
	return name == metav1.FinalizerOrphanDependents || name == metav1.FinalizerDeleteDependents
}

// deletionFinalizers is the object's finalizers with those for the garbage collector as the
// options ask for (Kubernetes documentation, "Garbage Collection").
func (r *Resource) deletionFinalizers(ctx context.Context, meta metav1.Object, opts *metav1.DeleteOptions) []string {
	kept := slices.DeleteFunc(slices.Clone(meta.GetFinalizers()), isGarbageFinalizer)
	var policy rest.GarbageCollectionPolicy
	if s, ok := r.def.strategy.(rest.GarbageCollectionDeleteStrategy); ok {
		policy = s.DefaultGarbageCollectionPolicy(ctx)
	}
	if policy == rest.Unsupported {
		return kept
	}
	switch {
	case opts.OrphanDependents != nil: //nolint:staticcheck // deprecated, and still sent by old clients
		if *opts.OrphanDependents { //nolint:staticcheck // as above
			return append(kept, metav1.FinalizerOrphanDependents)
		}
		return kept
	case opts.PropagationPolicy != nil:
		switch *opts.PropagationPolicy {
		case metav1.DeletePropagationOrphan:
			return append(kept, metav1.FinalizerOrphanDependents)
		case metav1.DeletePropagationForeground:
			return append(kept, metav1.FinalizerDeleteDependents)
		}
		return kept
	}
	for _, finalizer := range meta.GetFinalizers() {
		if isGarbageFinalizer(finalizer) {
			return append(kept, finalizer)
		}
	}
	if policy == rest.OrphanDependents {
		return append(kept, metav1.FinalizerOrphanDependents)
	}
	return kept
}

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

// markDeleting sets the deletion timestamp of an object that has no grace period of its own.
func markDeleting(meta metav1.Object, now time.Time) {
	if at := meta.GetDeletionTimestamp(); at == nil || at.After(now) {
		if at == nil && meta.GetGeneration() > 0 {
			meta.SetGeneration(meta.GetGeneration() + 1)
		}
		stamp := metav1.NewTime(now)
		meta.SetDeletionTimestamp(&stamp)
	}
	var zero int64
	meta.SetDeletionGracePeriodSeconds(&zero)
}

// checkPreconditions compares what the client says of the object with what it is; the texts are
// upstream's (apiserver, rest.BeforeDelete; a namespace has its own).
func (r *Resource) checkPreconditions(current *store.Entry, opts *metav1.DeleteOptions) error {
	want, name := opts.Preconditions, current.Object.GetName()
	if want == nil {
		return nil
	}
	kind := schema.GroupResource{Group: r.Stored.Group, Resource: r.Kind.Kind}
	if uid := current.Object.GetUID(); want.UID != nil && *want.UID != uid {
		if r.Kind.Kind == "Namespace" {
			return apierrors.NewConflict(r.Resource.GroupResource(), name, preconditionError("UID", *want.UID, uid))
		}
		return apierrors.NewConflict(kind, name, fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s). "+
			"The object might have been deleted and then recreated", *want.UID, uid))
	}
	if want.ResourceVersion != nil && *want.ResourceVersion != strconv.FormatInt(current.Rev, 10) {
		if r.Kind.Kind == "Namespace" {
			return apierrors.NewConflict(r.Resource.GroupResource(), name, preconditionError("ResourceVersion", *want.ResourceVersion, current.Rev))
		}
		return apierrors.NewConflict(kind, name, fmt.Errorf("the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%d). "+
			"The object might have been modified", *want.ResourceVersion, current.Rev))
	}
	return nil
}

// mark stores an object that is marked for deletion.
func (r *Resource) mark(ctx context.Context, key string, current *store.Entry, obj store.Object, opts *metav1.DeleteOptions) (*store.Entry, bool, error) {
	if isDryRun(opts.DryRun) {
		return store.NewEntry(obj, r.def.stored.Codec), false, nil
	}
	r.share(obj, current)
	truncateTimes(obj)
	entry, err := r.store.Update(ctx, r.def.stored.Name, key, current.Rev, obj)
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		return nil, true, nil
	}
	if err == nil && opts.Preconditions != nil && opts.Preconditions.ResourceVersion != nil {
		revision := strconv.FormatInt(entry.Rev, 10)
		opts.Preconditions.ResourceVersion = &revision
	}
	return entry, false, statusError(err, r.Resource.GroupResource(), obj.GetName())
}

// remove deletes the entry for good.
func (r *Resource) remove(ctx context.Context, key string, current *store.Entry, opts *metav1.DeleteOptions) (DeleteResult, bool, error) {
	result := DeleteResult{Entry: current, Done: true, ReturnsObject: r.def.returnDeleted}
	if isDryRun(opts.DryRun) {
		return result, false, nil
	}
	gone, err := r.store.Delete(ctx, r.def.stored.Name, key, current.Rev)
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		return DeleteResult{}, true, nil
	}
	if err != nil {
		return DeleteResult{}, false, statusError(err, r.Resource.GroupResource(), current.Object.GetName())
	}
	result.Entry = gone
	if hook := r.def.hooks.afterDelete; hook != nil {
		hook(ctx, gone.Object)
	}
	return result, false, nil
}

// DeleteCollection deletes what the list options select and returns what it found.
func (r *Resource) DeleteCollection(ctx context.Context, namespace string, opts *metav1.DeleteOptions, listOpts ListOptions) (List, error) {
	list, err := r.List(ctx, namespace, listOpts)
	if err != nil {
		return List{}, err
	}
	work := make(chan *store.Entry)
	var group sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for range min(deleteWorkers, len(list.Entries)) {
		group.Go(func() {
			for e := range work {
				ns, name := splitKey(e.Key)
				if _, err := r.Delete(ctx, ns, name, opts.DeepCopy()); err != nil && !apierrors.IsNotFound(err) {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, e := range list.Entries {
		work <- e
	}
	close(work)
	group.Wait()
	var status *apierrors.StatusError
	if errors.As(failed, &status) {
		return List{}, status
	}
	return list, failed
}
