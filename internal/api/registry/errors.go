package registry

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"gantry.dev/gantry/internal/store"
)

// conflictMessage is the text that clients know for a lost race (apiserver, registry.OptimisticLockErrorMsg).
const conflictMessage = "the object has been modified; please apply your changes to the latest version and try again"

// statusError turns the store's errors into those of the API.
func statusError(err error, resource schema.GroupResource, name string) error {
	var conflict *store.ConflictError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrNoKind):
		return apierrors.NewNotFound(resource, name)
	case errors.Is(err, store.ErrExists):
		return apierrors.NewAlreadyExists(resource, name)
	case errors.As(err, &conflict):
		if conflict.Current == nil {
			return apierrors.NewNotFound(resource, name)
		}
		return apierrors.NewConflict(resource, name, errors.New(conflictMessage))
	case errors.Is(err, store.ErrGone):
		return apierrors.NewResourceExpired("The resourceVersion for the provided watch is too old.")
	case errors.Is(err, store.ErrFuture):
		return tooLargeRevision()
	case errors.Is(err, store.ErrTooLarge):
		return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("%s %q is larger than etcd takes", resource, name))
	case errors.Is(err, store.ErrFull):
		return apierrors.NewInternalError(errors.New("etcdserver: mvcc: database space exceeded: delete objects or raise the quota"))
	case errors.Is(err, store.ErrDiskFull):
		return apierrors.NewInternalError(errors.New("the cluster is read-only: the disk of its store is full; free some space, or delete objects"))
	case errors.Is(err, store.ErrClosed):
		return unavailable("the store is stopping")
	case errors.Is(err, store.ErrNoLeader):
		return unavailable("the servers have no leader at the moment")
	case errors.Is(err, store.ErrBusy):
		return apierrors.NewTooManyRequests("etcdserver: too many requests", 1)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, store.ErrTimeout):
		return apierrors.NewTimeoutError("request did not complete within the allotted timeout", 0)
	}
	return err
}

// unavailable is for what was not done: clients try again after a second.
func unavailable(why string) error {
	err := apierrors.NewServiceUnavailable(why)
	err.ErrStatus.Details = &metav1.StatusDetails{RetryAfterSeconds: 1}
	return err
}

func tooLargeRevision() error {
	err := apierrors.NewTimeoutError("Too large resource version", 1)
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
		Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version",
	})
	return err
}

// preconditionError says, in upstream's words, that a part of the metadata is not what the client
// expects.
func preconditionError(what string, want, have any) error {
	return fmt.Errorf("%s failed: %s in precondition: %v, %s in object meta: %v", "Precondition", what, want, what, have)
}
