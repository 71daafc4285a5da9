package workload

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// ReplicaSetController keeps the number of pods of each ReplicaSet, or of each
// ReplicationController.
type ReplicaSetController struct {
	kind      replicaKind
	client    client.Client
	informers controller.Informers
	opts      Options
	loop      *controller.Loop
	pods      route // of pods to their owners
	writer    podWriter
	pace      pacer
}

// NewReplicaSets checks opts and returns a controller of ReplicaSets that has started
// nothing; call Run.
func NewReplicaSets(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*ReplicaSetController, error) {
	return newReplicaController(replicaSets(), c, informers, recorder, opts)
}

// NewReplicationControllers is NewReplicaSets for ReplicationControllers.
func NewReplicationControllers(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*ReplicaSetController, error) {
	return newReplicaController(replicationControllers(), c, informers, recorder, opts)
}

func newReplicaController(kind replicaKind, c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*ReplicaSetController, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	rc := &ReplicaSetController{kind: kind, client: c, informers: informers, opts: opts, writer: newPodWriter(c, recorder, opts), pace: pacer{batch: opts.Batch}}
	loop, err := controller.NewLoop(controller.LoopOptions{
		Name: kind.name, Workers: opts.Workers, Log: opts.Log, Reconcile: rc.pace.timed(rc.reconcile),
	})
	if err != nil {
		return nil, err
	}
	rc.loop = loop
	var owners selectors
	rc.pods = route{kind: kind.gvk.Kind, owners: &owners, wake: rc.pace.wakes(loop)}
	loop.Watch(kind.object(), func(old, current client.Object) {
		if current == nil {
			owners.observe(old, nil, nil)
			loop.Add(controller.KeyOf(old))
			return
		}
		owners.observe(old, current, kind.view(current).Spec.Selector)
		loop.Add(controller.KeyOf(current))
	})
	loop.Watch(&corev1.Pod{}, rc.pods.onEvent)
	return rc, nil
}

// Run reconciles until ctx ends.
func (rc *ReplicaSetController) Run(ctx context.Context) error { return rc.loop.Run(ctx, rc.informers) }

// Stats returns the counts of the controller's loop.
func (rc *ReplicaSetController) Stats() controller.LoopStats { return rc.loop.Stats() }

func (rc *ReplicaSetController) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	owner := rc.kind.object()
	if err := rc.client.Get(ctx, key, owner); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	rs := rc.kind.view(owner)
	selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
	if err != nil {
		rc.opts.Log.Warn("owner of pods has an invalid selector", "kind", rc.kind.gvk.Kind, "namespace", key.Namespace, "name", key.Name, "error", err)
		return 0, nil
	}
	claims := &claimer{
		client: rc.client, owner: owner, kind: rc.kind.gvk, selector: selector,
		pass: func(obj client.Object) bool { return finished(obj.(*corev1.Pod)) },
	}
	pods, err := claimed(ctx, claims, &rc.pods.strays, listPods, rs.Status.ObservedGeneration < rs.Generation)
	if err != nil {
		return 0, err
	}
	before := countActive(pods)
	manageErr := rc.manage(ctx, owner, rs, pods)
	if create, remove := planReplicas(rs, before); create+remove > 0 {
		if pods, err = rc.owned(ctx, rs, selector); err != nil {
			return 0, err
		}
	}
	status, wait := planReplicaSetStatus(rs, pods, manageErr, time.Now())
	if !rc.kind.leaving {
		status.TerminatingReplicas = nil
	}
	if !apiequality.Semantic.DeepEqual(status, rs.Status) {
		if err := rc.client.Status().Update(ctx, rc.kind.withStatus(owner, status)); err != nil {
			return 0, client.IgnoreNotFound(errors.Join(err, manageErr))
		}
	}
	if manageErr == nil && rs.DeletionTimestamp == nil && status.Replicas != replicasOf(rs) && int(status.Replicas) != before {
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

// manage creates or deletes pods until rs, which is a view of owner, has its number.
func (rc *ReplicaSetController) manage(ctx context.Context, owner client.Object, rs *appsv1.ReplicaSet, pods []*corev1.Pod) error {
	var running []*corev1.Pod
	for _, pod := range pods {
		if active(pod) {
			running = append(running, pod)
		}
	}
	create, remove := planReplicas(rs, len(running))
	switch {
	case create > 0:
		return rc.writer.create(ctx, owner, create, func(int) *corev1.Pod {
			return newPod(owner, rc.kind.gvk, &rs.Spec.Template)
		})
	case remove > 0:
		var related []*corev1.Pod
		if remove < len(running) {
			var err error
			if related, err = rc.related(ctx, rs); err != nil {
				return err
			}
		}
		return rc.writer.delete(ctx, owner, podsToDelete(running, related, remove, time.Now()))
	}
	return nil
}

// related lists the pods of all ReplicaSets that share rs's owner; none if it has no owner.
func (rc *ReplicaSetController) related(ctx context.Context, rs *appsv1.ReplicaSet) ([]*corev1.Pod, error) {
	ref := metav1.GetControllerOfNoCopy(rs)
	if ref == nil {
		return nil, nil
	}
	sets, err := rc.kind.list(ctx, rc.client, client.InNamespace(rs.Namespace), client.MatchingFields{indexOwnerUID: string(ref.UID)})
	if err != nil {
		return nil, fmt.Errorf("looking for other sets of %s: %w", ref.Name, err)
	}
	var all []*corev1.Pod
	for _, set := range sets {
		pods, err := podsOf(ctx, rc.client, set.Namespace, set.UID)
		if err != nil {
			return nil, err
		}
		all = append(all, pods...)
	}
	return all, nil
}
