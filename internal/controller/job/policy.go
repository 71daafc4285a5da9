package job

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// verdict is what a pod failure policy says of a failed pod.
type verdict struct {
	message string // why the job fails; empty if it does not
	ignored bool   // the failure does not count towards the back-off limit
	action  batchv1.PodFailurePolicyAction
}

// judgeFailure applies the first rule of policy that matches a failed pod.
func judgeFailure(policy *batchv1.PodFailurePolicy, pod *corev1.Pod) verdict {
	if policy == nil {
		return verdict{}
	}
	for at := range policy.Rules {
		rule := &policy.Rules[at]
		cause, ok := matchRule(rule, pod)
		if !ok {
			continue
		}
		switch rule.Action {
		case batchv1.PodFailurePolicyActionIgnore:
			return verdict{ignored: true, action: rule.Action}
		case batchv1.PodFailurePolicyActionFailIndex, batchv1.PodFailurePolicyActionCount:
			return verdict{action: rule.Action}
		case batchv1.PodFailurePolicyActionFailJob:
			return verdict{action: rule.Action, message: fmt.Sprintf("%s matching %v rule at index %d", cause, rule.Action, at)}
		}
	}
	return verdict{}
}

// matchRule says whether rule is about pod, and by what.
func matchRule(rule *batchv1.PodFailurePolicyRule, pod *corev1.Pod) (cause string, ok bool) {
	if rule.OnExitCodes != nil {
		status := matchExitCode(pod.Status.ContainerStatuses, rule.OnExitCodes)
		if status == nil {
			status = matchExitCode(pod.Status.InitContainerStatuses, rule.OnExitCodes)
		}
		if status == nil {
			return "", false
		}
		return fmt.Sprintf("Container %s for pod %s/%s failed with exit code %v", status.Name, pod.Namespace, pod.Name, status.State.Terminated.ExitCode), true
	}
	for i := range pod.Status.Conditions {
		c := &pod.Status.Conditions[i]
		for _, pattern := range rule.OnPodConditions {
			if c.Type == pattern.Type && c.Status == pattern.Status {
				return fmt.Sprintf("Pod %s/%s has condition %v", pod.Namespace, pod.Name, c.Type), true
			}
		}
	}
	return "", false
}

// matchExitCode finds a container that ended in the way that on describes; success never does.
func matchExitCode(statuses []corev1.ContainerStatus, on *batchv1.PodFailurePolicyOnExitCodesRequirement) *corev1.ContainerStatus {
	for i := range statuses {
		ended := statuses[i].State.Terminated
		if ended == nil || ended.ExitCode == 0 || (on.ContainerName != nil && *on.ContainerName != statuses[i].Name) {
			continue
		}
		listed := slices.Contains(on.Values, ended.ExitCode)
		if (on.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn && listed) || (on.Operator == batchv1.PodFailurePolicyOnExitCodesOpNotIn && !listed) {
			return &statuses[i]
		}
	}
	return nil
}

// judgeSuccess says whether the indexes that succeeded are enough, and by which rule of policy.
func judgeSuccess(policy *batchv1.SuccessPolicy, completions int, succeeded intervals) (message string, ok bool) {
	if policy == nil || len(succeeded) == 0 {
		return "", false
	}
	for at, rule := range policy.Rules {
		met := false
		if rule.SucceededIndexes != nil {
			wanted := parseIndexes(*rule.SucceededIndexes, completions)
			have := wanted.common(succeeded)
			met = len(wanted) > 0 && (have == wanted.total() || (rule.SucceededCount != nil && have >= int(*rule.SucceededCount)))
		} else if rule.SucceededCount != nil {
			met = succeeded.total() >= int(*rule.SucceededCount)
		}
		if met {
			return fmt.Sprintf("Matched rules at index %d", at), true
		}
	}
	return "", false
}
