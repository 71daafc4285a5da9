package quota

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// planStatus is what the status of q should be when its objects use counted. What could not be
// counted keeps its last figure. changed is false if q says so already.
func planStatus(q *corev1.ResourceQuota, counted corev1.ResourceList) (status corev1.ResourceQuotaStatus, changed bool) {
	status = corev1.ResourceQuotaStatus{Hard: q.Spec.Hard.DeepCopy(), Used: corev1.ResourceList{}}
	for name := range q.Spec.Hard {
		if used, ok := counted[name]; ok {
			status.Used[name] = used
		} else if used, ok := q.Status.Used[name]; ok {
			status.Used[name] = used
		}
	}
	same := q.Status.Hard != nil && q.Status.Used != nil && sameAmounts(q.Status.Hard, status.Hard) && sameAmounts(q.Status.Used, status.Used)
	return status, !same
}

func sameAmounts(a, b corev1.ResourceList) bool {
	if len(a) != len(b) {
		return false
	}
	for name, x := range a {
		y, ok := b[name]
		if !ok || x.Cmp(y) != 0 {
			return false
		}
	}
	return true
}

// limitsChanged reports whether a quota must be counted anew. A change of its status alone is
// admission's: what it has let in may not be stored yet, and counting now would miss it.
func limitsChanged(old, current client.Object) bool {
	now, ok := current.(*corev1.ResourceQuota)
	if !ok {
		return false
	}
	was, ok := old.(*corev1.ResourceQuota)
	return !ok || !equality.Semantic.DeepEqual(was.Spec, now.Spec)
}

// limitsDiffer reports whether somebody else wrote other limits into the status than the quota has.
func limitsDiffer(current client.Object) bool {
	q, ok := current.(*corev1.ResourceQuota)
	return ok && !sameAmounts(q.Spec.Hard, q.Status.Hard)
}

// frees reports whether an event can change what its object uses without admission having
// accounted for it.
func frees(old, current client.Object) bool {
	switch {
	case old == nil:
		return false // admission has counted it
	case current == nil:
		return true
	}
	switch now := current.(type) {
	case *corev1.Pod:
		was, ok := old.(*corev1.Pod)
		return !ok || finished(was) != finished(now) || (was.DeletionTimestamp == nil) != (now.DeletionTimestamp == nil) || !sameRequests(was, now)
	case *corev1.Service:
		was, ok := old.(*corev1.Service)
		return !ok || !equality.Semantic.DeepEqual(was.Spec, now.Spec)
	case *corev1.PersistentVolumeClaim:
		was, ok := old.(*corev1.PersistentVolumeClaim)
		return !ok || !equality.Semantic.DeepEqual(was.Spec, now.Spec) || !equality.Semantic.DeepEqual(was.Status, now.Status)
	}
	return false
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
}

// sameRequests compares what a resize may change.
func sameRequests(a, b *corev1.Pod) bool {
	for i := range a.Spec.Containers {
		if i >= len(b.Spec.Containers) || !equality.Semantic.DeepEqual(a.Spec.Containers[i].Resources, b.Spec.Containers[i].Resources) {
			return false
		}
	}
	return equality.Semantic.DeepEqual(a.Status.Resize, b.Status.Resize) && sameAllocations(a, b)
}

func sameAllocations(a, b *corev1.Pod) bool {
	if len(a.Status.ContainerStatuses) != len(b.Status.ContainerStatuses) {
		return false
	}
	for i := range a.Status.ContainerStatuses {
		if !equality.Semantic.DeepEqual(a.Status.ContainerStatuses[i].AllocatedResources, b.Status.ContainerStatuses[i].AllocatedResources) {
			return false
		}
	}
	return true
}
