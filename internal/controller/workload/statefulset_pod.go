package workload

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// statefulSetKind is what owner references to a StatefulSet say.
func statefulSetKind() schema.GroupVersionKind {
	return appsv1.SchemeGroupVersion.WithKind("StatefulSet")
}

func podKind() schema.GroupVersionKind { return corev1.SchemeGroupVersion.WithKind("Pod") }

// identity splits the name of a StatefulSet's pod; the ordinal of another name is -1.
func identity(podName string) (parent string, ordinal int) {
	at := strings.LastIndexByte(podName, '-')
	if at < 0 || at == len(podName)-1 || strings.Trim(podName[at+1:], "0123456789") != "" {
		return "", -1
	}
	number, err := strconv.ParseInt(podName[at+1:], 10, 32)
	if err != nil {
		return podName[:at], -1
	}
	return podName[:at], int(number)
}

func ordinalOf(pod *corev1.Pod) int {
	_, ordinal := identity(pod.Name)
	return ordinal
}

func setPodName(set *appsv1.StatefulSet, ordinal int) string {
	return set.Name + "-" + strconv.Itoa(ordinal)
}

func setReplicas(set *appsv1.StatefulSet) int {
	if set.Spec.Replicas == nil {
		return 1 // the API's default
	}
	return int(*set.Spec.Replicas)
}

func firstOrdinal(set *appsv1.StatefulSet) int {
	if set.Spec.Ordinals == nil {
		return 0
	}
	return int(set.Spec.Ordinals.Start)
}

// inRange says whether a set wants a pod of this ordinal.
func inRange(set *appsv1.StatefulSet, ordinal int) bool {
	first := firstOrdinal(set)
	return ordinal >= first && ordinal < first+setReplicas(set)
}

func claimName(set *appsv1.StatefulSet, template *corev1.PersistentVolumeClaim, ordinal int) string {
	return template.Name + "-" + set.Name + "-" + strconv.Itoa(ordinal)
}

// claimsOf are the claims that a pod of an ordinal needs, in the order of their templates.
func claimsOf(set *appsv1.StatefulSet, ordinal int) []*corev1.PersistentVolumeClaim {
	claims := make([]*corev1.PersistentVolumeClaim, 0, len(set.Spec.VolumeClaimTemplates))
	for i := range set.Spec.VolumeClaimTemplates {
		claim := set.Spec.VolumeClaimTemplates[i].DeepCopy()
		claim.Name = claimName(set, claim, ordinal)
		claim.Namespace = set.Namespace
		if claim.Labels == nil {
			claim.Labels = map[string]string{}
		}
		maps.Copy(claim.Labels, set.Spec.Selector.MatchLabels)
		claims = append(claims, claim)
	}
	return claims
}

// newSetPod is the pod of an ordinal made from a template that a revision holds.
func newSetPod(set *appsv1.StatefulSet, template *corev1.PodTemplateSpec, revision string, ordinal int) *corev1.Pod {
	pod := newPod(set, statefulSetKind(), template)
	pod.Name = setPodName(set, ordinal)
	setIdentity(set, pod)
	pod.Spec.Hostname = pod.Name
	pod.Spec.Subdomain = set.Spec.ServiceName
	setStorage(set, pod)
	pod.Labels[appsv1.StatefulSetRevisionLabel] = revision
	return pod
}

// setIdentity gives a pod the name and labels of its ordinal.
func setIdentity(set *appsv1.StatefulSet, pod *corev1.Pod) {
	ordinal := ordinalOf(pod)
	pod.Name, pod.Namespace = setPodName(set, ordinal), set.Namespace
	pod.Labels = maps.Clone(pod.Labels)
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[appsv1.StatefulSetPodNameLabel] = pod.Name
	pod.Labels[appsv1.PodIndexLabel] = strconv.Itoa(ordinal)
}

func identityMatches(set *appsv1.StatefulSet, pod *corev1.Pod) bool {
	parent, ordinal := identity(pod.Name)
	return ordinal >= 0 && parent == set.Name && pod.Name == setPodName(set, ordinal) &&
		pod.Namespace == set.Namespace && pod.Labels[appsv1.StatefulSetPodNameLabel] == pod.Name
}

// setStorage puts volumes of the set's claims in place of the pod's own of the same names.
func setStorage(set *appsv1.StatefulSet, pod *corev1.Pod) {
	ordinal := ordinalOf(pod)
	var volumes []corev1.Volume
	claimed := map[string]bool{}
	for i := range set.Spec.VolumeClaimTemplates {
		template := &set.Spec.VolumeClaimTemplates[i]
		claimed[template.Name] = true
		volumes = append(volumes, corev1.Volume{Name: template.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName(set, template, ordinal)},
		}})
	}
	for i := range pod.Spec.Volumes {
		if !claimed[pod.Spec.Volumes[i].Name] {
			volumes = append(volumes, pod.Spec.Volumes[i])
		}
	}
	pod.Spec.Volumes = volumes
}

func storageMatches(set *appsv1.StatefulSet, pod *corev1.Pod) bool {
	ordinal := ordinalOf(pod)
	if ordinal < 0 {
		return false
	}
	for i := range set.Spec.VolumeClaimTemplates {
		template := &set.Spec.VolumeClaimTemplates[i]
		at := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == template.Name })
		if at < 0 {
			return false
		}
		claim := pod.Spec.Volumes[at].PersistentVolumeClaim
		if claim == nil || claim.ClaimName != claimName(set, template, ordinal) {
			return false
		}
	}
	return true
}

func revisionOfPod(pod *corev1.Pod) string { return pod.Labels[appsv1.StatefulSetRevisionLabel] }

// created says whether the API has the pod, and not only a plan.
func created(pod *corev1.Pod) bool { return pod.UID != "" }

// runningReady says whether a pod runs and is ready.
func runningReady(pod *corev1.Pod) bool {
	_, ready := readySince(pod)
	return ready && pod.Status.Phase == corev1.PodRunning
}

// unavailable says whether nobody can count on a pod: it is not available, or about to go.
func unavailable(pod *corev1.Pod, minReady time.Duration, now time.Time) bool {
	ok, _ := available(pod, minReady, now)
	return !ok || pod.DeletionTimestamp != nil
}

// wantedOwners says who should own a pod's claims, by the set's retention policy: the set,
// so that they go with it, or the pod, once it is no longer wanted.
func wantedOwners(set *appsv1.StatefulSet, pod *corev1.Pod) (bySet, byPod bool) {
	policy := set.Spec.PersistentVolumeClaimRetentionPolicy
	if policy == nil {
		return false, false
	}
	whenDeleted := policy.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	whenScaled := policy.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	leaving := whenScaled && !inRange(set, ordinalOf(pod))
	return whenDeleted && !leaving, leaving
}

// names says whether a reference means an object by kind and name, whatever its UID.
func names(ref *metav1.OwnerReference, obj client.Object, kind schema.GroupVersionKind) bool {
	return ref.Name == obj.GetName() && ref.Kind == kind.Kind && ref.APIVersion == kind.GroupVersion().String()
}

func ownedBy(claim *corev1.PersistentVolumeClaim, owner client.Object) bool {
	return slices.ContainsFunc(claim.OwnerReferences, func(ref metav1.OwnerReference) bool { return ref.UID == owner.GetUID() })
}

// staleOwner says whether a claim is owned by an earlier object of the name of owner.
func staleOwner(claim *corev1.PersistentVolumeClaim, owner client.Object, kind schema.GroupVersionKind) bool {
	at := slices.IndexFunc(claim.OwnerReferences, func(ref metav1.OwnerReference) bool { return names(&ref, owner, kind) })
	return at >= 0 && claim.OwnerReferences[at].UID != owner.GetUID()
}

// foreignController says whether somebody else controls a claim that the set's policy
// would have it control.
func foreignController(claim *corev1.PersistentVolumeClaim, set *appsv1.StatefulSet, pod *corev1.Pod) bool {
	policy := set.Spec.PersistentVolumeClaimRetentionPolicy
	if policy == nil || (policy.WhenDeleted == appsv1.RetainPersistentVolumeClaimRetentionPolicyType &&
		policy.WhenScaled == appsv1.RetainPersistentVolumeClaimRetentionPolicyType) {
		return false
	}
	for i := range claim.OwnerReferences {
		ref := &claim.OwnerReferences[i]
		switch {
		case names(ref, set, statefulSetKind()):
			if ref.UID != set.UID {
				return true
			}
		case names(ref, pod, podKind()):
			if ref.UID != pod.UID {
				return true
			}
		case ref.Controller != nil && *ref.Controller:
			return true
		}
	}
	return false
}

// ownersMatch says whether a claim's owners are those that the set's policy wants. What
// earlier sets or pods of the names own is not touched.
func ownersMatch(claim *corev1.PersistentVolumeClaim, set *appsv1.StatefulSet, pod *corev1.Pod) bool {
	if staleOwner(claim, set, statefulSetKind()) || staleOwner(claim, pod, podKind()) {
		return true
	}
	hasSet, hasPod := ownedBy(claim, set), ownedBy(claim, pod)
	if foreignController(claim, set, pod) {
		return !hasSet && !hasPod
	}
	for i := range claim.OwnerReferences {
		ref := &claim.OwnerReferences[i]
		if (ref.UID == set.UID || ref.UID == pod.UID) && (ref.Controller == nil || !*ref.Controller) {
			return false
		}
	}
	bySet, byPod := wantedOwners(set, pod)
	return hasSet == bySet && hasPod == byPod
}

// ownersOf are the owners that a claim should have.
func ownersOf(claim *corev1.PersistentVolumeClaim, set *appsv1.StatefulSet, pod *corev1.Pod) []metav1.OwnerReference {
	foreign := foreignController(claim, set, pod)
	refs := slices.DeleteFunc(slices.Clone(claim.OwnerReferences), func(ref metav1.OwnerReference) bool {
		return names(&ref, set, statefulSetKind()) || names(&ref, pod, podKind())
	})
	if foreign {
		return refs
	}
	bySet, byPod := wantedOwners(set, pod)
	if byPod {
		refs = append(refs, *metav1.NewControllerRef(pod, podKind()))
	}
	if bySet {
		refs = append(refs, *metav1.NewControllerRef(set, statefulSetKind()))
	}
	return refs
}
