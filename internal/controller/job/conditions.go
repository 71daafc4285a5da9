package job

import (
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// inSeconds is a moment as the API writes it. What the store holds must be what clients read: a time
// that a client read and sent back would be a change else.
func inSeconds(t time.Time) metav1.Time { return metav1.NewTime(t.Truncate(time.Second)) }

func newCondition(kind batchv1.JobConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) batchv1.JobCondition {
	at := inSeconds(now)
	return batchv1.JobCondition{Type: kind, Status: status, Reason: reason, Message: message, LastProbeTime: at, LastTransitionTime: at}
}

func findCondition(list []batchv1.JobCondition, kind batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range list {
		if list[i].Type == kind {
			return &list[i]
		}
	}
	return nil
}

// isTrue reports whether a job says that kind holds.
func isTrue(job *batchv1.Job, kind batchv1.JobConditionType) bool {
	c := findCondition(job.Status.Conditions, kind)
	return c != nil && c.Status == corev1.ConditionTrue
}

// setCondition brings a condition to what is given and says whether that changed anything. What
// does not hold and was never said is not said now.
func setCondition(list *[]batchv1.JobCondition, kind batchv1.JobConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) bool {
	c := findCondition(*list, kind)
	switch {
	case c == nil && status == corev1.ConditionFalse:
		return false
	case c == nil:
		*list = append(*list, newCondition(kind, status, reason, message, now))
		return true
	case c.Status == status && c.Reason == reason && c.Message == message:
		return false
	}
	*c = newCondition(kind, status, reason, message, now)
	return true
}

// outcome is the condition by which a job is over, nil while it is not.
func outcome(job *batchv1.Job) *batchv1.JobCondition {
	for i := range job.Status.Conditions {
		c := &job.Status.Conditions[i]
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c
		}
	}
	return nil
}
