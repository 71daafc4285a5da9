package workload

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// DeploymentController moves each Deployment's pods to its template.
type DeploymentController struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	opts      Options
	loop      *controller.Loop
	sets      route // of ReplicaSets to Deployments
}

// NewDeployments checks opts and returns a controller that has started nothing; call Run.
func NewDeployments(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*DeploymentController, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	dc := &DeploymentController{client: c, informers: informers, recorder: recorder, opts: opts}
	loop, err := controller.NewLoop(controller.LoopOptions{
		Name: "deployment", Workers: opts.Workers, Log: opts.Log, Reconcile: dc.reconcile,
	})
	if err != nil {
		return nil, err
	}
	dc.loop = loop
	var owners selectors
	dc.sets = route{kind: deploymentKind().Kind, owners: &owners, wake: func(owner controller.Key, _, _ client.Object) { loop.Add(owner) }}
	loop.Watch(&appsv1.Deployment{}, func(old, current client.Object) {
		d, ok := current.(*appsv1.Deployment)
		if !ok {
			owners.observe(old, nil, nil)
			return
		}
		owners.observe(old, current, d.Spec.Selector)
		loop.Add(controller.KeyOf(current))
	})
	loop.Watch(&appsv1.ReplicaSet{}, dc.sets.onEvent)
	loop.Watch(&corev1.Pod{}, dc.onPod)
	return dc, nil
}

// Run reconciles until ctx ends.
func (dc *DeploymentController) Run(ctx context.Context) error { return dc.loop.Run(ctx, dc.informers) }

// Stats returns the counts of the controller's loop.
func (dc *DeploymentController) Stats() controller.LoopStats { return dc.loop.Stats() }

// onPod wakes a Deployment that waits for old pods to be gone before it starts new ones.
func (dc *DeploymentController) onPod(old, current client.Object) {
	if current != nil {
		pod, ok := current.(*corev1.Pod)
		before, ok2 := old.(*corev1.Pod)
		if !ok || !ok2 || finished(before) || !finished(pod) {
			return
		}
		old = current
	}
	ref := metav1.GetControllerOfNoCopy(old)
	if ref == nil || ref.Kind != replicaSetKind().Kind {
		return
	}
	var rs appsv1.ReplicaSet
	if err := dc.client.Get(context.Background(), types.NamespacedName{Namespace: old.GetNamespace(), Name: ref.Name}, &rs); err != nil {
		return // the ReplicaSet's own events lead to the Deployment
	}
	owner := metav1.GetControllerOfNoCopy(&rs)
	if owner == nil || owner.Kind != deploymentKind().Kind {
		return
	}
	var d appsv1.Deployment
	key := types.NamespacedName{Namespace: old.GetNamespace(), Name: owner.Name}
	if err := dc.client.Get(context.Background(), key, &d); err == nil && d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		dc.loop.Add(key)
	}
}

func (dc *DeploymentController) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var stored appsv1.Deployment
	if err := dc.client.Get(ctx, key, &stored); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	d := stored.DeepCopy()
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		dc.opts.Log.Warn("deployment has an invalid selector", "namespace", key.Namespace, "name", key.Name, "error", err)
		return 0, nil
	}
	if selector.Empty() {
		return 0, dc.refuseEmptySelector(ctx, d)
	}
	claims := &claimer{client: dc.client, owner: &stored, kind: deploymentKind(), selector: selector}
	sets, err := claimed(ctx, claims, &dc.sets.strays, listReplicaSets, stored.Status.ObservedGeneration < stored.Generation)
	if err != nil {
		return 0, err
	}
	running, err := dc.runningPods(ctx, d, sets)
	if err != nil {
		return 0, err
	}
	return dc.apply(ctx, d, planDeployment(rollout{d: d, sets: sets, running: running, now: time.Now()}))
}

func (dc *DeploymentController) refuseEmptySelector(ctx context.Context, d *appsv1.Deployment) error {
	dc.recorder.Event(d, corev1.EventTypeWarning, "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
	if d.Status.ObservedGeneration >= d.Generation {
		return nil
	}
	d.Status.ObservedGeneration = d.Generation
	return client.IgnoreNotFound(dc.client.Status().Update(ctx, d))
}

// runningPods says which ReplicaSets have pods left; only Recreate needs to know.
func (dc *DeploymentController) runningPods(ctx context.Context, d *appsv1.Deployment, sets []*appsv1.ReplicaSet) (map[types.UID]bool, error) {
	if d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		return nil, nil
	}
	running := map[types.UID]bool{}
	for _, rs := range sets {
		pods, err := podsOf(ctx, dc.client, rs.Namespace, rs.UID)
		if err != nil {
			return nil, err
		}
		for _, pod := range pods {
			running[rs.UID] = running[rs.UID] || !finished(pod)
		}
	}
	return running, nil
}

// apply writes a plan. It stops at the first failure; what was written stands and the
// next pass goes on from it.
func (dc *DeploymentController) apply(ctx context.Context, d *appsv1.Deployment, p plan) (time.Duration, error) {
	if p.create != nil {
		if done, err := dc.create(ctx, d, p.create); err != nil || done {
			return 0, err
		}
	}
	for _, m := range p.update {
		rs := m.wanted()
		if err := dc.client.Update(ctx, rs); err != nil {
			return 0, fmt.Errorf("updating replica set %s: %w", rs.Name, err)
		}
		if from := replicasOf(m.rs); from != m.replicas {
			direction := "up"
			if m.replicas < from {
				direction = "down"
			}
			dc.recorder.Event(d, corev1.EventTypeNormal, "ScalingReplicaSet",
				fmt.Sprintf("Scaled %s replica set %s from %d to %d", direction, rs.Name, from, m.replicas))
		}
	}
	for _, rs := range p.remove {
		uid := rs.UID
		target := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: rs.Namespace, Name: rs.Name}}
		// In the background, as the API does by default for these kinds.
		err := dc.client.Delete(ctx, target, client.Preconditions{UID: &uid}, client.PropagationPolicy(metav1.DeletePropagationBackground))
		if err != nil && !apierrors.IsNotFound(err) {
			return 0, fmt.Errorf("deleting replica set %s: %w", rs.Name, err)
		}
	}
	if p.rollback != nil {
		if err := dc.client.Update(ctx, p.rollback.d); err != nil {
			return 0, client.IgnoreNotFound(err)
		}
		dc.recorder.Event(d, p.rollback.kind, p.rollback.reason, p.rollback.message)
		return 0, nil
	}
	if p.status {
		if err := dc.client.Status().Update(ctx, d); err != nil {
			return 0, client.IgnoreNotFound(err)
		}
	}
	return p.after, nil
}

// create creates the newest ReplicaSet. done says that the pass is over: what is there
// under its name has another template, and the next pass tries another name.
func (dc *DeploymentController) create(ctx context.Context, d *appsv1.Deployment, rs *appsv1.ReplicaSet) (done bool, err error) {
	replicas := *rs.Spec.Replicas
	name := rs.Name
	err = dc.client.Create(ctx, rs)
	switch {
	case err == nil:
		if replicas > 0 {
			dc.recorder.Event(d, corev1.EventTypeNormal, "ScalingReplicaSet",
				fmt.Sprintf("Scaled up replica set %s from 0 to %d", name, replicas))
		}
		return false, nil
	case apierrors.IsAlreadyExists(err):
		return dc.resolveCollision(ctx, d, name)
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return true, nil
	}
	message := fmt.Sprintf("Failed to create new replica set %q: %v", name, err)
	dc.recorder.Event(d, corev1.EventTypeWarning, reasonCreateError, message)
	if hasDeadline(d) {
		var failed appsv1.Deployment
		if getErr := dc.client.Get(ctx, client.ObjectKeyFromObject(d), &failed); getErr == nil {
			next := failed.DeepCopy()
			setCondition(&next.Status, condition(appsv1.DeploymentProgressing, corev1.ConditionFalse, reasonCreateError, message, time.Now()))
			err = errors.Join(err, dc.client.Status().Update(ctx, next))
		}
	}
	return false, fmt.Errorf("creating replica set %s: %w", name, err)
}

// resolveCollision looks at the ReplicaSet that has the name already. If it is d's with
// d's template, an earlier pass made it; otherwise two templates share a hash.
func (dc *DeploymentController) resolveCollision(ctx context.Context, d *appsv1.Deployment, name string) (done bool, err error) {
	key := types.NamespacedName{Namespace: d.Namespace, Name: name}
	var existing appsv1.ReplicaSet
	if err := dc.client.Get(ctx, key, &existing); err != nil {
		return true, fmt.Errorf("getting replica set %s: %w", name, err)
	}
	if metav1.IsControlledBy(&existing, d) && sameTemplate(&d.Spec.Template, &existing.Spec.Template) {
		dc.loop.Add(controller.KeyOf(d))
		return true, nil
	}
	var stored appsv1.Deployment
	if err := dc.client.Get(ctx, client.ObjectKeyFromObject(d), &stored); err != nil {
		return true, client.IgnoreNotFound(err)
	}
	next := stored.DeepCopy()
	if next.Status.CollisionCount == nil {
		next.Status.CollisionCount = new(int32)
	}
	*next.Status.CollisionCount++
	if err := dc.client.Status().Update(ctx, next); err != nil {
		return true, fmt.Errorf("counting a hash collision: %w", err)
	}
	dc.loop.Add(controller.KeyOf(d))
	return true, nil
}
