package workload

import (
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// burstReplicas is the most pods one pass creates or deletes (upstream's BurstReplicas).
const burstReplicas = 500

// planReplicas says how many pods a ReplicaSet should create or delete now.
func planReplicas(rs *appsv1.ReplicaSet, activePods int) (create, remove int) {
	if rs.DeletionTimestamp != nil {
		return 0, 0
	}
	diff := int(replicasOf(rs)) - activePods
	switch {
	case diff > 0:
		return min(diff, burstReplicas), 0
	case diff < 0:
		return 0, min(-diff, burstReplicas)
	}
	return 0, 0
}

func replicasOf(rs *appsv1.ReplicaSet) int32 {
	if rs.Spec.Replicas == nil {
		return 1 // the API's default
	}
	return *rs.Spec.Replicas
}

// planReplicaSetStatus is the status that pods (active and terminating ones of rs) show.
// manageErr is what creating or deleting pods just led to. wait is when a ready pod
// becomes available next, 0 if none will.
func planReplicaSetStatus(rs *appsv1.ReplicaSet, pods []*corev1.Pod, manageErr error, now time.Time) (status appsv1.ReplicaSetStatus, wait time.Duration) {
	status = *rs.Status.DeepCopy()
	status.ObservedGeneration = rs.Generation
	status.Replicas, status.FullyLabeledReplicas, status.ReadyReplicas, status.AvailableReplicas = 0, 0, 0, 0
	minReady := time.Duration(rs.Spec.MinReadySeconds) * time.Second
	template := labels.Set(rs.Spec.Template.Labels).AsSelectorPreValidated()
	var leaving int32
	for _, pod := range pods {
		if terminating(pod) {
			leaving++
		}
		if !active(pod) {
			continue
		}
		status.Replicas++
		if template.Matches(labels.Set(pod.Labels)) {
			status.FullyLabeledReplicas++
		}
		if _, ready := readySince(pod); !ready {
			continue
		}
		status.ReadyReplicas++
		ok, missing := available(pod, minReady, now)
		if ok {
			status.AvailableReplicas++
		} else if wait == 0 || missing < wait {
			wait = missing
		}
	}
	status.TerminatingReplicas = &leaving
	setReplicaFailure(&status, rs, manageErr, now)
	return status, wait
}

// setReplicaFailure reports that pods could not be created or deleted. The first failure
// stays until one pass works.
func setReplicaFailure(status *appsv1.ReplicaSetStatus, rs *appsv1.ReplicaSet, manageErr error, now time.Time) {
	at := slices.IndexFunc(status.Conditions, func(c appsv1.ReplicaSetCondition) bool {
		return c.Type == appsv1.ReplicaSetReplicaFailure
	})
	switch {
	case manageErr != nil && at < 0:
		reason := "FailedCreate"
		if status.Replicas > replicasOf(rs) {
			reason = "FailedDelete"
		}
		status.Conditions = append(status.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue,
			LastTransitionTime: metav1.NewTime(now), Reason: reason, Message: manageErr.Error(),
		})
	case manageErr == nil && at >= 0:
		status.Conditions = slices.Delete(status.Conditions, at, at+1)
		if len(status.Conditions) == 0 {
			status.Conditions = nil
		}
	}
}
