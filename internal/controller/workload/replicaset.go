package workload

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// replicaSetKind is what owner references to a ReplicaSet say.
func replicaSetKind() schema.GroupVersionKind {
	return appsv1.SchemeGroupVersion.WithKind("ReplicaSet")
}

// Options tunes the controllers of this package. The zero value suits production.
type Options struct {
	Workers      int           // objects reconciled at once; default 8
	WriteWorkers int           // pods created or deleted at once, over all ReplicaSets; default 64
	Batch        time.Duration // wait for more pod events before a status is written; default 10ms
	Log          *slog.Logger  // default: discard
}

func (o *Options) setDefaults() error {
	o.Workers = cmp.Or(o.Workers, 8)
	o.WriteWorkers = cmp.Or(o.WriteWorkers, 64)
	o.Batch = cmp.Or(o.Batch, 10*time.Millisecond)
	if o.WriteWorkers < 1 || o.WriteWorkers > 1024 || o.Batch < 0 {
		return fmt.Errorf("workload: WriteWorkers is %d and Batch %v, want 1 to 1024 and at least 0", o.WriteWorkers, o.Batch)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// ReplicaSetController keeps each ReplicaSet's number of pods.
type ReplicaSetController struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	opts      Options
	loop      *controller.Loop
	orphans   orphans
	slots     chan struct{} // one token per pod write under way

	mu        sync.Mutex // guards selectors
	selectors map[controller.Key]labels.Selector
}

// NewReplicaSets checks opts and returns a controller that has started nothing; call Run.
func NewReplicaSets(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*ReplicaSetController, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	rc := &ReplicaSetController{
		client: c, informers: informers, recorder: recorder, opts: opts,
		slots: make(chan struct{}, opts.WriteWorkers), selectors: map[controller.Key]labels.Selector{},
	}
	loop, err := controller.NewLoop(controller.LoopOptions{
		Name: "replicaset", Workers: opts.Workers, Log: opts.Log, Reconcile: rc.reconcile,
	})
	if err != nil {
		return nil, err
	}
	loop.Watch(&appsv1.ReplicaSet{}, rc.onReplicaSet)
	loop.Watch(&corev1.Pod{}, rc.onPod)
	rc.loop = loop
	return rc, nil
}

// Run reconciles until ctx ends.
func (rc *ReplicaSetController) Run(ctx context.Context) error { return rc.loop.Run(ctx, rc.informers) }

// Stats returns the counts of the controller's loop.
func (rc *ReplicaSetController) Stats() controller.LoopStats { return rc.loop.Stats() }

func (rc *ReplicaSetController) onReplicaSet(old, current client.Object) {
	obj := current
	if obj == nil {
		obj = old
	}
	key := controller.KeyOf(obj)
	rc.mu.Lock()
	if rs, ok := current.(*appsv1.ReplicaSet); ok {
		if selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector); err == nil {
			rc.selectors[key] = selector
		}
	} else {
		delete(rc.selectors, key)
	}
	rc.mu.Unlock()
	rc.loop.Add(key)
}

func (rc *ReplicaSetController) onPod(old, current client.Object) {
	rc.orphans.observe(old, current)
	for _, pod := range []client.Object{old, current} {
		if pod == nil {
			continue
		}
		if ref := metav1.GetControllerOfNoCopy(pod); ref != nil {
			if ref.Kind != replicaSetKind().Kind {
				continue
			}
			key := controller.Key{Namespace: pod.GetNamespace(), Name: ref.Name}
			if current == nil || current.GetDeletionTimestamp() != nil {
				rc.loop.Add(key) // a replacement may be due
			} else {
				rc.loop.AddAfter(key, rc.opts.Batch)
			}
			continue
		}
		if pod == current {
			rc.offer(pod)
		}
	}
}

// offer wakes the ReplicaSets that might adopt an orphan.
func (rc *ReplicaSetController) offer(pod client.Object) {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	for key, selector := range rc.selectors {
		if key.Namespace == pod.GetNamespace() && selector.Matches(labels.Set(pod.GetLabels())) {
			rc.loop.Add(key)
		}
	}
}

func (rc *ReplicaSetController) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var rs appsv1.ReplicaSet
	if err := rc.client.Get(ctx, key, &rs); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
	if err != nil {
		rc.opts.Log.Warn("replica set has an invalid selector", "namespace", key.Namespace, "name", key.Name, "error", err)
		return 0, nil
	}
	pods, err := rc.claimed(ctx, &rs, selector)
	if err != nil {
		return 0, err
	}
	before := countActive(pods)
	manageErr := rc.manage(ctx, &rs, pods)
	if create, remove := planReplicas(&rs, before); create+remove > 0 {
		if pods, err = rc.owned(ctx, &rs, selector); err != nil {
			return 0, err
		}
	}
	status, wait := planReplicaSetStatus(&rs, pods, manageErr, time.Now())
	if !apiequality.Semantic.DeepEqual(status, rs.Status) {
		updated := rs.DeepCopy()
		updated.Status = status
		if err := rc.client.Status().Update(ctx, updated); err != nil {
			return 0, client.IgnoreNotFound(errors.Join(err, manageErr))
		}
	}
	if manageErr == nil && rs.DeletionTimestamp == nil && status.Replicas != replicasOf(&rs) && int(status.Replicas) != before {
		rc.loop.Add(key) // there is more than one burst to do
	}
	return wait, manageErr
}

func countActive(pods []*corev1.Pod) int {
	count := 0
	for _, pod := range pods {
		if active(pod) {
			count++
		}
	}
	return count
}

// owned lists the pods whose controller is rs and that match its selector.
func (rc *ReplicaSetController) owned(ctx context.Context, rs *appsv1.ReplicaSet, selector labels.Selector) ([]*corev1.Pod, error) {
	pods, err := podsOf(ctx, rc.client, rs.Namespace, rs.UID)
	if err != nil {
		return nil, err
	}
	matching := pods[:0]
	for _, pod := range pods {
		if selector.Matches(labels.Set(pod.Labels)) {
			matching = append(matching, pod)
		}
	}
	return matching, nil
}

func podsOf(ctx context.Context, c client.Client, namespace string, owner types.UID) ([]*corev1.Pod, error) {
	var list corev1.PodList
	err := c.List(ctx, &list, client.InNamespace(namespace), client.MatchingFields{indexOwnerUID: string(owner)})
	if err != nil {
		return nil, fmt.Errorf("listing pods of %s: %w", owner, err)
	}
	pods := make([]*corev1.Pod, len(list.Items))
	for i := range list.Items {
		pods[i] = &list.Items[i]
	}
	return pods, nil
}

// claimed lists rs's pods after adopting orphans that match and releasing pods that no
// longer do.
func (rc *ReplicaSetController) claimed(ctx context.Context, rs *appsv1.ReplicaSet, selector labels.Selector) ([]*corev1.Pod, error) {
	pods, err := podsOf(ctx, rc.client, rs.Namespace, rs.UID)
	if err != nil {
		return nil, err
	}
	candidates, err := rc.adoptable(ctx, rs, selector)
	if err != nil {
		return nil, err
	}
	claims := claimer{client: rc.client, owner: rs, kind: replicaSetKind(), selector: selector}
	var mine []*corev1.Pod
	var failures []error
	for _, pod := range append(pods, candidates...) {
		if finished(pod) {
			continue
		}
		ok, err := claims.claim(ctx, pod)
		if err != nil {
			failures = append(failures, err)
		} else if ok {
			mine = append(mine, pod)
		}
	}
	return mine, errors.Join(failures...)
}

// adoptable finds orphans: among all pods after a change of the ReplicaSet, which may
// have come before the pods' own events, else among those the events have told of.
func (rc *ReplicaSetController) adoptable(ctx context.Context, rs *appsv1.ReplicaSet, selector labels.Selector) ([]*corev1.Pod, error) {
	if rs.DeletionTimestamp != nil {
		return nil, nil
	}
	var found []*corev1.Pod
	if rs.Status.ObservedGeneration < rs.Generation {
		var list corev1.PodList
		err := rc.client.List(ctx, &list, client.InNamespace(rs.Namespace), client.MatchingLabelsSelector{Selector: selector})
		if err != nil {
			return nil, fmt.Errorf("listing pods to adopt: %w", err)
		}
		for i := range list.Items {
			if metav1.GetControllerOfNoCopy(&list.Items[i]) == nil {
				found = append(found, &list.Items[i])
			}
		}
		return found, nil
	}
	for _, name := range rc.orphans.matching(rs.Namespace, selector) {
		pod := &corev1.Pod{}
		err := rc.client.Get(ctx, types.NamespacedName{Namespace: rs.Namespace, Name: name}, pod)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("getting a pod to adopt: %w", err)
		}
		if metav1.GetControllerOfNoCopy(pod) == nil {
			found = append(found, pod)
		}
	}
	return found, nil
}

// manage creates or deletes pods until rs has its number.
func (rc *ReplicaSetController) manage(ctx context.Context, rs *appsv1.ReplicaSet, pods []*corev1.Pod) error {
	var running []*corev1.Pod
	for _, pod := range pods {
		if active(pod) {
			running = append(running, pod)
		}
	}
	create, remove := planReplicas(rs, len(running))
	switch {
	case create > 0:
		return rc.createPods(ctx, rs, create)
	case remove > 0:
		related := running
		if remove < len(running) {
			var err error
			if related, err = rc.related(ctx, rs); err != nil {
				return err
			}
		}
		return rc.deletePods(ctx, rs, podsToDelete(running, related, remove, time.Now()))
	}
	return nil
}

// related lists the pods of all ReplicaSets that share rs's owner.
func (rc *ReplicaSetController) related(ctx context.Context, rs *appsv1.ReplicaSet) ([]*corev1.Pod, error) {
	ref := metav1.GetControllerOfNoCopy(rs)
	if ref == nil {
		return podsOf(ctx, rc.client, rs.Namespace, rs.UID)
	}
	var sets appsv1.ReplicaSetList
	err := rc.client.List(ctx, &sets, client.InNamespace(rs.Namespace), client.MatchingFields{indexOwnerUID: string(ref.UID)})
	if err != nil {
		return nil, fmt.Errorf("listing replica sets of %s: %w", ref.Name, err)
	}
	var all []*corev1.Pod
	for i := range sets.Items {
		pods, err := podsOf(ctx, rc.client, rs.Namespace, sets.Items[i].UID)
		if err != nil {
			return nil, err
		}
		all = append(all, pods...)
	}
	return all, nil
}

// createPods creates count pods in batches that double as long as all goes well, so that
// what can only fail (a quota, a webhook) fails once and not count times.
func (rc *ReplicaSetController) createPods(ctx context.Context, rs *appsv1.ReplicaSet, count int) error {
	for batch := 1; count > 0; batch *= 2 {
		batch = min(batch, count)
		err := rc.each(ctx, batch, func(int) error { return rc.createPod(ctx, rs) })
		if err != nil {
			return err
		}
		count -= batch
	}
	return nil
}

func (rc *ReplicaSetController) createPod(ctx context.Context, rs *appsv1.ReplicaSet) error {
	pod := newPod(rs)
	if len(pod.Labels) == 0 {
		return errors.New("unable to create pods, no labels")
	}
	err := rc.client.Create(ctx, pod)
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil // nothing can be created there any more
	}
	if err != nil {
		rc.recorder.Event(rs, corev1.EventTypeWarning, "FailedCreate", fmt.Sprintf("Error creating: %v", err))
		return err
	}
	rc.recorder.Event(rs, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: "+pod.Name)
	return nil
}

func (rc *ReplicaSetController) deletePods(ctx context.Context, rs *appsv1.ReplicaSet, pods []*corev1.Pod) error {
	return rc.each(ctx, len(pods), func(i int) error {
		uid := pods[i].UID
		target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: rs.Namespace, Name: pods[i].Name}}
		err := rc.client.Delete(ctx, target, client.Preconditions{UID: &uid})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil // gone already, or another pod has the name now
		}
		if err != nil {
			rc.recorder.Event(rs, corev1.EventTypeWarning, "FailedDelete", fmt.Sprintf("Error deleting: %v", err))
			return fmt.Errorf("unable to delete pods: %w", err)
		}
		rc.recorder.Event(rs, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: "+pods[i].Name)
		return nil
	})
}

// each calls f for 0 to count-1 concurrently within the controller's limit of writes and
// returns the first error after all have ended.
func (rc *ReplicaSetController) each(ctx context.Context, count int, f func(i int) error) error {
	if count == 1 {
		return f(0)
	}
	var writers sync.WaitGroup
	failures := make([]error, count)
	for i := range count {
		select {
		case rc.slots <- struct{}{}:
		case <-ctx.Done():
			writers.Wait()
			return ctx.Err()
		}
		writers.Go(func() {
			defer func() { <-rc.slots }()
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
