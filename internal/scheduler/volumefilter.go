package scheduler

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/component-helpers/storage/ephemeral"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	v1helper "k8s.io/kubernetes/pkg/apis/core/v1/helper"
)

// Reasons, in kube-scheduler's words (pkg/scheduler/framework/plugins/volume...).
const (
	reasonVolumeAffinity   = "node(s) didn't match PersistentVolume's node affinity"
	reasonVolumeNoMatch    = "node(s) didn't find available persistent volumes to bind"
	reasonVolumeSpace      = "node(s) did not have enough free storage"
	reasonVolumeMissing    = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
	reasonVolumeImmediate  = "pod has unbound immediate PersistentVolumeClaims"
	reasonVolumeZone       = "node(s) had no available volume zone"
	reasonVolumeDisk       = "node(s) had no available disk"
	reasonVolumeOncePod    = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod"
	reasonVolumeLimit      = "node(s) exceed max volume count"
	reasonVolumeClaimEmpty = "PersistentVolumeClaim had no pv name and storageClass name"
)

// podClaims is a pod's claims, sorted by what is still to be done for them.
type podClaims struct {
	bound   []boundClaim
	missing bool                            // one is bound to a volume that does not exist
	match   []*corev1.PersistentVolumeClaim // for which a volume or a provisioner is to be found, the smallest first
	chosen  []*corev1.PersistentVolumeClaim // to be provisioned on the node that they name
	free    map[string][]*corev1.PersistentVolume
}

type boundClaim struct {
	pv       *corev1.PersistentVolume
	affinity *nodeaffinity.NodeSelector // nil for every node
}

// prepare implements outsideFilter.
func (v *volumes) prepare(pod *corev1.Pod) ([]outsideCheck, *rejection) {
	names := claimNames(pod)
	disks := slices.ContainsFunc(pod.Spec.Volumes, func(vol corev1.Volume) bool { return isDisk(&vol) })
	if len(names) == 0 && !disks {
		return nil, nil
	}
	off := v.state.profileOf(pod).Off
	var checks []outsideCheck
	if !off.Has(VolumeRestrictions) {
		check, refused := v.restrictions(pod, disks)
		if refused != nil {
			return nil, refused
		}
		if check != nil {
			checks = append(checks, *check)
		}
	}
	if len(names) == 0 {
		return checks, nil
	}
	if check := v.limits(pod); check != nil && !off.Has(NodeVolumeLimits) {
		checks = append(checks, *check)
	}
	if !off.Has(VolumeBinding) {
		claims, err := v.podClaims(pod)
		if err != nil {
			return nil, &rejection{VolumeBinding, []string{err.Error()}, false}
		}
		checks = append(checks, outsideCheck{plugin: VolumeBinding, check: func(node *corev1.Node, _ int32) *rejection {
			if found := v.find(claims, node); len(found.reasons) > 0 {
				return &rejection{VolumeBinding, found.reasons, false}
			}
			return nil
		}})
	}
	if !off.Has(VolumeZone) {
		check, refused := v.zones(pod)
		if refused != nil {
			return nil, refused
		}
		if check != nil {
			checks = append(checks, *check)
		}
	}
	return checks, nil
}

// podClaims looks at a pod's claims; an error says why no node will do.
func (v *volumes) podClaims(pod *corev1.Pod) (*podClaims, error) {
	var list []*corev1.PersistentVolumeClaim
	for i := range pod.Spec.Volumes {
		claim, err := v.claimOf(pod, &pod.Spec.Volumes[i])
		if err != nil {
			return nil, err
		}
		if claim != nil {
			list = append(list, claim)
		}
	}
	all := &podClaims{}
	for _, claim := range list {
		if err := v.sort(all, claim); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(all.match, func(a, b *corev1.PersistentVolumeClaim) int {
		return a.Spec.Resources.Requests.Storage().Cmp(*b.Spec.Resources.Requests.Storage())
	})
	return all, nil
}

// claimOf is the claim of one of a pod's volumes, nil if it has none.
func (v *volumes) claimOf(pod *corev1.Pod, vol *corev1.Volume) (*corev1.PersistentVolumeClaim, error) {
	name := ""
	switch {
	case vol.PersistentVolumeClaim != nil:
		name = vol.PersistentVolumeClaim.ClaimName
	case vol.Ephemeral != nil:
		name = ephemeral.VolumeClaimName(pod, vol)
	default:
		return nil, nil //nolint:nilnil // no claim is no error
	}
	claim := v.claim(types.NamespacedName{Namespace: pod.Namespace, Name: name})
	switch {
	case claim == nil && vol.Ephemeral != nil:
		return nil, fmt.Errorf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name)
	case claim == nil:
		return nil, fmt.Errorf("persistentvolumeclaim %q not found", name)
	case claim.Status.Phase == corev1.ClaimLost:
		return nil, fmt.Errorf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, claim.Spec.VolumeName)
	case claim.DeletionTimestamp != nil:
		return nil, fmt.Errorf("persistentvolumeclaim %q is being deleted", name)
	case vol.Ephemeral != nil:
		return claim, ephemeral.VolumeIsForPod(pod, claim)
	}
	return claim, nil
}

func fullyBound(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName != "" && metav1.HasAnnotation(claim.ObjectMeta, storagehelpers.AnnBindCompleted)
}

// sort puts a claim where it belongs.
func (v *volumes) sort(all *podClaims, claim *corev1.PersistentVolumeClaim) error {
	if fullyBound(claim) {
		pv := v.volume(claim.Spec.VolumeName)
		if pv == nil {
			all.missing = true
			return nil
		}
		b := boundClaim{pv: pv}
		if pv.Spec.NodeAffinity != nil && pv.Spec.NodeAffinity.Required != nil {
			selector, err := nodeaffinity.NewNodeSelector(pv.Spec.NodeAffinity.Required)
			if err != nil {
				return fmt.Errorf("reading the node affinity of volume %q: %w", pv.Name, err)
			}
			b.affinity = selector
		}
		all.bound = append(all.bound, b)
		return nil
	}
	name := storagehelpers.GetPersistentVolumeClaimClass(claim)
	class := v.classes[name]
	if class != nil && class.VolumeBindingMode == nil {
		return fmt.Errorf("VolumeBindingMode not set for StorageClass %q", name)
	}
	switch {
	case class == nil || *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer || claim.Spec.VolumeName != "":
		return errors.New(reasonVolumeImmediate)
	case metav1.HasAnnotation(claim.ObjectMeta, storagehelpers.AnnSelectedNode):
		all.chosen = append(all.chosen, claim)
	default:
		if all.free == nil {
			all.free = map[string][]*corev1.PersistentVolume{}
		}
		if _, known := all.free[name]; !known {
			all.free[name] = v.freeOf(name)
		}
		all.match = append(all.match, claim)
	}
	return nil
}

// found is what a node has for a pod's claims, or the reasons why it is not for the pod.
type found struct {
	static    []staticBinding
	provision []*corev1.PersistentVolumeClaim
	reasons   []string
}

type staticBinding struct {
	pv    *corev1.PersistentVolume
	claim *corev1.PersistentVolumeClaim
}

// find looks for volumes on one node.
func (v *volumes) find(claims *podClaims, node *corev1.Node) found {
	var f found
	for _, b := range claims.bound {
		if b.affinity != nil && !b.affinity.Match(node) {
			f.reasons = append(f.reasons, reasonVolumeAffinity)
			break
		}
	}
	matched, space := v.findUnbound(claims, node, &f)
	if !matched {
		f.reasons = append(f.reasons, reasonVolumeNoMatch)
	}
	if !space {
		f.reasons = append(f.reasons, reasonVolumeSpace)
	}
	if claims.missing {
		f.reasons = append(f.reasons, reasonVolumeMissing)
	}
	return f
}

func (v *volumes) findUnbound(claims *podClaims, node *corev1.Node, f *found) (matched, space bool) {
	for _, claim := range claims.chosen {
		if claim.Annotations[storagehelpers.AnnSelectedNode] != node.Name {
			return false, true
		}
	}
	f.provision = slices.Clone(claims.chosen)
	taken := map[string]*corev1.PersistentVolume{}
	for _, claim := range claims.match {
		pv, err := storagehelpers.FindMatchingVolume(claim, claims.free[storagehelpers.GetPersistentVolumeClaimClass(claim)], node, taken, true, true)
		switch {
		case err != nil:
			return false, true
		case pv == nil:
			f.provision = append(f.provision, claim)
		default:
			taken[pv.Name] = pv
			f.static = append(f.static, staticBinding{pv, claim})
		}
	}
	for _, claim := range f.provision {
		class := v.classes[storagehelpers.GetPersistentVolumeClaimClass(claim)]
		if class == nil || class.Provisioner == "" || class.Provisioner == storagehelpers.NotSupportedProvisioner ||
			!v1helper.MatchTopologySelectorTerms(class.AllowedTopologies, labels.Set(node.Labels)) {
			return false, true
		}
		if !v.hasSpace(claim, class, node) {
			return true, false
		}
	}
	return true, true
}

// hasSpace says whether a provisioner that tells its capacity has enough for a claim on a node.
func (v *volumes) hasSpace(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, node *corev1.Node) bool {
	driver := v.csiDrivers[class.Provisioner]
	want, asks := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if !asks || driver == nil || driver.Spec.StorageCapacity == nil || !*driver.Spec.StorageCapacity {
		return true
	}
	for _, c := range v.capacities {
		limit := cmp.Or(c.MaximumVolumeSize, c.Capacity)
		if c.StorageClassName != class.Name || limit == nil || limit.Cmp(want) < 0 || c.NodeTopology == nil {
			continue
		}
		if selector, err := metav1.LabelSelectorAsSelector(c.NodeTopology); err == nil && selector.Matches(labels.Set(node.Labels)) {
			return true
		}
	}
	return false
}

// zones is the plugin VolumeZone: a volume with a zone's label is for nodes of that zone.
func (v *volumes) zones(pod *corev1.Pod) (*outsideCheck, *rejection) {
	type topology struct {
		key    string
		values map[string]struct{}
	}
	var wanted []topology
	refuse := func(reason string) (*outsideCheck, *rejection) {
		return nil, &rejection{VolumeZone, []string{reason}, false}
	}
	for i := range pod.Spec.Volumes {
		source := pod.Spec.Volumes[i].PersistentVolumeClaim
		if source == nil {
			continue
		}
		claim := v.claim(types.NamespacedName{Namespace: pod.Namespace, Name: source.ClaimName})
		if claim == nil {
			return refuse(fmt.Sprintf("persistentvolumeclaim %q not found", source.ClaimName))
		}
		if claim.Spec.VolumeName == "" {
			if name := storagehelpers.GetPersistentVolumeClaimClass(claim); name == "" {
				return refuse(reasonVolumeClaimEmpty)
			} else if class := v.classes[name]; class == nil {
				return refuse(fmt.Sprintf("storageclass.storage.k8s.io %q not found", name))
			} else if class.VolumeBindingMode == nil || *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer {
				return refuse("PersistentVolume had no name")
			}
			continue
		}
		pv := v.volume(claim.Spec.VolumeName)
		if pv == nil {
			return refuse(fmt.Sprintf("persistentvolume %q not found", claim.Spec.VolumeName))
		}
		for _, key := range zoneLabels() {
			if value, ok := pv.Labels[key]; ok {
				if values, ok := zoneValues(value); ok {
					wanted = append(wanted, topology{key, values})
				}
			}
		}
	}
	if len(wanted) == 0 {
		return nil, nil
	}
	return &outsideCheck{plugin: VolumeZone, check: func(node *corev1.Node, _ int32) *rejection {
		if !slices.ContainsFunc(zoneLabels(), func(key string) bool { _, ok := node.Labels[key]; return ok }) {
			return nil // a cluster without zones
		}
		for _, w := range wanted {
			have, ok := node.Labels[w.key]
			if !ok {
				have = node.Labels[newZoneLabel(w.key)]
			}
			if _, ok := w.values[have]; !ok {
				return &rejection{VolumeZone, []string{reasonVolumeZone}, false}
			}
		}
		return nil
	}}, nil
}
