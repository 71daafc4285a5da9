package volume

import (
	"cmp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
)

// bestMatch returns the volume of candidates that suits a claim best, nil if none does: one
// that was made for the claim, else the smallest that is large enough, among those with the
// fewest access modes beyond what is asked. With delay only the former counts: which of the
// others is taken is for the scheduler to say.
func bestMatch(claim *corev1.PersistentVolumeClaim, candidates []*corev1.PersistentVolume, delay bool) (*corev1.PersistentVolume, error) {
	groups := map[string][]*corev1.PersistentVolume{}
	for _, pv := range candidates {
		if hasModes(pv.Spec.AccessModes, claim.Spec.AccessModes) {
			key := modesKey(pv.Spec.AccessModes)
			groups[key] = append(groups[key], pv)
		}
	}
	keys := make([]string, 0, len(groups))
	for key := range groups {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.Count(a, ","), strings.Count(b, ",")), cmp.Compare(a, b))
	})
	for _, key := range keys {
		pvs := groups[key]
		slices.SortFunc(pvs, func(a, b *corev1.PersistentVolume) int { return cmp.Compare(a.Name, b.Name) })
		found, err := storagehelpers.FindMatchingVolume(claim, pvs, nil, nil, delay, true)
		if found != nil || err != nil {
			return found, err
		}
	}
	return nil, nil
}

func modesKey(modes []corev1.PersistentVolumeAccessMode) string {
	names := make([]string, 0, len(modes))
	for _, mode := range modes {
		names = append(names, string(mode))
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ",")
}

func hasModes(have, want []corev1.PersistentVolumeAccessMode) bool {
	return !slices.ContainsFunc(want, func(mode corev1.PersistentVolumeAccessMode) bool { return !slices.Contains(have, mode) })
}

// mismatch says why a volume that a claim names cannot be its, or nothing.
func mismatch(pv *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) string {
	switch want, have := claim.Spec.Resources.Requests.Storage(), pv.Spec.Capacity.Storage(); {
	case pv.DeletionTimestamp != nil:
		return `the volume is marked for deletion "` + pv.Name + `"`
	case have.Value() < want.Value():
		return "requested PV is too small"
	case storagehelpers.GetPersistentVolumeClass(pv) != storagehelpers.GetPersistentVolumeClaimClass(claim):
		return "storageClassName does not match"
	case ptr.Deref(claim.Spec.VolumeAttributesClassName, "") != ptr.Deref(pv.Spec.VolumeAttributesClassName, ""):
		return "volumeAttributesClassName does not match"
	case storagehelpers.CheckVolumeModeMismatches(&claim.Spec, &pv.Spec):
		return "incompatible volumeMode"
	case !storagehelpers.CheckAccessModes(claim, pv):
		return "incompatible accessMode"
	}
	return ""
}

// waits says whether a class leaves the choice of a volume to the scheduler.
func waits(class *storagev1.StorageClass) bool {
	return class != nil && class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}

// defaultClass is the class of claims that name none: of several the newest, as admission has
// it, and of equally new ones the first by name. Nil if there is none.
func defaultClass(classes []storagev1.StorageClass) *storagev1.StorageClass {
	var best *storagev1.StorageClass
	for i := range classes {
		c := &classes[i]
		if c.Annotations["storageclass.kubernetes.io/is-default-class"] != "true" &&
			c.Annotations["storageclass.beta.kubernetes.io/is-default-class"] != "true" {
			continue
		}
		if best == nil || best.CreationTimestamp.Before(&c.CreationTimestamp) ||
			best.CreationTimestamp.Equal(&c.CreationTimestamp) && c.Name < best.Name {
			best = c
		}
	}
	return best
}
