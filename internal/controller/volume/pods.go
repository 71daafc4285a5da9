package volume

import (
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/storage/ephemeral"
)

// uses says whether a pod has a volume from a claim.
func uses(pod *corev1.Pod, claim string) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim ||
			v.Ephemeral != nil && ephemeral.VolumeClaimName(pod, &v) == claim
	})
}

// annotationPatch is a merge patch that sets one annotation, or takes it away if value is empty.
func annotationPatch(name, value string) ([]byte, error) {
	var to any
	if value != "" {
		to = value
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{name: to}}})
	if err != nil {
		return nil, fmt.Errorf("encoding an annotation: %w", err)
	}
	return patch, nil
}
