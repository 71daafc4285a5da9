package disruption

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/component-helpers/apps/poddisruptionbudget"

	"gantry.dev/gantry/internal/controller"
)

// Upstream's limits (kubernetes, pkg/controller/disruption).
const (
	deletionTimeout = 2 * time.Minute // an eviction that was allowed leads to a deletion within it
	staleTimeout    = 2 * time.Minute // a pod that is to be disrupted is deleted within it
)

// scaled reports whether a budget speaks of a share of its pods' owners, and not of a number of pods.
func scaled(pdb *policyv1.PodDisruptionBudget) bool {
	return pdb.Spec.MaxUnavailable != nil || (pdb.Spec.MinAvailable != nil && pdb.Spec.MinAvailable.Type == intstr.String)
}

// planDesired is how many pods a budget wants to be healthy, given how many there should be.
func planDesired(pdb *policyv1.PodDisruptionBudget, expected int32) (int32, error) {
	switch {
	case pdb.Spec.MaxUnavailable != nil:
		most, err := intstr.GetScaledValueFromIntOrPercent(pdb.Spec.MaxUnavailable, int(expected), true)
		if err != nil {
			return 0, fmt.Errorf("reading maxUnavailable: %w", err)
		}
		return max(0, expected-int32(most)), nil
	case pdb.Spec.MinAvailable != nil:
		least, err := intstr.GetScaledValueFromIntOrPercent(pdb.Spec.MinAvailable, int(expected), true)
		if err != nil {
			return 0, fmt.Errorf("reading minAvailable: %w", err)
		}
		return int32(least), nil
	}
	return 0, nil
}

// plan is what a budget should say, and what else follows.
type plan struct {
	status  policyv1.PodDisruptionBudgetStatus
	changed bool
	overdue []*corev1.Pod // that were to be deleted and are still there
	recheck time.Duration // until an eviction that was allowed counts as not done; 0 for none
}

// planStatus is the status of a budget that covers pods.
func planStatus(pdb *policyv1.PodDisruptionBudget, pods []*corev1.Pod, expected, desired int32, now time.Time) plan {
	var p plan
	disrupted := map[string]metav1.Time{}
	for _, pod := range pods {
		since, ok := pdb.Status.DisruptedPods[pod.Name]
		if !ok || pod.DeletionTimestamp != nil {
			continue
		}
		left := since.Add(deletionTimeout).Sub(now)
		if left < 0 {
			p.overdue = append(p.overdue, pod)
			continue
		}
		disrupted[pod.Name] = since
		if p.recheck == 0 || left < p.recheck {
			p.recheck = max(left, time.Nanosecond)
		}
	}
	healthy := countHealthy(pods, disrupted, now)
	allowed := max(0, healthy-desired)
	if expected <= 0 {
		allowed = 0 // pods that appear are safe until they have been counted
	}
	next := pdb.DeepCopy()
	next.Status = policyv1.PodDisruptionBudgetStatus{
		CurrentHealthy: healthy, DesiredHealthy: desired, ExpectedPods: expected, DisruptionsAllowed: allowed,
		DisruptedPods: disrupted, ObservedGeneration: pdb.Generation, Conditions: next.Status.Conditions,
	}
	same := pdb.Status.CurrentHealthy == healthy && pdb.Status.DesiredHealthy == desired && pdb.Status.ExpectedPods == expected &&
		pdb.Status.DisruptionsAllowed == allowed && pdb.Status.ObservedGeneration == pdb.Generation &&
		apiequality.Semantic.DeepEqual(pdb.Status.DisruptedPods, disrupted) && poddisruptionbudget.ConditionsAreUpToDate(pdb)
	if !same {
		poddisruptionbudget.UpdateDisruptionAllowedCondition(next)
		inSeconds(next.Status.Conditions)
		p.changed = true
	}
	p.status = next.Status
	return p
}

// planFailure is the status of a budget that could not be counted: it allows nothing.
func planFailure(pdb *policyv1.PodDisruptionBudget, cause error) policyv1.PodDisruptionBudgetStatus {
	status := *pdb.Status.DeepCopy()
	status.DisruptionsAllowed = 0
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{
		Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse, Reason: policyv1.SyncFailedReason,
		Message: cause.Error(), ObservedGeneration: status.ObservedGeneration,
	})
	inSeconds(status.Conditions)
	return status
}

// inSeconds cuts times to what the API writes, so that the store holds what clients read.
func inSeconds(conditions []metav1.Condition) {
	for i := range conditions {
		conditions[i].LastTransitionTime = metav1.NewTime(conditions[i].LastTransitionTime.Truncate(time.Second))
	}
}

// countHealthy counts the pods that are ready and will not be deleted soon.
func countHealthy(pods []*corev1.Pod, disrupted map[string]metav1.Time, now time.Time) int32 {
	var healthy int32
	for _, pod := range pods {
		since, leaving := disrupted[pod.Name]
		if pod.DeletionTimestamp != nil || (leaving && since.Add(deletionTimeout).After(now)) {
			continue
		}
		if controller.PodReady(pod) {
			healthy++
		}
	}
	return healthy
}

// staleIn says when a pod's DisruptionTarget condition is stale, 0 for now, and whether it can
// become so at all. A condition that the node's agent set is never stale: a pod may take long to end.
func staleIn(pod *corev1.Pod, now time.Time) (time.Duration, bool) {
	c := controller.PodCondition(pod, corev1.DisruptionTarget)
	switch {
	case c == nil, c.Status != corev1.ConditionTrue, c.Reason == corev1.PodReasonTerminationByKubelet,
		pod.DeletionTimestamp != nil, pod.Status.Phase == corev1.PodFailed, pod.Status.Phase == corev1.PodSucceeded:
		return 0, false
	}
	return max(0, c.LastTransitionTime.Add(staleTimeout).Sub(now)), true
}

// withoutTarget is a copy of pod that says that no disruption is due.
func withoutTarget(pod *corev1.Pod, now time.Time) *corev1.Pod {
	next := pod.DeepCopy()
	*controller.PodCondition(next, corev1.DisruptionTarget) = corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionFalse, ObservedGeneration: pod.Generation, LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)),
	}
	return next
}
