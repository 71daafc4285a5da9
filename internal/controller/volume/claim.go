package volume

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// Reasons of events (kubernetes, pkg/controller/volume/events).
const (
	reasonFailedBinding        = "FailedBinding"
	reasonVolumeMismatch       = "VolumeMismatch"
	reasonFailedRecycle        = "VolumeFailedRecycle"
	reasonFailedDelete         = "VolumeFailedDelete"
	reasonExternalProvisioning = "ExternalProvisioning"
	reasonProvisioningFailed   = "ProvisioningFailed"
	reasonProvisioned          = "ProvisioningSucceeded"
	reasonWaitForConsumer      = "WaitForFirstConsumer"
	reasonWaitForPod           = "WaitForPodScheduled"
	reasonExternalExpanding    = "ExternalExpanding"
)

// event is one to be recorded; its zero value is none.
type event struct {
	kind, reason, note string
}

// claimFacts is what planClaim goes by.
type claimFacts struct {
	claim    *corev1.PersistentVolumeClaim
	class    *storagev1.StorageClass    // of the claim; nil if it names none that exists
	fallback *storagev1.StorageClass    // the default class, nil if there is none
	named    *corev1.PersistentVolume   // the volume that the claim names, nil if it does not exist
	others   []*corev1.PersistentVolume // volumes it could be bound to; read only if it names none
	waiting  []string                   // pods without a node that use the claim
}

// claimPlan is what is to be done about a claim, in this order.
type claimPlan struct {
	event     event // told whenever it is new
	setClass  string
	bind      *corev1.PersistentVolume // bind claim and volume to each other, each step if it is still to do
	provision bool
	phase     corev1.PersistentVolumeClaimPhase // without a volume
	onPhase   event                             // told if phase is new
	err       error                             // to be tried again
}

// planClaim decides about a claim. Source: kubernetes, pkg/controller/volume/persistentvolume,
// syncClaim.
func planClaim(f claimFacts) claimPlan {
	switch bound := metav1.HasAnnotation(f.claim.ObjectMeta, storagehelpers.AnnBindCompleted); {
	case bound:
		return planBound(f)
	case f.claim.Spec.VolumeName != "":
		return planNamed(f)
	}
	return planFree(f)
}

// planFree is about a claim that takes any volume that suits it.
func planFree(f claimFacts) claimPlan {
	delay := waits(f.class)
	found, err := bestMatch(f.claim, f.others, delay)
	if err != nil {
		return claimPlan{err: err}
	}
	if found != nil {
		return claimPlan{bind: found}
	}
	if f.fallback != nil && !storagehelpers.PersistentVolumeClaimHasClass(f.claim) {
		return claimPlan{setClass: f.fallback.Name}
	}
	pending := claimPlan{phase: corev1.ClaimPending}
	switch name := storagehelpers.GetPersistentVolumeClaimClass(f.claim); {
	case delay && !storagehelpers.IsDelayBindingProvisioning(f.claim):
		pending.event = waitEvent(f.waiting)
	case name != "" && f.class == nil:
		pending.event = event{corev1.EventTypeWarning, reasonProvisioningFailed, fmt.Sprintf("storageclass.storage.k8s.io %q not found", name)}
	case name != "":
		pending.provision = true
	default:
		pending.event = event{corev1.EventTypeNormal, reasonFailedBinding, "no persistent volumes available for this claim and no storage class is set"}
	}
	return pending
}

func waitEvent(pods []string) event {
	switch len(pods) {
	case 0:
		return event{corev1.EventTypeNormal, reasonWaitForConsumer, "waiting for first consumer to be created before binding"}
	case 1:
		return event{corev1.EventTypeNormal, reasonWaitForPod, fmt.Sprintf("waiting for pod %s to be scheduled", pods[0])}
	}
	return event{corev1.EventTypeNormal, reasonWaitForPod, fmt.Sprintf("waiting for pods %s to be scheduled", strings.Join(pods, ","))}
}

// planNamed is about a claim that names its volume and is not bound yet.
func planNamed(f claimFacts) claimPlan {
	pending := claimPlan{phase: corev1.ClaimPending}
	switch pv := f.named; {
	case pv == nil:
		return pending
	case pv.Spec.ClaimRef == nil:
		if why := mismatch(pv, f.claim); why != "" {
			pending.event = event{corev1.EventTypeWarning, reasonVolumeMismatch, fmt.Sprintf("Cannot bind to requested volume %q: %s", pv.Name, why)}
			return pending
		}
		return claimPlan{bind: pv}
	case storagehelpers.IsVolumeBoundToClaim(pv, f.claim):
		return claimPlan{bind: pv}
	default:
		pending.event = event{corev1.EventTypeWarning, reasonFailedBinding, fmt.Sprintf("volume %q already bound to a different claim.", pv.Name)}
		return pending
	}
}

// planBound is about a claim that once was bound.
func planBound(f claimFacts) claimPlan {
	lost := func(reason, note string) claimPlan {
		return claimPlan{phase: corev1.ClaimLost, onPhase: event{corev1.EventTypeWarning, reason, note}}
	}
	switch pv := f.named; {
	case f.claim.Spec.VolumeName == "":
		return lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
	case pv == nil:
		return lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
	case pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID == f.claim.UID:
		return claimPlan{bind: pv}
	}
	return lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
}

// boundClaim is the claim as binding it to pv makes it; changed is false if it is so already.
func boundClaim(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) (next *corev1.PersistentVolumeClaim, changed bool) {
	completed := metav1.HasAnnotation(claim.ObjectMeta, storagehelpers.AnnBindCompleted)
	if claim.Spec.VolumeName == pv.Name && completed {
		return claim, false
	}
	next = claim.DeepCopy()
	if next.Spec.VolumeName != pv.Name {
		next.Spec.VolumeName = pv.Name
		metav1.SetMetaDataAnnotation(&next.ObjectMeta, storagehelpers.AnnBoundByController, "yes")
	}
	metav1.SetMetaDataAnnotation(&next.ObjectMeta, storagehelpers.AnnBindCompleted, "yes")
	return next, true
}

// preResize is upstream's annotation of a volume whose file system is still to be enlarged.
const preResize = "volume.alpha.kubernetes.io/pre-resize-capacity"

// boundStatus is the claim with the status that its volume gives it.
func boundStatus(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) (next *corev1.PersistentVolumeClaim, changed bool) {
	was := claim.Status.Phase
	next = claim.DeepCopy()
	next.Status.Phase = corev1.ClaimBound
	if changed = was != corev1.ClaimBound; changed {
		// Later a smaller capacity means that the file system is still to be enlarged.
		if amount, ok := resizedFrom(pv); ok {
			next.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: amount}
		} else if have := claim.Status.Capacity.Storage(); have.Cmp(*pv.Spec.Capacity.Storage()) != 0 {
			next.Status.Capacity = pv.Spec.Capacity.DeepCopy()
		}
		if was == corev1.ClaimPending || was == "" {
			next.Status.CurrentVolumeAttributesClassName = pv.Spec.VolumeAttributesClassName
		}
	}
	if modesKey(claim.Status.AccessModes) != modesKey(pv.Spec.AccessModes) {
		next.Status.AccessModes = pv.Spec.AccessModes
		changed = true
	}
	return next, changed
}

// freeStatus is the claim with the status of one that has no volume.
func freeStatus(claim *corev1.PersistentVolumeClaim, phase corev1.PersistentVolumeClaimPhase) (next *corev1.PersistentVolumeClaim, changed bool) {
	s := &claim.Status
	if s.Phase == phase && s.AccessModes == nil && s.Capacity == nil && s.CurrentVolumeAttributesClassName == nil {
		return claim, false
	}
	next = claim.DeepCopy()
	next.Status.Phase = phase
	next.Status.AccessModes, next.Status.Capacity, next.Status.CurrentVolumeAttributesClassName = nil, nil, nil
	return next, true
}
