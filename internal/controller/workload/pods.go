package workload

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// newPod is the pod that owner, of a kind, wants from a template.
func newPod(owner client.Object, kind schema.GroupVersionKind, from *corev1.PodTemplateSpec) *corev1.Pod {
	template := from.DeepCopy()
	prefix := owner.GetName() + "-"
	// With a dash the name is easier to read; without it a longer owner name still fits.
	if len(validation.IsDNS1123Subdomain(strings.TrimSuffix(prefix, "-")+"a")) != 0 {
		prefix = owner.GetName()
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       owner.GetNamespace(),
			GenerateName:    prefix,
			Labels:          template.Labels,
			Annotations:     template.Annotations,
			Finalizers:      template.Finalizers,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner, kind)},
		},
		Spec: template.Spec,
	}
}

// active says whether a pod counts as one of its owner's replicas.
func active(pod *corev1.Pod) bool { return !finished(pod) && pod.DeletionTimestamp == nil }

// terminating says whether a pod is on its way out but may still run.
func terminating(pod *corev1.Pod) bool { return !finished(pod) && pod.DeletionTimestamp != nil }

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// readySince returns since when a pod is ready, and whether it is.
func readySince(pod *corev1.Pod) (time.Time, bool) {
	if c := controller.PodCondition(pod, corev1.PodReady); c != nil {
		return c.LastTransitionTime.Time, c.Status == corev1.ConditionTrue
	}
	return time.Time{}, false
}

// available says whether a pod has been ready for minReady; if it has not but is ready,
// wait is what is missing.
func available(pod *corev1.Pod, minReady time.Duration, now time.Time) (ok bool, wait time.Duration) {
	since, ready := readySince(pod)
	switch {
	case !ready:
		return false, 0
	case minReady == 0:
		return true, 0
	case since.IsZero():
		return false, minReady
	case !since.Add(minReady).After(now):
		return true, 0
	}
	return false, since.Add(minReady).Sub(now)
}

// podsToDelete picks count pods whose loss hurts least. related are the pods of all
// ReplicaSets of the same Deployment: where many of them share a node, one goes first.
func podsToDelete(pods, related []*corev1.Pod, count int, now time.Time) []*corev1.Pod {
	if count >= len(pods) {
		return pods
	}
	onNode := map[string]int{}
	for _, pod := range related {
		if active(pod) {
			onNode[pod.Spec.NodeName]++
		}
	}
	sorted := slices.Clone(pods)
	slices.SortStableFunc(sorted, func(a, b *corev1.Pod) int {
		return compareForDeletion(a, b, onNode, now)
	})
	return sorted[:count]
}

// compareForDeletion is negative if a should go before b. The order of the rules is
// documented at https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#scaling-a-replicaset
func compareForDeletion(a, b *corev1.Pod, onNode map[string]int, now time.Time) int {
	aReadySince, aReady := readySince(a)
	bReadySince, bReady := readySince(b)
	if diff := order(a.Spec.NodeName != "", b.Spec.NodeName != ""); diff != 0 {
		return diff
	}
	if diff := phaseRank(a) - phaseRank(b); diff != 0 {
		return diff
	}
	if diff := order(aReady, bReady); diff != 0 {
		return diff
	}
	if diff := deletionCost(a) - deletionCost(b); diff != 0 {
		return int(diff)
	}
	if diff := onNode[b.Spec.NodeName] - onNode[a.Spec.NodeName]; diff != 0 {
		return diff
	}
	if aReady && bReady && !aReadySince.Equal(bReadySince) {
		return compareAges(a, b, aReadySince, bReadySince, now)
	}
	if diff := compareRestarts(a, b); diff != 0 {
		return diff
	}
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return compareAges(a, b, a.CreationTimestamp.Time, b.CreationTimestamp.Time, now)
	}
	return 0
}

// order puts false before true.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func phaseRank(pod *corev1.Pod) int {
	switch pod.Status.Phase {
	case corev1.PodUnknown:
		return 1
	case corev1.PodRunning:
		return 2
	}
	return 0
}

// deletionCost is what the owner of a pod says its loss costs; 0 if it says nothing valid.
func deletionCost(pod *corev1.Pod) int64 {
	text, ok := pod.Annotations[corev1.PodDeletionCost]
	if !ok || strings.HasPrefix(text, "+") || (strings.HasPrefix(text, "0") && text != "0") {
		return 0
	}
	cost, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return 0
	}
	return cost
}

// compareAges puts the younger first. Ages are compared by their logarithm and equal
// ones by UID, so that scaling down does not always take all pods of the last rollout.
func compareAges(a, b *corev1.Pod, aTime, bTime, now time.Time) int {
	if aTime.IsZero() || bTime.IsZero() {
		return order(!aTime.IsZero(), !bTime.IsZero())
	}
	if diff := logarithm(now.Sub(aTime)) - logarithm(now.Sub(bTime)); diff != 0 {
		return diff
	}
	return strings.Compare(string(a.UID), string(b.UID))
}

func logarithm(age time.Duration) int {
	if age <= 0 {
		return -1
	}
	return int(math.Log2(float64(age)))
}

// compareRestarts puts the pod with the most restarted container first; regular
// containers decide before restartable init containers do.
func compareRestarts(a, b *corev1.Pod) int {
	aRegular, aSidecar := maxRestarts(a)
	bRegular, bSidecar := maxRestarts(b)
	if aRegular != bRegular {
		return bRegular - aRegular
	}
	return bSidecar - aSidecar
}

func maxRestarts(pod *corev1.Pod) (regular, sidecar int) {
	for i := range pod.Status.ContainerStatuses {
		regular = max(regular, int(pod.Status.ContainerStatuses[i].RestartCount))
	}
	always := map[string]bool{}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		always[c.Name] = c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	}
	for i := range pod.Status.InitContainerStatuses {
		if status := &pod.Status.InitContainerStatuses[i]; always[status.Name] {
			sidecar = max(sidecar, int(status.RestartCount))
		}
	}
	return regular, sidecar
}
