package volume

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"gantry.dev/gantry/internal/volume/local"
)

// volumePlan is what is to be done about a volume, in this order.
type volumePlan struct {
	event      event // told whenever it is new
	claimEvent event // to the volume's claim
	unbind     bool  // let go of the claim
	phase      corev1.PersistentVolumePhase
	onPhase    event // told if phase is new, and the phase's message
	delete     bool  // the object; its finalizer keeps it until the data is gone
	release    bool  // take our finalizer away
	order      bool  // its node must know that the data is to go
}

// planVolume decides about a volume. claim is the one that it refers to, nil if that does not
// exist or has another UID. Source: kubernetes, pkg/controller/volume/persistentvolume, syncVolume.
func planVolume(pv *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim, node nodeFacts) volumePlan {
	ref := pv.Spec.ClaimRef
	plan := volumePlan{}
	switch {
	case ref == nil, ref.UID == "":
		plan.phase = corev1.VolumeAvailable
	case claim == nil:
		plan = planReleased(pv)
	case claim.Spec.VolumeName == "":
		if storagehelpers.CheckVolumeModeMismatches(&claim.Spec, &pv.Spec) {
			plan.event = event{corev1.EventTypeWarning, reasonVolumeMismatch,
				fmt.Sprintf("Cannot bind PersistentVolume to requested PersistentVolumeClaim %q due to incompatible volumeMode.", claim.Name)}
			plan.claimEvent = event{corev1.EventTypeWarning, reasonVolumeMismatch,
				fmt.Sprintf("Cannot bind PersistentVolume %q to requested PersistentVolumeClaim due to incompatible volumeMode.", pv.Name)}
		}
	case claim.Spec.VolumeName == pv.Name:
		plan.phase = corev1.VolumeBound
	case metav1.HasAnnotation(pv.ObjectMeta, storagehelpers.AnnDynamicallyProvisioned) && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete:
		plan = planReleased(pv) // made for a claim that found another volume
	default:
		plan.unbind = true
	}
	if pv.DeletionTimestamp != nil && slices.Contains(pv.Finalizers, local.Finalizer) {
		plan.planLeaving(pv, claim, node)
	}
	return plan
}

// planReleased is about a volume whose claim is gone.
func planReleased(pv *corev1.PersistentVolume) volumePlan {
	plan := volumePlan{}
	if pv.Status.Phase != corev1.VolumeFailed { // which says what went wrong
		plan.phase = corev1.VolumeReleased
	}
	if pv.Annotations[storagehelpers.AnnMigratedTo] != "" {
		return plan
	}
	failed := func(reason, note string) volumePlan {
		return volumePlan{phase: corev1.VolumeFailed, onPhase: event{corev1.EventTypeWarning, reason, note}}
	}
	switch pv.Spec.PersistentVolumeReclaimPolicy {
	case corev1.PersistentVolumeReclaimRetain:
		return plan
	case corev1.PersistentVolumeReclaimRecycle:
		return failed(reasonFailedRecycle, "No recycler plugin found for the volume!")
	case corev1.PersistentVolumeReclaimDelete:
	default:
		return failed("VolumeUnknownReclaimPolicy", "Volume has unrecognized PersistentVolumeReclaimPolicy")
	}
	switch by := pv.Annotations[storagehelpers.AnnDynamicallyProvisioned]; {
	case local.Ours(pv):
		plan.delete = pv.DeletionTimestamp == nil
	case strings.HasPrefix(by, "kubernetes.io/"), by == "" && pv.Spec.CSI == nil:
		return failed(reasonFailedDelete, fmt.Sprintf("error getting deleter volume plugin for volume %q: no deletable volume plugin matched", pv.Name))
	}
	return plan // another provisioner's
}

// nodeFacts is what planVolume knows of the node that has a local volume's folder.
type nodeFacts struct {
	exists  bool
	removed bool // it says that the folder is gone
}

// planLeaving is about a local volume that is being deleted: a step that nobody can undo.
func (plan *volumePlan) planLeaving(pv *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim, node nodeFacts) {
	inUse := claim != nil && (claim.Spec.VolumeName == pv.Name || claim.Spec.VolumeName == "" && pv.Status.Phase == corev1.VolumeBound)
	switch {
	case inUse || plan.unbind:
	case pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || !local.Ours(pv):
		plan.release = true // the data is kept
	case !node.exists:
		plan.release = true
		plan.event = event{corev1.EventTypeWarning, reasonFailedDelete,
			fmt.Sprintf("node %q is no longer part of the cluster: what it has of the volume's data is left there", pv.Annotations[local.NodeAnnotation])}
	case node.removed:
		plan.release = true
	default:
		plan.order = true
	}
}

// ordered says whether a node must be told to remove a volume's data, as far as the volume
// itself tells: it is being deleted, and no claim has it.
func ordered(pv *corev1.PersistentVolume) bool {
	return local.Ours(pv) && pv.DeletionTimestamp != nil && slices.Contains(pv.Finalizers, local.Finalizer) &&
		pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete && pv.Status.Phase != corev1.VolumeBound
}

// unbound is a volume that has let go of its claim: if a user has made the reference, it stays
// reserved for a claim of that name.
func unbound(pv *corev1.PersistentVolume) *corev1.PersistentVolume {
	next := pv.DeepCopy()
	if metav1.HasAnnotation(pv.ObjectMeta, storagehelpers.AnnBoundByController) {
		next.Spec.ClaimRef = nil
		delete(next.Annotations, storagehelpers.AnnBoundByController)
		return next
	}
	next.Spec.ClaimRef.UID = ""
	return next
}

// resizedFrom is the size of a volume's file system while it is smaller than the volume.
func resizedFrom(pv *corev1.PersistentVolume) (resource.Quantity, bool) {
	text, ok := pv.Annotations[preResize]
	if !ok {
		return resource.Quantity{}, false
	}
	amount, err := resource.ParseQuantity(text)
	if err != nil {
		return pv.Spec.Capacity.Storage().DeepCopy(), true
	}
	return amount, true
}
