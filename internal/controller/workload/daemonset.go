package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/flowcontrol"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// A failed pod is replaced at once, the next one on its node after these waits, doubled
// each time (upstream's values).
const (
	failedPodDelay    = time.Second
	failedPodMaxDelay = 15 * time.Minute
)

// daemonSetKind is what owner references to a DaemonSet say.
func daemonSetKind() schema.GroupVersionKind {
	return appsv1.SchemeGroupVersion.WithKind("DaemonSet")
}

// DaemonSetController keeps a pod of each DaemonSet on every node that it wants.
type DaemonSetController struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	opts      Options
	loop      *controller.Loop
	pods      route // of pods to their DaemonSets
	revisions route
	writer    podWriter
	patches   patches
	places    places
	pace      pacer
	backoff   *flowcontrol.Backoff

	mu      sync.Mutex // guards cleaned
	cleaned time.Time  // when the backoff forgot what is old
}

// NewDaemonSets checks opts and returns a controller that has started nothing; call Run.
func NewDaemonSets(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*DaemonSetController, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	dc := &DaemonSetController{
		client: c, informers: informers, recorder: recorder, opts: opts, writer: newPodWriter(c, recorder, opts), pace: pacer{batch: opts.Batch},
		backoff: flowcontrol.NewBackOff(failedPodDelay, failedPodMaxDelay),
	}
	loop, err := controller.NewLoop(controller.LoopOptions{
		Name: "daemonset", Workers: opts.Workers, Log: opts.Log, Reconcile: dc.pace.timed(dc.reconcile),
	})
	if err != nil {
		return nil, err
	}
	dc.loop = loop
	dc.places.wake = loop.Add
	var owners selectors
	dc.pods = route{kind: daemonSetKind().Kind, owners: &owners, wake: dc.pace.wakes(loop)}
	dc.revisions = route{kind: daemonSetKind().Kind, owners: &owners, wake: wakeForRevision(loop)}
	loop.Watch(&corev1.Node{}, dc.places.onNode)
	loop.Watch(&appsv1.DaemonSet{}, func(old, current client.Object) {
		ds, ok := current.(*appsv1.DaemonSet)
		if !ok {
			owners.observe(old, nil, nil)
			loop.Add(controller.KeyOf(old))
			return
		}
		owners.observe(old, current, ds.Spec.Selector)
		loop.Add(controller.KeyOf(current))
	})
	loop.Watch(&corev1.Pod{}, dc.pods.onEvent)
	loop.Watch(&appsv1.ControllerRevision{}, dc.revisions.onEvent)
	return dc, nil
}

// Run reconciles until ctx ends.
func (dc *DaemonSetController) Run(ctx context.Context) error { return dc.loop.Run(ctx, dc.informers) }

// Stats returns the counts of the controller's loop.
func (dc *DaemonSetController) Stats() controller.LoopStats { return dc.loop.Stats() }

func (dc *DaemonSetController) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var ds appsv1.DaemonSet
	if err := dc.client.Get(ctx, key, &ds); err != nil {
		dc.patches.forget(key)
		dc.places.forget(key)
		return 0, client.IgnoreNotFound(err)
	}
	selector, err := metav1.LabelSelectorAsSelector(ds.Spec.Selector)
	switch {
	case err != nil:
		dc.opts.Log.Warn("daemon set has an invalid selector", "namespace", key.Namespace, "name", key.Name, "error", err)
		return 0, nil
	case selector.Empty():
		dc.recorder.Event(&ds, corev1.EventTypeWarning, "SelectingAll", "This daemon set is selecting all pods. A non-empty selector is required.")
		return 0, nil
	case ds.DeletionTimestamp != nil:
		return 0, nil // its revisions may be gone already, and with them the truth about its pods
	}
	pods, err := dc.claimedPods(ctx, &ds, selector)
	if err != nil {
		return 0, err
	}
	current, old, err := dc.history(ctx, &ds, selector, pods)
	if err != nil || current == nil {
		return 0, err
	}
	state := daemonState{
		ds: &ds, nodes: dc.places.of(&ds), pods: pods, hash: current.Labels[appsv1.DefaultDaemonSetUniqueLabelKey],
		held: dc.held(&ds), now: time.Now(),
	}
	all := state.places()
	plan := planDaemonSet(state, all)
	err = dc.carryOut(ctx, state, plan)
	if err == nil {
		err = dc.cleanHistory(ctx, state, old)
	}
	if len(plan.create)+len(plan.remove) > 0 {
		now, lookErr := dc.placesNow(ctx, state, selector)
		if lookErr != nil {
			return 0, errors.Join(err, lookErr)
		}
		all = now
	}
	wait, statusErr := dc.writeStatus(ctx, state, all)
	if plan.more {
		dc.loop.Add(key)
	}
	if plan.again > 0 && (wait == 0 || plan.again < wait) {
		wait = plan.again
	}
	return wait, errors.Join(err, statusErr)
}

func (dc *DaemonSetController) claimedPods(ctx context.Context, ds *appsv1.DaemonSet, selector labels.Selector) ([]*corev1.Pod, error) {
	claims := &claimer{client: dc.client, owner: ds, kind: daemonSetKind(), selector: selector}
	return claimed(ctx, claims, &dc.pods.strays, listPods, ds.Status.ObservedGeneration < ds.Generation)
}

// held says how long a failed pod on a node stays.
func (dc *DaemonSetController) held(ds *appsv1.DaemonSet) func(node string) time.Duration {
	return func(node string) time.Duration {
		id := backoffID(ds, node)
		if !dc.backoff.IsInBackOffSinceUpdate(id, time.Now()) {
			return 0
		}
		return dc.backoff.Get(id)
	}
}

func backoffID(ds *appsv1.DaemonSet, node string) string {
	return fmt.Sprintf("%s/%d/%s", ds.UID, ds.Status.ObservedGeneration, node)
}

// carryOut does what a plan says; a failure to create does not keep it from deleting.
func (dc *DaemonSetController) carryOut(ctx context.Context, s daemonState, plan daemonPlan) error {
	dc.tellEnded(s.ds, plan.ended)
	if len(plan.create)+len(plan.remove) == 0 {
		return nil
	}
	template := s.ds.Spec.Template // its insides are copied for each pod
	template.Labels = maps.Clone(template.Labels)
	if template.Labels == nil {
		template.Labels = map[string]string{}
	}
	if generation, ok := templateGeneration(s.ds); ok {
		template.Labels[labelTemplateGeneration] = generation
	}
	template.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = s.hash
	template.Spec.Tolerations = daemonTolerations(&template.Spec)
	createErr := dc.writer.create(ctx, s.ds, len(plan.create), func(i int) *corev1.Pod {
		pod := newPod(s.ds, daemonSetKind(), &template)
		pod.Spec.Affinity = pinTo(pod.Spec.Affinity, plan.create[i])
		return pod
	})
	return errors.Join(createErr, dc.writer.delete(ctx, s.ds, plan.remove))
}

// tellEnded writes events about pods that ended by themselves and notes failures.
func (dc *DaemonSetController) tellEnded(ds *appsv1.DaemonSet, ended []endedPod) {
	now := time.Now()
	dc.mu.Lock()
	if now.Sub(dc.cleaned) > time.Minute {
		dc.backoff.GC()
		dc.cleaned = now
	}
	dc.mu.Unlock()
	for _, e := range ended {
		if e.pod.Status.Phase == corev1.PodFailed {
			dc.backoff.Next(backoffID(ds, e.node), now)
			dc.recorder.Event(ds, corev1.EventTypeWarning, "FailedDaemonPod",
				fmt.Sprintf("Found failed daemon pod %s/%s on node %s, will try to kill it", e.pod.Namespace, e.pod.Name, e.node))
			continue
		}
		dc.recorder.Event(ds, corev1.EventTypeNormal, "SucceededDaemonPod",
			fmt.Sprintf("Found succeeded daemon pod %s/%s on node %s, will try to delete it", e.pod.Namespace, e.pod.Name, e.node))
	}
}

// placesNow looks at the pods again, after writes.
func (dc *DaemonSetController) placesNow(ctx context.Context, s daemonState, selector labels.Selector) ([]daemonPlace, error) {
	pods, err := podsOf(ctx, dc.client, s.ds.Namespace, s.ds.UID)
	if err != nil {
		return nil, err
	}
	s.pods = slices.DeleteFunc(pods, func(pod *corev1.Pod) bool { return !selector.Matches(labels.Set(pod.Labels)) })
	return s.places(), nil
}

// writeStatus writes what the pods show and says when to look again.
func (dc *DaemonSetController) writeStatus(ctx context.Context, s daemonState, all []daemonPlace) (time.Duration, error) {
	status, wait := planDaemonStatus(s, all)
	if apiequality.Semantic.DeepEqual(status, s.ds.Status) {
		return wait, nil
	}
	next := s.ds.DeepCopy()
	next.Status = status
	return wait, client.IgnoreNotFound(dc.client.Status().Update(ctx, next))
}

// history finds or makes the revision of the template, brings its number up to date, and
// returns the others beside it. A nil revision means that the pass is over.
func (dc *DaemonSetController) history(ctx context.Context, ds *appsv1.DaemonSet, selector labels.Selector, pods []*corev1.Pod) (current *appsv1.ControllerRevision, old []*appsv1.ControllerRevision, err error) {
	claims := &claimer{client: dc.client, owner: ds, kind: daemonSetKind(), selector: selector}
	revisions, err := claimed(ctx, claims, &dc.revisions.strays, listRevisions, ds.Status.ObservedGeneration < ds.Generation)
	if err != nil {
		return nil, nil, err
	}
	patch, err := dc.patches.of(ds, &ds.Spec.Template)
	if err != nil {
		return nil, nil, err
	}
	sortRevisions(revisions)
	var same []*appsv1.ControllerRevision
	var highest int64
	for _, revision := range revisions {
		if revision, err = dc.labelled(ctx, revision); err != nil {
			return nil, nil, err
		}
		if bytes.Equal(revision.Data.Raw, patch) {
			same = append(same, revision)
		} else {
			old = append(old, revision)
			highest = max(highest, revision.Revision)
		}
	}
	if len(same) == 0 {
		current, err = dc.snapshot(ctx, ds, patch, highest+1)
		return current, old, err
	}
	current = same[len(same)-1]
	if len(same) > 1 {
		dc.loop.Add(controller.KeyOf(ds)) // which sees the pods with their new label
		return nil, nil, dc.dropDuplicates(ctx, current, same[:len(same)-1], pods)
	}
	if current.Revision <= highest {
		current, err = renumber(ctx, dc.client, current, highest+1)
	}
	return current, old, err
}

// labelled gives a revision the label that its pods have, if it lacks it.
func (dc *DaemonSetController) labelled(ctx context.Context, revision *appsv1.ControllerRevision) (*appsv1.ControllerRevision, error) {
	if _, ok := revision.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]; ok {
		return revision, nil
	}
	next := revision.DeepCopy()
	if next.Labels == nil {
		next.Labels = map[string]string{}
	}
	next.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = next.Name
	if err := dc.client.Update(ctx, next); err != nil {
		return nil, fmt.Errorf("labelling revision %s: %w", revision.Name, err)
	}
	return next, nil
}

// dropDuplicates deletes revisions that hold the same as the one to keep, whose label all
// pods get first.
func (dc *DaemonSetController) dropDuplicates(ctx context.Context, keep *appsv1.ControllerRevision, others []*appsv1.ControllerRevision, pods []*corev1.Pod) error {
	hash := keep.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]string{appsv1.DefaultDaemonSetUniqueLabelKey: hash}}})
	if err != nil {
		return fmt.Errorf("encoding a label: %w", err)
	}
	for _, pod := range pods {
		if pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == hash {
			continue
		}
		if err := dc.client.Patch(ctx, pod.DeepCopy(), client.RawPatch(types.MergePatchType, body)); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("relabelling pod %s: %w", pod.Name, err)
		}
	}
	for _, revision := range others {
		if err := deleteRevision(ctx, dc.client, revision); err != nil {
			return err
		}
	}
	return nil
}

// snapshot makes the revision of the template. If another template has its hash, collisions
// are counted up and the next pass tries another name.
func (dc *DaemonSetController) snapshot(ctx context.Context, ds *appsv1.DaemonSet, patch []byte, number int64) (*appsv1.ControllerRevision, error) {
	hash := TemplateHash(&ds.Spec.Template, ds.Status.CollisionCount)
	labels := maps.Clone(ds.Spec.Template.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[appsv1.DefaultDaemonSetUniqueLabelKey] = hash
	revision := &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ds.Namespace, Name: ds.Name + "-" + hash, Labels: labels, Annotations: maps.Clone(ds.Annotations),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(ds, daemonSetKind())},
		},
		Data: runtime.RawExtension{Raw: patch}, Revision: number,
	}
	err := dc.client.Create(ctx, revision)
	if err == nil {
		return revision, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("creating revision %s: %w", revision.Name, err)
	}
	var existing appsv1.ControllerRevision
	if err := dc.client.Get(ctx, client.ObjectKeyFromObject(revision), &existing); err != nil {
		return nil, fmt.Errorf("getting revision %s: %w", revision.Name, err)
	}
	if bytes.Equal(existing.Data.Raw, patch) {
		return &existing, nil
	}
	next := ds.DeepCopy()
	if next.Status.CollisionCount == nil {
		next.Status.CollisionCount = new(int32)
	}
	*next.Status.CollisionCount++
	if err := dc.client.Status().Update(ctx, next); err != nil {
		return nil, fmt.Errorf("counting a hash collision: %w", err)
	}
	dc.loop.Add(controller.KeyOf(ds))
	return nil, nil
}

// cleanHistory deletes the oldest revisions beyond the history limit, except those that
// pods still have.
func (dc *DaemonSetController) cleanHistory(ctx context.Context, s daemonState, old []*appsv1.ControllerRevision) error {
	limit := s.ds.Spec.RevisionHistoryLimit
	if limit == nil {
		return nil
	}
	surplus := len(old) - int(*limit)
	if surplus <= 0 {
		return nil
	}
	live := map[string]bool{}
	for _, pod := range s.pods {
		live[pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]] = true
	}
	for _, revision := range old {
		if surplus == 0 || live[revision.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]] {
			continue
		}
		if err := deleteRevision(ctx, dc.client, revision); err != nil {
			return err
		}
		surplus--
	}
	return nil
}
