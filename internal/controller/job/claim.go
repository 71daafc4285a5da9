package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// indexOwnerUID lists the objects that a controller owns by the owner's UID.
const indexOwnerUID = "metadata.ownerUID"

// errJobGone stops an adoption by a Job that was deleted or replaced meanwhile.
var errJobGone = errors.New("the job is gone or being deleted")

// podsOf lists the pods whose controller has a UID.
func (c *Controller) podsOf(ctx context.Context, namespace string, owner types.UID) ([]*corev1.Pod, error) {
	var list corev1.PodList
	err := c.client.List(ctx, &list, client.InNamespace(namespace), client.MatchingFields{indexOwnerUID: string(owner)})
	if err != nil {
		return nil, fmt.Errorf("listing pods of job %s: %w", owner, err)
	}
	pods := make([]*corev1.Pod, len(list.Items))
	for i := range list.Items {
		pods[i] = &list.Items[i]
	}
	return pods, nil
}

// claimed lists a Job's pods after adopting orphans that match its selector and releasing pods that
// no longer do.
func (c *Controller) claimed(ctx context.Context, job *batchv1.Job) ([]*corev1.Pod, error) {
	selector, err := metav1.LabelSelectorAsSelector(job.Spec.Selector)
	if err != nil {
		return nil, fmt.Errorf("reading the selector of job %s/%s: %w", job.Namespace, job.Name, err)
	}
	pods, err := c.podsOf(ctx, job.Namespace, job.UID)
	if err != nil {
		return nil, err
	}
	var failures []error
	if job.DeletionTimestamp != nil {
		return slices.DeleteFunc(pods, func(pod *corev1.Pod) bool { return !selector.Matches(labels.Set(pod.Labels)) }), nil
	}
	pods = slices.DeleteFunc(pods, func(pod *corev1.Pod) bool {
		if selector.Matches(labels.Set(pod.Labels)) {
			return false
		}
		failures = append(failures, c.letGo(ctx, job, pod))
		return true
	})
	for _, name := range c.orphans.Matching(job.Namespace, selector) {
		pod, err := c.adopt(ctx, job, name, selector)
		failures = append(failures, err)
		if pod != nil {
			pods = append(pods, pod)
		}
	}
	return pods, errors.Join(failures...)
}

// adopt makes a Job the controller of a pod; the pod is nil if that could not be or need not be.
func (c *Controller) adopt(ctx context.Context, job *batchv1.Job, name string, selector labels.Selector) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	if err := c.client.Get(ctx, types.NamespacedName{Namespace: job.Namespace, Name: name}, pod); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	if metav1.GetControllerOfNoCopy(pod) != nil || pod.DeletionTimestamp != nil || !selector.Matches(labels.Set(pod.Labels)) {
		return nil, nil
	}
	var fresh batchv1.Job
	err := c.client.Get(ctx, client.ObjectKeyFromObject(job), &fresh)
	if err == nil && (fresh.UID != job.UID || fresh.DeletionTimestamp != nil) {
		err = errJobGone
	}
	if err != nil {
		return nil, fmt.Errorf("adopting pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	target := pod.DeepCopy()
	err = c.patch(ctx, target, map[string]any{
		"ownerReferences": []any{metav1.NewControllerRef(job, jobKind())}, "finalizers": []string{batchv1.JobTrackingFinalizer},
	})
	if err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	return target, nil
}

// letGo drops a Job's reference and finalizer from a pod.
func (c *Controller) letGo(ctx context.Context, job *batchv1.Job, pod *corev1.Pod) error {
	err := c.patch(ctx, pod.DeepCopy(), map[string]any{
		"ownerReferences":                     []any{map[string]string{"$patch": "delete", "uid": string(job.UID)}},
		"$deleteFromPrimitiveList/finalizers": []string{batchv1.JobTrackingFinalizer},
	})
	if apierrors.IsNotFound(err) || apierrors.IsInvalid(err) {
		return nil // it is gone, or another pod has its name now
	}
	return err
}

// patch changes a pod's metadata, unless another pod has its name now.
func (c *Controller) patch(ctx context.Context, pod *corev1.Pod, metadata map[string]any) error {
	metadata["uid"] = pod.UID
	body, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return fmt.Errorf("encoding a patch: %w", err)
	}
	return c.client.Patch(ctx, pod, client.RawPatch(types.StrategicMergePatchType, body))
}

// release takes the finalizer off pods and returns those that have none now. Some may be among them
// even if there is an error.
func (c *Controller) release(ctx context.Context, pods []*corev1.Pod) (uids, error) {
	var left []*corev1.Pod
	for _, pod := range pods {
		if isTracked(pod) {
			left = append(left, pod)
		}
	}
	failures := c.each(ctx, len(left), func(i int) error { return c.untrack(ctx, left[i]) })
	released := make(uids, len(left))
	for i, pod := range left {
		if failures[i] == nil {
			released[pod.UID] = true
		}
	}
	return released, first(failures)
}

func (c *Controller) untrack(ctx context.Context, pod *corev1.Pod) error {
	err := c.patch(ctx, pod.DeepCopy(), map[string]any{"$deleteFromPrimitiveList/finalizers": []string{batchv1.JobTrackingFinalizer}})
	if err := client.IgnoreNotFound(err); err != nil {
		return fmt.Errorf("removing the finalizer of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// writePods does what plan says and returns what came of it, with the first error.
func (c *Controller) writePods(ctx context.Context, p *pass, plan podPlan) (written, error) {
	if len(plan.create) > 0 {
		created, err := c.createPods(ctx, p, plan.create)
		return written{created: created}, err
	}
	failures := c.each(ctx, len(plan.remove), func(i int) error { return c.deletePod(ctx, p.job, plan.remove[i], plan.uncount) })
	var w written
	for i, pod := range plan.remove {
		if failures[i] == nil {
			w.removed++
			if controller.PodReady(pod) {
				w.removedReady++
			}
		}
	}
	return w, first(failures)
}

func (c *Controller) deletePod(ctx context.Context, job *batchv1.Job, pod *corev1.Pod, uncount bool) error {
	if uncount && isTracked(pod) {
		if err := c.untrack(ctx, pod); err != nil {
			return err
		}
	}
	target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}}
	err := c.client.Delete(ctx, target, client.Preconditions{UID: &pod.UID})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // gone already, or another pod has the name now
	}
	if err != nil {
		c.recorder.Event(job, corev1.EventTypeWarning, "FailedDelete", fmt.Sprintf("Error deleting: %v", err))
		return fmt.Errorf("unable to delete pods: %w", err)
	}
	c.recorder.Event(job, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: "+pod.Name)
	return nil
}

// createPods creates pods in batches that double as long as all goes well, so that what can only
// fail (a quota, a webhook) fails once and not often.
func (c *Controller) createPods(ctx context.Context, p *pass, indexes []int) (created int, err error) {
	template := newTemplate(p.job)
	for batch := 1; len(indexes) > 0 && err == nil; batch *= 2 {
		batch = min(batch, len(indexes))
		failures := c.each(ctx, batch, func(i int) error {
			return c.createPod(ctx, p.job, newPod(p.job, template, indexes[i], p.delayed[indexes[i]]))
		})
		for _, failure := range failures {
			if failure == nil {
				created++
			}
		}
		err = first(failures)
		indexes = indexes[batch:]
	}
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		err = nil // nothing can be created there any more
	}
	return created, err
}

func (c *Controller) createPod(ctx context.Context, job *batchv1.Job, pod *corev1.Pod) error {
	if len(pod.Labels) == 0 {
		return errors.New("unable to create pods, no labels")
	}
	err := c.client.Create(ctx, pod)
	if err != nil {
		if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			c.recorder.Event(job, corev1.EventTypeWarning, "FailedCreate", fmt.Sprintf("Error creating: %v", err))
		}
		return err
	}
	c.recorder.Event(job, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: "+pod.Name)
	return nil
}

// each calls f for 0 to count-1 concurrently within the controller's limit of writes and returns
// what each call did.
func (c *Controller) each(ctx context.Context, count int, f func(i int) error) []error {
	failures := make([]error, count)
	done := make(chan struct{}, count)
	for i := range count {
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			failures[i] = ctx.Err()
			done <- struct{}{}
			continue
		}
		go func() {
			defer func() { <-c.slots; done <- struct{}{} }()
			failures[i] = controller.Safely(func() error { return f(i) })
		}()
	}
	for range count {
		<-done
	}
	return failures
}

// first is the first error of a list.
func first(failures []error) error {
	for _, err := range failures {
		if err != nil {
			return err
		}
	}
	return nil
}
