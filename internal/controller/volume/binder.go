package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/volume/local"
)

const (
	// resync is how often a claim without a volume is looked at without an event, for the pods
	// that its event names. Upstream looks at everything that often.
	resync = 15 * time.Second
	// repeatEvents is after how long the same event is told again: before it is forgotten.
	repeatEvents = 30 * time.Minute
)

// Options tunes a Binder, an Ephemeral or an Expander.
type Options struct {
	Workers int          // keys at once; default 4
	Log     *slog.Logger // default: discard
}

// Binder binds claims and volumes, and provisions and reclaims local volumes.
type Binder struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	loop      *controller.Loop
	index     *index
}

// NewBinder checks opts and returns a Binder that has started nothing; call Run.
func NewBinder(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*Binder, error) {
	if c == nil || informers == nil || recorder == nil {
		return nil, errors.New("volume: a client, informers and a recorder are needed")
	}
	b := &Binder{client: c, informers: informers, recorder: recorder, index: newIndex()}
	var err error
	b.loop, err = controller.NewLoop(controller.LoopOptions{Name: "persistentvolume-binder", Workers: opts.Workers, Log: opts.Log, Reconcile: b.reconcile})
	if err != nil {
		return nil, err
	}
	b.loop.Watch(&corev1.PersistentVolume{}, func(old, current client.Object) {
		was, _ := old.(*corev1.PersistentVolume)
		is, _ := current.(*corev1.PersistentVolume)
		b.add(b.index.setVolume(was, is))
	})
	b.loop.Watch(&corev1.PersistentVolumeClaim{}, func(old, current client.Object) {
		was, _ := old.(*corev1.PersistentVolumeClaim)
		is, _ := current.(*corev1.PersistentVolumeClaim)
		b.add(b.index.setClaim(was, is))
	})
	b.loop.Watch(&corev1.Node{}, func(old, current client.Object) {
		was, _ := old.(*corev1.Node)
		is, _ := current.(*corev1.Node)
		b.add(b.index.setNode(was, is))
	})
	b.loop.Watch(&storagev1.StorageClass{}, func(_, current client.Object) {
		if current != nil { // claims without a class wait for a default one
			b.add(b.index.waitingFor(current.GetName(), ""))
		}
	})
	return b, nil
}

// Run reconciles until ctx ends.
func (b *Binder) Run(ctx context.Context) error { return b.loop.Run(ctx, b.informers) }

// Stats returns the counts of the binder's loop.
func (b *Binder) Stats() controller.LoopStats { return b.loop.Stats() }

func (b *Binder) add(keys []controller.Key) {
	for _, key := range keys {
		b.loop.Add(key)
	}
}

// nodePrefix marks the keys of nodes: claims have a namespace, volumes have none, and no
// object's name holds a colon.
const nodePrefix = "node:"

func nodeKey(name string) controller.Key { return controller.Key{Name: nodePrefix + name} }

func (b *Binder) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	if node, ok := strings.CutPrefix(key.Name, nodePrefix); ok {
		return 0, b.orderNode(ctx, node)
	}
	if key.Namespace == "" {
		return 0, b.reconcileVolume(ctx, key)
	}
	return b.reconcileClaim(ctx, key)
}

func (b *Binder) tell(obj client.Object, e event) {
	if e != (event{}) && b.index.news(obj.GetUID(), e, time.Now()) {
		b.recorder.Event(obj, e.kind, e.reason, e.note)
	}
}

func (b *Binder) reconcileClaim(ctx context.Context, key controller.Key) (time.Duration, error) {
	claim := &corev1.PersistentVolumeClaim{}
	if err := b.client.Get(ctx, key, claim); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	facts, err := b.facts(ctx, claim)
	if err != nil {
		return 0, err
	}
	plan := planClaim(facts)
	if plan.err != nil {
		return 0, fmt.Errorf("finding a volume: %w", plan.err)
	}
	b.tell(claim, plan.event)
	switch {
	case plan.setClass != "":
		next := claim.DeepCopy()
		next.Spec.StorageClassName = &plan.setClass
		return 0, b.update(ctx, next, "giving a claim the default class")
	case plan.bind != nil:
		return 0, b.bind(ctx, plan.bind, claim)
	case plan.provision:
		return resync, b.provision(ctx, claim, facts.class)
	}
	if next, changed := freeStatus(claim, plan.phase); changed {
		was := claim.Status.Phase
		if err := b.client.Status().Update(ctx, next); err != nil {
			return 0, fmt.Errorf("writing a claim's status: %w", err)
		}
		if was != plan.phase && plan.onPhase != (event{}) {
			b.recorder.Event(next, plan.onPhase.kind, plan.onPhase.reason, plan.onPhase.note)
		}
	}
	if plan.phase == corev1.ClaimPending {
		return resync, nil
	}
	return 0, nil
}

func (b *Binder) facts(ctx context.Context, claim *corev1.PersistentVolumeClaim) (claimFacts, error) {
	facts := claimFacts{claim: claim}
	if claim.Spec.VolumeName != "" {
		pv := &corev1.PersistentVolume{}
		err := b.client.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, pv)
		if client.IgnoreNotFound(err) != nil {
			return facts, fmt.Errorf("reading a claim's volume: %w", err)
		}
		if err == nil {
			facts.named = pv
		}
		return facts, nil
	}
	if _, bound := claim.Annotations[storagehelpers.AnnBindCompleted]; bound {
		return facts, nil
	}
	name := storagehelpers.GetPersistentVolumeClaimClass(claim)
	var classes storagev1.StorageClassList
	if err := b.client.List(ctx, &classes); err != nil {
		return facts, fmt.Errorf("listing storage classes: %w", err)
	}
	if at := slices.IndexFunc(classes.Items, func(c storagev1.StorageClass) bool { return c.Name == name }); name != "" && at >= 0 {
		facts.class = &classes.Items[at]
	}
	facts.fallback = defaultClass(classes.Items)
	facts.others = b.index.candidates(claim)
	if waits(facts.class) && !storagehelpers.IsDelayBindingProvisioning(claim) {
		var err error
		if facts.waiting, err = b.waitingPods(ctx, claim); err != nil {
			return facts, err
		}
	}
	return facts, nil
}

// waitingPods names the pods that use a claim and have no node.
func (b *Binder) waitingPods(ctx context.Context, claim *corev1.PersistentVolumeClaim) ([]string, error) {
	var pods corev1.PodList
	if err := b.client.List(ctx, &pods, client.InNamespace(claim.Namespace)); err != nil {
		return nil, fmt.Errorf("listing pods: %w", err)
	}
	var names []string
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Spec.NodeName == "" && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed && uses(pod, claim.Name) {
			names = append(names, pod.Name)
		}
	}
	return names, nil
}

func (b *Binder) update(ctx context.Context, obj client.Object, doing string) error {
	if err := b.client.Update(ctx, obj); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}

// bind makes volume and claim refer to each other. A crash between two of the writes leaves a
// reference that the next look completes.
func (b *Binder) bind(ctx context.Context, pv *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	bound, changed, err := storagehelpers.GetBindVolumeToClaim(pv, claim)
	if err != nil {
		return fmt.Errorf("referring to a claim: %w", err)
	}
	if changed {
		if err := b.update(ctx, bound, "reserving a volume"); err != nil {
			return err
		}
		pv = bound
	}
	if pv.Status.Phase != corev1.VolumeBound {
		if pv, err = b.setPhase(ctx, pv, corev1.VolumeBound, ""); err != nil {
			return err
		}
	}
	if next, changed := boundClaim(claim, pv); changed {
		if err := b.update(ctx, next, "binding a claim"); err != nil {
			return err
		}
		claim = next
	}
	next, changed := boundStatus(claim, pv)
	if !changed {
		return nil
	}
	b.index.quiet(claim.UID)
	if err := b.client.Status().Update(ctx, next); err != nil {
		return fmt.Errorf("writing a claim's status: %w", err)
	}
	return nil
}

func (b *Binder) setPhase(ctx context.Context, pv *corev1.PersistentVolume, phase corev1.PersistentVolumePhase, message string) (*corev1.PersistentVolume, error) {
	next := pv.DeepCopy()
	next.Status.Phase, next.Status.Message = phase, message
	if err := b.client.Status().Update(ctx, next); err != nil {
		return nil, fmt.Errorf("writing a volume's status: %w", err)
	}
	return next, nil
}

// provision marks a claim for its provisioner, and does the work if that is the built-in one.
func (b *Binder) provision(ctx context.Context, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	ours := class.Provisioner == local.Provisioner
	if strings.HasPrefix(class.Provisioner, "kubernetes.io/") && claim.Annotations[storagehelpers.AnnMigratedTo] == "" {
		b.tell(claim, event{corev1.EventTypeWarning, reasonProvisioningFailed, "no volume plugin matched name: " + class.Provisioner})
		return b.pend(ctx, claim)
	}
	if claim.Annotations[storagehelpers.AnnStorageProvisioner] != class.Provisioner {
		next := claim.DeepCopy()
		if next.Annotations == nil {
			next.Annotations = map[string]string{}
		}
		next.Annotations[storagehelpers.AnnBetaStorageProvisioner] = class.Provisioner
		next.Annotations[storagehelpers.AnnStorageProvisioner] = class.Provisioner
		if err := b.update(ctx, next, "naming a claim's provisioner"); err != nil {
			return err
		}
		claim = next
	}
	if !ours {
		b.tell(claim, event{corev1.EventTypeNormal, reasonExternalProvisioning, fmt.Sprintf("Waiting for a volume to be created either by the external provisioner '%s' "+
			"or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.", class.Provisioner)})
		return b.pend(ctx, claim)
	}
	if claim.DeletionTimestamp != nil {
		return nil // nobody will use the volume
	}
	pv, refused := planLocal(claim, class, b.index.localNodes(), string(uuid.NewUUID())[:8])
	if refused != nil {
		return b.refuse(ctx, claim, *refused)
	}
	err := b.client.Create(ctx, pv)
	switch {
	case apierrors.IsAlreadyExists(err):
		return nil // made before; its event binds it
	case err != nil:
		return fmt.Errorf("creating a volume: %w", err)
	}
	b.recorder.Event(claim, corev1.EventTypeNormal, reasonProvisioned, fmt.Sprintf("Successfully provisioned volume %s using %s", pv.Name, local.Provisioner))
	return nil
}

// pend gives a new claim the phase Pending.
func (b *Binder) pend(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	next, changed := freeStatus(claim, corev1.ClaimPending)
	if !changed {
		return nil
	}
	if err := b.client.Status().Update(ctx, next); err != nil {
		return fmt.Errorf("writing a claim's status: %w", err)
	}
	return nil
}

// refuse says why a claim cannot be provisioned, and lets the scheduler choose again if
// another node might do.
func (b *Binder) refuse(ctx context.Context, claim *corev1.PersistentVolumeClaim, why refusal) error {
	b.tell(claim, event{corev1.EventTypeWarning, reasonProvisioningFailed, why.note})
	if _, chosen := claim.Annotations[storagehelpers.AnnSelectedNode]; why.reschedule && chosen {
		next := claim.DeepCopy()
		delete(next.Annotations, storagehelpers.AnnSelectedNode)
		return b.update(ctx, next, "asking for another node")
	}
	return b.pend(ctx, claim)
}

func (b *Binder) reconcileVolume(ctx context.Context, key controller.Key) error {
	pv := &corev1.PersistentVolume{}
	if err := b.client.Get(ctx, key, pv); err != nil {
		return client.IgnoreNotFound(err)
	}
	claim, err := b.claimOf(ctx, pv)
	if err != nil {
		return err
	}
	plan := planVolume(pv, claim, b.index.nodeOf(pv))
	b.tell(pv, plan.event)
	if claim != nil && plan.claimEvent != (event{}) {
		b.recorder.Event(claim, plan.claimEvent.kind, plan.claimEvent.reason, plan.claimEvent.note)
	}
	if plan.unbind {
		return b.update(ctx, unbound(pv), "letting go of a claim")
	}
	if plan.phase != "" && plan.phase != pv.Status.Phase {
		if pv, err = b.setPhase(ctx, pv, plan.phase, plan.onPhase.note); err != nil {
			return err
		}
		if plan.onPhase != (event{}) {
			b.recorder.Event(pv, plan.onPhase.kind, plan.onPhase.reason, plan.onPhase.note)
		}
	}
	switch {
	case plan.release:
		next := pv.DeepCopy()
		next.Finalizers = slices.DeleteFunc(next.Finalizers, func(f string) bool { return f == local.Finalizer })
		return client.IgnoreNotFound(b.update(ctx, next, "releasing a volume"))
	case plan.order:
		b.loop.Add(nodeKey(pv.Annotations[local.NodeAnnotation]))
	case plan.delete:
		err := b.client.Delete(ctx, pv, client.Preconditions{UID: &pv.UID, ResourceVersion: &pv.ResourceVersion})
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("deleting a volume: %w", err)
		}
	}
	return nil
}

// claimOf reads the claim that a volume refers to, nil if it is gone.
func (b *Binder) claimOf(ctx context.Context, pv *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, error) {
	if pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID == "" {
		return nil, nil //nolint:nilnil // no claim is no error
	}
	claim := &corev1.PersistentVolumeClaim{}
	switch err := b.client.Get(ctx, claimKey(pv), claim); {
	case apierrors.IsNotFound(err):
		return nil, nil //nolint:nilnil // as above
	case err != nil:
		return nil, fmt.Errorf("reading a volume's claim: %w", err)
	case claim.UID != pv.Spec.ClaimRef.UID:
		return nil, nil //nolint:nilnil // another one of its name
	}
	return claim, nil
}

// orderNode tells a node which folders it must remove.
func (b *Binder) orderNode(ctx context.Context, name string) error {
	node := &corev1.Node{}
	if err := b.client.Get(ctx, client.ObjectKey{Name: name}, node); err != nil {
		return client.IgnoreNotFound(err)
	}
	want := b.index.orders(name)
	if node.Annotations[local.RemoveAnnotation] == want {
		return nil
	}
	patch, err := annotationPatch(local.RemoveAnnotation, want)
	if err != nil {
		return err
	}
	target := node.DeepCopy()
	if err := b.client.Patch(ctx, target, client.RawPatch(types.MergePatchType, patch)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("telling a node what to remove: %w", err)
	}
	return nil
}
