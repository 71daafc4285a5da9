package scheduler

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// zoneLabels are the labels of volumes that VolumeZone reads.
func zoneLabels() []string {
	return []string{corev1.LabelFailureDomainBetaZone, corev1.LabelFailureDomainBetaRegion, corev1.LabelTopologyZone, corev1.LabelTopologyRegion}
}

// newZoneLabel is the label that has taken the place of an old one.
func newZoneLabel(key string) string {
	switch key {
	case corev1.LabelFailureDomainBetaZone:
		return corev1.LabelTopologyZone
	case corev1.LabelFailureDomainBetaRegion:
		return corev1.LabelTopologyRegion
	}
	return key
}

// zoneValues reads a volume's zone label: one zone, or several with "__" between. Malformed ones
// are left out, as upstream does.
func zoneValues(label string) (map[string]struct{}, bool) {
	values := map[string]struct{}{}
	for part := range strings.SplitSeq(label, "__") {
		part = strings.TrimSpace(part)
		if part == "" {
			return nil, false
		}
		values[part] = struct{}{}
	}
	return values, true
}

// isDisk says whether a volume is of a kind that pods on one node cannot share.
func isDisk(v *corev1.Volume) bool {
	return v.GCEPersistentDisk != nil || v.AWSElasticBlockStore != nil || v.RBD != nil || v.ISCSI != nil
}

// sameDisk says whether two volumes keep each other off a node. Source: VolumeRestrictions.
func sameDisk(a, b *corev1.Volume) bool {
	switch {
	case a.GCEPersistentDisk != nil && b.GCEPersistentDisk != nil:
		x, y := a.GCEPersistentDisk, b.GCEPersistentDisk
		return x.PDName == y.PDName && (!x.ReadOnly || !y.ReadOnly)
	case a.AWSElasticBlockStore != nil && b.AWSElasticBlockStore != nil:
		return a.AWSElasticBlockStore.VolumeID == b.AWSElasticBlockStore.VolumeID
	case a.ISCSI != nil && b.ISCSI != nil:
		return a.ISCSI.IQN == b.ISCSI.IQN && (!a.ISCSI.ReadOnly || !b.ISCSI.ReadOnly)
	case a.RBD != nil && b.RBD != nil:
		x, y := a.RBD, b.RBD
		shared := slices.ContainsFunc(x.CephMonitors, func(m string) bool { return slices.Contains(y.CephMonitors, m) })
		return shared && x.RBDPool == y.RBDPool && x.RBDImage == y.RBDImage && (!x.ReadOnly || !y.ReadOnly)
	}
	return false
}

// restrictions is the plugin VolumeRestrictions: disks that cannot be shared, and claims that a
// single pod may use.
func (v *volumes) restrictions(pod *corev1.Pod, disks bool) (*outsideCheck, *rejection) {
	var once []string
	for i := range pod.Spec.Volumes {
		source := pod.Spec.Volumes[i].PersistentVolumeClaim
		if source == nil {
			continue
		}
		claim := v.claim(types.NamespacedName{Namespace: pod.Namespace, Name: source.ClaimName})
		if claim == nil {
			return nil, &rejection{VolumeRestrictions, []string{fmt.Sprintf("persistentvolumeclaim %q not found", source.ClaimName)}, false}
		}
		if slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteOncePod) {
			once = append(once, source.ClaimName)
		}
	}
	taken := len(once) > 0 && v.inUse(pod, once)
	if !taken && !disks {
		return nil, nil
	}
	return &outsideCheck{plugin: VolumeRestrictions, check: func(_ *corev1.Node, slot int32) *rejection {
		if disks && v.diskConflict(pod, slot) {
			return &rejection{VolumeRestrictions, []string{reasonVolumeDisk}, true}
		}
		if taken {
			return &rejection{VolumeRestrictions, []string{reasonVolumeOncePod}, true}
		}
		return nil
	}}, nil
}

// inUse says whether a pod on any node uses one of the claims. Few claims are of that kind, so
// there is no index.
func (v *volumes) inUse(pod *corev1.Pod, claims []string) bool {
	for uid, p := range v.state.pods {
		if uid == pod.UID || p.lifted || p.slot == none || p.pod.Namespace != pod.Namespace {
			continue
		}
		for i := range p.pod.Spec.Volumes {
			if source := p.pod.Spec.Volumes[i].PersistentVolumeClaim; source != nil && slices.Contains(claims, source.ClaimName) {
				return true
			}
		}
	}
	return false
}

func (v *volumes) diskConflict(pod *corev1.Pod, slot int32) bool {
	for _, p := range v.state.podsOn(slot) {
		if p.lifted || p.pod.UID == pod.UID {
			continue
		}
		for i := range pod.Spec.Volumes {
			for j := range p.pod.Spec.Volumes {
				if sameDisk(&pod.Spec.Volumes[i], &p.pod.Spec.Volumes[j]) {
					return true
				}
			}
		}
	}
	return false
}

// csiVolume is a volume of a CSI driver that counts against a node's limit.
type csiVolume struct{ driver, handle string }

// csiVolumes adds the CSI volumes of a pod to into.
func (v *volumes) csiVolumes(pod *corev1.Pod, into map[csiVolume]struct{}) {
	for _, name := range claimNames(pod) {
		key := types.NamespacedName{Namespace: pod.Namespace, Name: name}
		claim := v.claim(key)
		if claim == nil {
			continue
		}
		if pv := v.volume(claim.Spec.VolumeName); claim.Spec.VolumeName != "" && pv != nil {
			if pv.Spec.CSI != nil {
				into[csiVolume{pv.Spec.CSI.Driver, pv.Spec.CSI.VolumeHandle}] = struct{}{}
			}
			continue
		}
		// Not made yet: the class says whose it will be.
		if class := v.classes[storagehelpers.GetPersistentVolumeClaimClass(claim)]; class != nil {
			into[csiVolume{class.Provisioner, "claim " + key.String()}] = struct{}{}
		}
	}
}

// limits is the plugin NodeVolumeLimits: how many volumes of a driver a node can attach. It is
// nil where no node has told a limit.
func (v *volumes) limits(pod *corev1.Pod) *outsideCheck {
	if len(v.csiNodes) == 0 {
		return nil
	}
	wanted := map[csiVolume]struct{}{}
	v.csiVolumes(pod, wanted)
	if len(wanted) == 0 {
		return nil
	}
	return &outsideCheck{plugin: NodeVolumeLimits, check: func(node *corev1.Node, slot int32) *rejection {
		info := v.csiNodes[node.Name]
		if info == nil {
			return nil
		}
		limit := map[string]int32{}
		for _, driver := range info.Spec.Drivers {
			if driver.Allocatable != nil && driver.Allocatable.Count != nil {
				limit[driver.Name] = *driver.Allocatable.Count
			}
		}
		if len(limit) == 0 {
			return nil
		}
		all := map[csiVolume]struct{}{}
		for _, p := range v.state.podsOn(slot) {
			if !p.lifted && p.pod.UID != pod.UID {
				v.csiVolumes(p.pod, all)
			}
		}
		more := map[string]bool{}
		for volume := range wanted {
			if _, there := all[volume]; !there {
				more[volume.driver], all[volume] = true, struct{}{}
			}
		}
		count := map[string]int32{}
		for volume := range all {
			count[volume.driver]++
		}
		for driver := range more {
			if most, limited := limit[driver]; limited && count[driver] > most {
				return &rejection{NodeVolumeLimits, []string{reasonVolumeLimit}, true}
			}
		}
		return nil
	}}
}
