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
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// StatefulSetController keeps the pods of each StatefulSet, every one with an identity.
type StatefulSetController struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	opts      Options
	loop      *controller.Loop
	pods      route // of pods to their sets
	revisions route
	writer    podWriter // for its limit of writes: the events are the sets' own
	patches   patches
	pace      pacer
}

// NewStatefulSets checks opts and returns a controller that has started nothing; call Run.
func NewStatefulSets(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*StatefulSetController, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	sc := &StatefulSetController{client: c, informers: informers, recorder: recorder, opts: opts, writer: newPodWriter(c, recorder, opts), pace: pacer{batch: opts.Batch}}
	loop, err := controller.NewLoop(controller.LoopOptions{
		Name: "statefulset", Workers: opts.Workers, Log: opts.Log, Reconcile: sc.pace.timed(sc.reconcile),
	})
	if err != nil {
		return nil, err
	}
	sc.loop = loop
	var owners selectors
	sc.pods = route{kind: statefulSetKind().Kind, owners: &owners, wake: sc.pace.wakes(loop)}
	sc.revisions = route{kind: statefulSetKind().Kind, owners: &owners, wake: wakeForRevision(loop)}
	loop.Watch(&appsv1.StatefulSet{}, func(old, current client.Object) {
		set, ok := current.(*appsv1.StatefulSet)
		if !ok {
			owners.observe(old, nil, nil)
			loop.Add(controller.KeyOf(old))
			return
		}
		owners.observe(old, current, set.Spec.Selector)
		loop.Add(controller.KeyOf(current))
	})
	loop.Watch(&corev1.Pod{}, sc.pods.onEvent)
	loop.Watch(&appsv1.ControllerRevision{}, sc.revisions.onEvent)
	return sc, nil
}

// wakeForRevision wakes the owner of a revision when somebody else may have changed it: not
// for one that is new.
func wakeForRevision(loop *controller.Loop) func(controller.Key, client.Object, client.Object) {
	return func(owner controller.Key, old, current client.Object) {
		if old != nil || metav1.GetControllerOfNoCopy(current) == nil {
			loop.Add(owner)
		}
	}
}

// Run reconciles until ctx ends.
func (sc *StatefulSetController) Run(ctx context.Context) error {
	return sc.loop.Run(ctx, sc.informers)
}

// Stats returns the counts of the controller's loop.
func (sc *StatefulSetController) Stats() controller.LoopStats { return sc.loop.Stats() }

func (sc *StatefulSetController) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var set appsv1.StatefulSet
	if err := sc.client.Get(ctx, key, &set); err != nil {
		sc.patches.forget(key)
		return 0, client.IgnoreNotFound(err)
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		sc.opts.Log.Warn("stateful set has an invalid selector", "namespace", key.Namespace, "name", key.Name, "error", err)
		return 0, nil
	}
	changed := set.Status.ObservedGeneration < set.Generation
	revisions, err := sc.ownRevisions(ctx, &set, selector, changed)
	if err != nil {
		return 0, err
	}
	claims := &claimer{
		client: sc.client, owner: &set, kind: statefulSetKind(), selector: selector,
		member: func(obj client.Object) bool {
			parent, _ := identity(obj.GetName())
			return parent == set.Name
		},
	}
	pods, err := claimed(ctx, claims, &sc.pods.strays, listPods, changed)
	if err != nil {
		return 0, err
	}
	state := setState{set: &set, pods: pods, claim: sc.claimOf(ctx, &set), gated: sc.opts.MaxUnavailable, now: time.Now()}
	ready, err := sc.chooseRevisions(ctx, &state, revisions)
	if err != nil || !ready {
		return 0, err
	}
	plan := planStatefulSet(state)
	err = sc.carryOut(ctx, &set, plan)
	statusErr := sc.writeStatus(ctx, &set, plan.settle(&set, err != nil))
	historyErr := sc.truncate(ctx, state, revisions)
	return plan.again, errors.Join(err, statusErr, historyErr)
}

// ownRevisions lists the revisions that the set controls and its selector selects, oldest
// first, after adopting orphans.
func (sc *StatefulSetController) ownRevisions(ctx context.Context, set *appsv1.StatefulSet, selector labels.Selector, changed bool) ([]*appsv1.ControllerRevision, error) {
	claims := &claimer{
		client: sc.client, owner: set, kind: statefulSetKind(), selector: selector,
		pass: func(obj client.Object) bool { return !selector.Matches(labels.Set(obj.GetLabels())) },
	}
	revisions, err := claimed(ctx, claims, &sc.revisions.strays, listRevisions, changed)
	if err != nil {
		return nil, err
	}
	sortRevisions(revisions)
	return revisions, nil
}

// claimOf looks up claims of a set's namespace. One that cannot be read counts as missing;
// what comes of it fails by itself.
func (sc *StatefulSetController) claimOf(ctx context.Context, set *appsv1.StatefulSet) func(string) *corev1.PersistentVolumeClaim {
	return func(name string) *corev1.PersistentVolumeClaim {
		var claim corev1.PersistentVolumeClaim
		if err := sc.client.Get(ctx, client.ObjectKey{Namespace: set.Namespace, Name: name}, &claim); err != nil {
			return nil
		}
		return &claim
	}
}

// chooseRevisions finds or makes the revision of the set's template and fills in the
// revisions of state. It returns false if there is none and none is to be made.
func (sc *StatefulSetController) chooseRevisions(ctx context.Context, state *setState, revisions []*appsv1.ControllerRevision) (bool, error) {
	set := state.set
	patch, err := sc.patches.of(set, &set.Spec.Template)
	if err != nil {
		return false, err
	}
	choice := chooseRevision(revisions, patch, func(latest *appsv1.ControllerRevision) bool {
		return sc.patches.means(latest, set, patch, sc.withDefaults)
	})
	if set.Status.CollisionCount != nil {
		state.collisions = *set.Status.CollisionCount
	}
	update := choice.found
	switch {
	case update == nil && set.DeletionTimestamp != nil:
		return false, nil // the garbage collector was there already
	case update == nil:
		update, err = createRevision(ctx, sc.client, set, patch, choice.number, &state.collisions)
	case update.Revision != choice.number && set.DeletionTimestamp == nil:
		update, err = renumber(ctx, sc.client, update, choice.number)
	}
	if err != nil {
		return false, err
	}
	// What the revision holds and what the set says are the same.
	state.update = setRevision{update.Name, &set.Spec.Template}
	state.current = state.update
	for _, revision := range revisions {
		if revision.Name == set.Status.CurrentRevision && revision.Name != update.Name {
			template, err := templateOf(revision)
			if err != nil {
				return false, err
			}
			state.current = setRevision{revision.Name, template}
		}
	}
	return true, nil
}

// withDefaults puts the API's defaults into a template.
func (sc *StatefulSetController) withDefaults(template *corev1.PodTemplateSpec) {
	set := appsv1.StatefulSet{Spec: appsv1.StatefulSetSpec{Template: *template}}
	sc.client.Scheme().Default(&set)
	*template = set.Spec.Template
}

// carryOut does what a plan says and stops before the next phase at an error.
func (sc *StatefulSetController) carryOut(ctx context.Context, set *appsv1.StatefulSet, plan setPlan) error {
	for _, steps := range plan.phases {
		for done, batch := 0, 1; done < len(steps); batch *= 2 {
			if set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement {
				batch = 1
			}
			batch = min(batch, len(steps)-done)
			err := sc.writer.each(ctx, batch, func(i int) error { return sc.step(ctx, set, steps[done+i]) })
			if err != nil {
				return err
			}
			done += batch
		}
	}
	return nil
}

func (sc *StatefulSetController) step(ctx context.Context, set *appsv1.StatefulSet, step setStep) error {
	for _, action := range step.actions {
		var err error
		switch action {
		case actCreate:
			err = sc.createPod(ctx, set, step.pod)
		case actClaims:
			if err = sc.createClaims(ctx, set, step.pod); err == nil {
				if err = sc.setClaimOwners(ctx, set, step.pod); err != nil {
					sc.tellPod("Update", set, step.pod, err)
				}
			}
		case actMend:
			err = sc.mendPod(ctx, set, step.pod)
		case actRetain:
			err = sc.setClaimOwners(ctx, set, step.pod)
		case actDelete:
			err = sc.deletePod(ctx, set, step.pod)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (sc *StatefulSetController) createPod(ctx context.Context, set *appsv1.StatefulSet, pod *corev1.Pod) error {
	if err := sc.createClaims(ctx, set, pod); err != nil {
		sc.tellPod("Create", set, pod, err)
		return err
	}
	err := sc.client.Create(ctx, pod)
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("creating pod %s: %w", pod.Name, err) // another one's pod has the name
	}
	if err == nil {
		if err := sc.setClaimOwners(ctx, set, pod); err != nil {
			sc.tellPod("Update", set, pod, err)
			return err
		}
	}
	sc.tellPod("Create", set, pod, err)
	return err
}

// mendPod puts right what somebody else changed about a pod and its claims.
func (sc *StatefulSetController) mendPod(ctx context.Context, set *appsv1.StatefulSet, stored *corev1.Pod) error {
	pod := stored.DeepCopy()
	identified, housed := identityMatches(set, pod), storageMatches(set, pod)
	err := func() error {
		if !identified {
			setIdentity(set, pod)
		}
		if !housed {
			setStorage(set, pod)
			if err := sc.createClaims(ctx, set, pod); err != nil {
				return err
			}
		}
		if err := sc.setClaimOwners(ctx, set, pod); err != nil || (identified && housed) {
			return err
		}
		return sc.client.Update(ctx, pod)
	}()
	sc.tellPod("Update", set, pod, err)
	return err
}

func (sc *StatefulSetController) deletePod(ctx context.Context, set *appsv1.StatefulSet, pod *corev1.Pod) error {
	err := deletePod(ctx, sc.client, pod)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		err = nil // gone already, or another pod has the name now
	}
	sc.tellPod("Delete", set, pod, err)
	return err
}

// createClaims creates the claims of a pod that are not there. A claim on its way out is an
// error: the pod would lose it.
func (sc *StatefulSetController) createClaims(ctx context.Context, set *appsv1.StatefulSet, pod *corev1.Pod) error {
	var failures []error
	for _, claim := range claimsOf(set, ordinalOf(pod)) {
		var stored corev1.PersistentVolumeClaim
		err := sc.client.Get(ctx, client.ObjectKeyFromObject(claim), &stored)
		switch {
		case apierrors.IsNotFound(err):
			err = sc.client.Create(ctx, claim)
			if err != nil {
				failures = append(failures, fmt.Errorf("failed to create PVC %s: %w", claim.Name, err))
			}
			if !apierrors.IsAlreadyExists(err) {
				sc.tellClaim(set, pod, claim, err)
			}
		case err != nil:
			failures = append(failures, fmt.Errorf("failed to retrieve PVC %s: %w", claim.Name, err))
			sc.tellClaim(set, pod, claim, err)
		case stored.DeletionTimestamp != nil:
			failures = append(failures, fmt.Errorf("pvc %s is being deleted", claim.Name))
		}
	}
	return errors.Join(failures...)
}

// setClaimOwners makes those own a pod's claims whom the set's retention policy names.
func (sc *StatefulSetController) setClaimOwners(ctx context.Context, set *appsv1.StatefulSet, pod *corev1.Pod) error {
	lookup := sc.claimOf(ctx, set)
	for i := range set.Spec.VolumeClaimTemplates {
		claim := lookup(claimName(set, &set.Spec.VolumeClaimTemplates[i], ordinalOf(pod)))
		if claim == nil {
			continue
		}
		if foreignController(claim, set, pod) {
			sc.recorder.Event(set, corev1.EventTypeWarning, "ConflictingController", fmt.Sprintf(
				"PersistentVolumeClaim %s has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim", claim.Name))
		}
		if ownersMatch(claim, set, pod) {
			continue
		}
		next := claim.DeepCopy()
		next.OwnerReferences = ownersOf(claim, set, pod)
		if err := sc.client.Update(ctx, next); err != nil {
			return fmt.Errorf("could not update claim %s for delete policy ownerRefs: %w", claim.Name, err)
		}
	}
	return nil
}

func (sc *StatefulSetController) tellPod(verb string, set *appsv1.StatefulSet, pod *corev1.Pod, err error) {
	if err != nil {
		sc.recorder.Event(set, corev1.EventTypeWarning, "Failed"+verb, fmt.Sprintf("%s Pod %s in StatefulSet %s failed error: %s", verb, pod.Name, set.Name, err))
		return
	}
	sc.recorder.Event(set, corev1.EventTypeNormal, "Successful"+verb, fmt.Sprintf("%s Pod %s in StatefulSet %s successful", verb, pod.Name, set.Name))
}

func (sc *StatefulSetController) tellClaim(set *appsv1.StatefulSet, pod *corev1.Pod, claim *corev1.PersistentVolumeClaim, err error) {
	if err != nil {
		sc.recorder.Event(set, corev1.EventTypeWarning, "FailedCreate", fmt.Sprintf("Create Claim %s for Pod %s in StatefulSet %s failed error: %s", claim.Name, pod.Name, set.Name, err))
		return
	}
	sc.recorder.Event(set, corev1.EventTypeNormal, "SuccessfulCreate", fmt.Sprintf("Create Claim %s Pod %s in StatefulSet %s success", claim.Name, pod.Name, set.Name))
}

// writeStatus writes a status that differs from the set's. The set may have been changed
// meanwhile: its observed generation is that of the one the pass looked at.
func (sc *StatefulSetController) writeStatus(ctx context.Context, set *appsv1.StatefulSet, status appsv1.StatefulSetStatus) error {
	if sameSetStatus(&status, &set.Status) {
		return nil
	}
	next := set.DeepCopy()
	next.Status = status
	return client.IgnoreNotFound(sc.client.Status().Update(ctx, next))
}

// truncate deletes the oldest revisions that neither the set nor a pod uses, beyond the
// history limit.
func (sc *StatefulSetController) truncate(ctx context.Context, state setState, revisions []*appsv1.ControllerRevision) error {
	live := map[string]bool{state.current.name: true, state.update.name: true}
	for _, pod := range state.pods {
		live[revisionOfPod(pod)] = true
	}
	for _, revision := range surplusRevisions(revisions, live, state.set.Spec.RevisionHistoryLimit) {
		if err := deleteRevision(ctx, sc.client, revision); err != nil {
			return err
		}
	}
	return nil
}
