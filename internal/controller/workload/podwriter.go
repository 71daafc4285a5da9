package workload

import (
	"context"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// podWriter creates and deletes the pods of one controller's objects and writes the events
// that tell of it.
type podWriter struct {
	client   client.Client
	recorder controller.Recorder
	slots    chan struct{} // one token per write under way
}

func newPodWriter(c client.Client, recorder controller.Recorder, opts Options) podWriter {
	return podWriter{client: c, recorder: recorder, slots: make(chan struct{}, opts.WriteWorkers)}
}

// create creates count pods, of which pod makes the i-th, in batches that double as long
// as all goes well: what can only fail (a quota, a webhook) fails once and not count times.
func (w *podWriter) create(ctx context.Context, owner client.Object, count int, pod func(i int) *corev1.Pod) error {
	for done, batch := 0, 1; done < count; batch *= 2 {
		batch = min(batch, count-done)
		err := w.each(ctx, batch, func(i int) error { return w.createOne(ctx, owner, pod(done+i)) })
		if err != nil {
			return err
		}
		done += batch
	}
	return nil
}

func (w *podWriter) createOne(ctx context.Context, owner client.Object, pod *corev1.Pod) error {
	if len(pod.Labels) == 0 {
		return errors.New("unable to create pods, no labels")
	}
	err := w.client.Create(ctx, pod)
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil // nothing can be created there any more
	}
	if err != nil {
		w.recorder.Event(owner, corev1.EventTypeWarning, "FailedCreate", fmt.Sprintf("Error creating: %v", err))
		return err
	}
	w.recorder.Event(owner, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: "+pod.Name)
	return nil
}

// delete deletes pods, all of them at once.
func (w *podWriter) delete(ctx context.Context, owner client.Object, pods []*corev1.Pod) error {
	return w.each(ctx, len(pods), func(i int) error {
		err := deletePod(ctx, w.client, pods[i])
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil // gone already, or another pod has the name now
		}
		if err != nil {
			w.recorder.Event(owner, corev1.EventTypeWarning, "FailedDelete", fmt.Sprintf("Error deleting: %v", err))
			return fmt.Errorf("unable to delete pods: %w", err)
		}
		w.recorder.Event(owner, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: "+pods[i].Name)
		return nil
	})
}

// deletePod deletes this very pod and not another one that took its name.
func deletePod(ctx context.Context, c client.Client, pod *corev1.Pod) error {
	uid := pod.UID
	target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}}
	return c.Delete(ctx, target, client.Preconditions{UID: &uid})
}

// each calls f for 0 to count-1 concurrently within the controller's limit of writes and
// returns the first error after all have ended.
func (w *podWriter) each(ctx context.Context, count int, f func(i int) error) error {
	if count == 1 {
		return f(0)
	}
	var writers sync.WaitGroup
	failures := make([]error, count)
	for i := range count {
		select {
		case w.slots <- struct{}{}:
		case <-ctx.Done():
			writers.Wait()
			return ctx.Err()
		}
		writers.Go(func() {
			defer func() { <-w.slots }()
			failures[i] = controller.Safely(func() error { return f(i) })
		})
	}
	writers.Wait()
	for _, err := range failures {
		if err != nil {
			return err
		}
	}
	return nil
}
