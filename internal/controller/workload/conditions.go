package workload

import (
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reasons of a Deployment's conditions; kubectl rollout status and others read them.
const (
	reasonNewCreated     = "NewReplicaSetCreated"
	reasonNewFound       = "FoundNewReplicaSet"
	reasonNewAvailable   = "NewReplicaSetAvailable"
	reasonUpdated        = "ReplicaSetUpdated"
	reasonCreateError    = "ReplicaSetCreateError"
	reasonDeadline       = "ProgressDeadlineExceeded"
	reasonPaused         = "DeploymentPaused"
	reasonResumed        = "DeploymentResumed"
	reasonMinAvailable   = "MinimumReplicasAvailable"
	reasonMinUnavailable = "MinimumReplicasUnavailable"
)

func findCondition(status *appsv1.DeploymentStatus, kind appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range status.Conditions {
		if status.Conditions[i].Type == kind {
			return &status.Conditions[i]
		}
	}
	return nil
}

func removeCondition(status *appsv1.DeploymentStatus, kind appsv1.DeploymentConditionType) {
	status.Conditions = slices.DeleteFunc(status.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == kind })
}

// setCondition puts a condition into status unless it says the same already: equal
// status and reason. The transition time only moves when the status does.
func setCondition(status *appsv1.DeploymentStatus, condition appsv1.DeploymentCondition) {
	if current := findCondition(status, condition.Type); current != nil {
		if current.Status == condition.Status && current.Reason == condition.Reason {
			return
		}
		if current.Status == condition.Status {
			condition.LastTransitionTime = current.LastTransitionTime
		}
	}
	removeCondition(status, condition.Type)
	status.Conditions = append(status.Conditions, condition)
}

func condition(kind appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) appsv1.DeploymentCondition {
	at := metav1.NewTime(now)
	return appsv1.DeploymentCondition{
		Type: kind, Status: status, Reason: reason, Message: message, LastUpdateTime: at, LastTransitionTime: at,
	}
}

// countStatus is the status that the ReplicaSets show; conditions other than Available
// are taken over from d. newest may be nil.
func countStatus(d *appsv1.Deployment, all []*member, newest *member, now time.Time) appsv1.DeploymentStatus {
	status := appsv1.DeploymentStatus{
		ObservedGeneration: d.Generation,
		CollisionCount:     d.Status.CollisionCount,
		Conditions:         slices.Clone(d.Status.Conditions),
	}
	var total, leaving int32
	leavingKnown := true
	for _, m := range all {
		total += m.replicas
		status.Replicas += m.rs.Status.Replicas
		status.ReadyReplicas += m.rs.Status.ReadyReplicas
		status.AvailableReplicas += m.rs.Status.AvailableReplicas
		switch {
		case m.rs.Status.TerminatingReplicas != nil:
			leaving += *m.rs.Status.TerminatingReplicas
		case m.rs.Status.ObservedGeneration != 0:
			leavingKnown = false // its controller does not tell, so there is no sum
		}
	}
	if leavingKnown {
		status.TerminatingReplicas = &leaving
	}
	if newest != nil {
		status.UpdatedReplicas = newest.rs.Status.Replicas
	}
	status.UnavailableReplicas = max(0, total-status.AvailableReplicas)
	if status.AvailableReplicas >= desired(d)-maxUnavailable(d) {
		setCondition(&status, condition(appsv1.DeploymentAvailable, corev1.ConditionTrue, reasonMinAvailable, "Deployment has minimum availability.", now))
	} else {
		setCondition(&status, condition(appsv1.DeploymentAvailable, corev1.ConditionFalse, reasonMinUnavailable, "Deployment does not have minimum availability.", now))
	}
	return status
}

// complete says whether all replicas are updated and available and none is old.
func complete(d *appsv1.Deployment, status *appsv1.DeploymentStatus) bool {
	want := desired(d)
	return status.UpdatedReplicas == want && status.Replicas == want && status.AvailableReplicas == want &&
		status.ObservedGeneration >= d.Generation
}

// progressed says whether status is nearer to the goal than what d says.
func progressed(d *appsv1.Deployment, status *appsv1.DeploymentStatus) bool {
	was := &d.Status
	return status.UpdatedReplicas > was.UpdatedReplicas ||
		status.Replicas-status.UpdatedReplicas < was.Replicas-was.UpdatedReplicas ||
		status.ReadyReplicas > was.ReadyReplicas || status.AvailableReplicas > was.AvailableReplicas
}

// timedOut says whether the last sign of progress is older than the deadline.
func timedOut(d *appsv1.Deployment, status *appsv1.DeploymentStatus, now time.Time) bool {
	current := findCondition(status, appsv1.DeploymentProgressing)
	switch {
	case current == nil || current.Reason == reasonNewAvailable:
		return false // nothing to count from, or a rollout that ended well long ago
	case current.Reason == reasonDeadline:
		return true
	}
	return current.LastUpdateTime.Add(deadlineOf(d)).Before(now)
}

func deadlineOf(d *appsv1.Deployment) time.Duration {
	return time.Duration(*d.Spec.ProgressDeadlineSeconds) * time.Second
}

// rolloutStatus is countStatus with the Progressing and ReplicaFailure conditions of a
// rollout under way.
func rolloutStatus(d *appsv1.Deployment, all []*member, newest *member, now time.Time) appsv1.DeploymentStatus {
	status := countStatus(d, all, newest, now)
	current := findCondition(&d.Status, appsv1.DeploymentProgressing)
	// A rollout that ended is not judged again, unless the one that ended was another's.
	done := status.Replicas == status.UpdatedReplicas && current != nil && current.Reason == reasonNewAvailable &&
		strings.HasPrefix(current.Message, subject(d, newest))
	switch {
	case !hasDeadline(d):
		removeCondition(&status, appsv1.DeploymentProgressing)
	case !done:
		setProgress(&status, d, newest, current, now)
	}
	if failure, ok := replicaFailure(all, newest); ok {
		setCondition(&status, failure)
	} else {
		removeCondition(&status, appsv1.DeploymentReplicaFailure)
	}
	return status
}

// subject is what the Progressing condition speaks of.
func subject(d *appsv1.Deployment, newest *member) string {
	if newest != nil {
		return fmt.Sprintf("ReplicaSet %q", newest.rs.Name)
	}
	return fmt.Sprintf("Deployment %q", d.Name)
}

func setProgress(status *appsv1.DeploymentStatus, d *appsv1.Deployment, newest *member, current *appsv1.DeploymentCondition, now time.Time) {
	what := subject(d, newest)
	// These two renew message and update time also under the same reason.
	replace := func(next appsv1.DeploymentCondition) {
		if current != nil && current.Status == next.Status {
			next.LastTransitionTime = current.LastTransitionTime
		}
		removeCondition(status, appsv1.DeploymentProgressing)
		setCondition(status, next)
	}
	switch {
	case complete(d, status):
		replace(condition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonNewAvailable, what+" has successfully progressed.", now))
	case progressed(d, status):
		replace(condition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonUpdated, what+" is progressing.", now))
	case timedOut(d, status, now):
		setCondition(status, condition(appsv1.DeploymentProgressing, corev1.ConditionFalse, reasonDeadline, what+" has timed out progressing.", now))
	}
}

// replicaFailure is the first failure that a ReplicaSet reports, the newest one's first.
func replicaFailure(all []*member, newest *member) (appsv1.DeploymentCondition, bool) {
	sets := all
	if newest != nil {
		sets = append([]*member{newest}, all...)
	}
	for _, m := range sets {
		for _, c := range m.rs.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure {
				return appsv1.DeploymentCondition{
					Type: appsv1.DeploymentReplicaFailure, Status: c.Status, Reason: c.Reason, Message: c.Message,
					LastUpdateTime: c.LastTransitionTime, LastTransitionTime: c.LastTransitionTime,
				}, true
			}
		}
	}
	return appsv1.DeploymentCondition{}, false
}

// progressCheck is when a rollout without a sign of progress has to be looked at again,
// 0 if it need not.
func progressCheck(d *appsv1.Deployment, status *appsv1.DeploymentStatus, now time.Time) time.Duration {
	current := findCondition(status, appsv1.DeploymentProgressing)
	if !hasDeadline(d) || current == nil || complete(d, status) || current.Reason == reasonDeadline {
		return 0
	}
	// One second more, because the times in conditions are whole seconds.
	return max(0, current.LastUpdateTime.Add(deadlineOf(d)).Sub(now)) + time.Second
}
