package custom

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// How long the objects of a definition that is being deleted are waited for at a time (as upstream),
// and how often they are looked at.
const (
	finishTimeout  = time.Minute
	finishPollLow  = 5 * time.Millisecond
	finishPollHigh = time.Second
)

// finish deletes the objects of a definition that is being deleted, then lets it go. It works beside
// the other definitions: objects may wait for their finalizers.
func (m *Manager) finish(ctx context.Context, name string, group *sync.WaitGroup) {
	m.mu.Lock()
	busy := m.finishing[name]
	m.finishing[name] = true
	m.mu.Unlock()
	if busy {
		return
	}
	group.Go(func() {
		err := m.finalize(ctx, name)
		m.mu.Lock()
		delete(m.finishing, name)
		m.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			m.opts.Logger.LogAttrs(ctx, slog.LevelWarn, "removing custom resources", slog.String("name", name), slog.Any("error", err))
			m.queue.AddRateLimited(name)
		}
	})
}

// finalize does one attempt.
func (m *Manager) finalize(ctx context.Context, name string) error {
	stored, err := m.read(ctx, name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	done, failed := m.removeInstances(ctx, stored)
	for ctx.Err() == nil { // a lost race is against other conditions: try again
		if stored, err = m.read(ctx, name); err != nil {
			return ignoreNotFound(err)
		}
		if !apihelpers.CRDHasFinalizer(stored, apiextensionsv1.CustomResourceCleanupFinalizer) {
			return nil
		}
		crd := stored.DeepCopy()
		apihelpers.SetCRDCondition(crd, done)
		if failed == nil {
			apihelpers.CRDRemoveFinalizer(crd, apiextensionsv1.CustomResourceCleanupFinalizer)
		}
		_, _, err = m.definitions().Update(ctx, "", name, "status", crd, fieldManager, &metav1.UpdateOptions{})
		if apierrors.IsConflict(err) {
			continue
		}
		if err := ignoreNotFound(err); err != nil {
			return err
		}
		return failed
	}
	return ctx.Err()
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// removeInstances deletes the objects and waits until they are gone. It returns the condition to
// show; with an error there is more to do.
func (m *Manager) removeInstances(ctx context.Context, crd *apiextensionsv1.CustomResourceDefinition) (condition, error) {
	c := condition{Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionFalse}
	if m.opts.Registry.IsBuiltin(crd.Spec.Group, crd.Spec.Names.Plural) {
		c.Reason, c.Message = "OverlappingBuiltInResource", "instances overlap with built-in resources in storage"
		return c, nil
	}
	if !apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
		c.Reason, c.Message = "NeverEstablished", "resource was never established"
		return c, nil
	}
	progress := withStatus(crd)
	apihelpers.SetCRDCondition(progress, condition{
		Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionTrue,
		Reason: "InstanceDeletionInProgress", Message: "CustomResource deletion is in progress",
	})
	if err := m.updateStatus(ctx, progress); err != nil {
		return c, err
	}
	instances := m.opts.Registry.CustomResource(crd.Name)
	c.Status = apiextensionsv1.ConditionTrue
	if instances == nil {
		err := fmt.Errorf("%s is not served", crd.Name)
		c.Reason, c.Message = "InstanceDeletionFailed", fmt.Sprintf("could not list instances: %v", err)
		return c, err
	}
	if err := instances.Clear(ctx); err != nil {
		c.Reason, c.Message = "InstanceDeletionFailed", fmt.Sprintf("could not issue all deletes: %v", err)
		return c, err
	}
	if err := awaitEmpty(ctx, instances.Count); err != nil {
		c.Reason, c.Message = "InstanceDeletionCheck", fmt.Sprintf("could not confirm zero CustomResources remaining: %v", err)
		return c, err
	}
	c.Status, c.Reason, c.Message = apiextensionsv1.ConditionFalse, "InstanceDeletionCompleted", "removed all instances"
	return c, nil
}

// awaitEmpty waits until count is 0: soon at first, then less often.
func awaitEmpty(ctx context.Context, count func() int) error {
	ctx, cancel := context.WithTimeout(ctx, finishTimeout)
	defer cancel()
	pause := finishPollLow
	for {
		left := count()
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d are left: %w", left, ctx.Err())
		case <-time.After(pause):
		}
		pause = min(2*pause, finishPollHigh)
	}
}
