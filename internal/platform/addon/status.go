package addon

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/api/v1alpha1"
)

// status says how an addon is, from what was read before it was changed.
func (v *view) status(in input) v1alpha1.AddonStatus {
	out := v1alpha1.AddonStatus{Type: in.addon.Type, Secret: in.object()}
	if last := v.app.Status.Addons[in.name]; last.Type == in.addon.Type {
		out.LastBackup = last.LastBackup
	}
	failure := v.backups(in, &out)
	set, _ := v.owned[ownedKey{"StatefulSet", in.object()}].(*appsv1.StatefulSet)
	switch {
	case in.stopped:
		out.Message = "stopped, as its application was removed"
	case set == nil:
		out.Message = "it is being made"
	case set.Status.ReadyReplicas > 0:
		out.Ready, out.Message = true, failure
	default:
		out.Message = v.trouble(in.object() + "-0")
	}
	return out
}

// backups finds the last backup that was made, and says what became of a later one that failed.
func (v *view) backups(in input, out *v1alpha1.AddonStatus) (failure string) {
	var failed metav1.Time
	for i := range v.jobs {
		job := &v.jobs[i]
		if job.Labels[v1alpha1.LabelAddon] != in.name {
			continue
		}
		for _, condition := range job.Status.Conditions {
			if condition.Status != corev1.ConditionTrue {
				continue
			}
			switch at := condition.LastTransitionTime; {
			case condition.Type == batchv1.JobComplete && (out.LastBackup == nil || out.LastBackup.Before(&at)):
				out.LastBackup = at.DeepCopy()
			case condition.Type == batchv1.JobFailed && failed.Before(&at):
				failed, failure = at, fmt.Sprintf("the backup of %s failed: see kubectl logs job/%s", at.UTC().Format("2 January 15:04 MST"), job.Name)
			}
		}
	}
	if out.LastBackup != nil && !out.LastBackup.Before(&failed) {
		return ""
	}
	return failure
}

// trouble says why a pod is not ready.
func (v *view) trouble(name string) string {
	for i := range v.pods {
		pod := &v.pods[i]
		if pod.Name != name {
			continue
		}
		for _, condition := range pod.Status.Conditions {
			if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse && condition.Message != "" {
				return "no node takes it: " + condition.Message
			}
		}
		for _, status := range pod.Status.ContainerStatuses {
			if ended := status.LastTerminationState.Terminated; ended != nil && status.State.Running == nil && ended.ExitCode != 0 {
				return fmt.Sprintf("it ended with %d: %s", ended.ExitCode, lastLine(ended.Message))
			}
			if waiting := status.State.Waiting; waiting != nil && waiting.Message != "" {
				return waiting.Reason + ": " + waiting.Message
			}
		}
		return "it starts"
	}
	return "it is being made"
}

// lastLine is the end of a log, bounded.
func lastLine(text string) string {
	text = strings.TrimSpace(strings.ToValidUTF8(text, "\uFFFD"))
	text = text[strings.LastIndexByte(text, '\n')+1:]
	return text[:min(len(text), 512)]
}
