package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/admission"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/scheduling"
)

// evictAfterSeconds is how long a pod stays on a node that is not ready or unreachable when
// it does not say so itself (upstream's default; see kube-apiserver
// --default-not-ready-toleration-seconds).
const evictAfterSeconds = 300

// defaultTolerationSeconds bounds the stay of pods on failed nodes (upstream: DefaultTolerationSeconds).
type defaultTolerationSeconds struct{ mutatesOnly }

// Admit implements Plugin.
func (defaultTolerationSeconds) Admit(_ context.Context, a admission.Attributes) error {
	if a.GetSubresource() != "" || a.GetResource().GroupResource() != api.Resource("pods") {
		return nil
	}
	pod, ok := a.GetObject().(*api.Pod)
	if !ok {
		return nil
	}
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		if toleratesNoExecute(pod.Spec.Tolerations, key) {
			continue
		}
		seconds := int64(evictAfterSeconds)
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, api.Toleration{
			Key: key, Operator: api.TolerationOpExists, Effect: api.TaintEffectNoExecute, TolerationSeconds: &seconds,
		})
	}
	return nil
}

func toleratesNoExecute(tolerations []api.Toleration, key string) bool {
	for _, t := range tolerations {
		if (t.Key == key || t.Key == "") && (t.Effect == api.TaintEffectNoExecute || t.Effect == "") {
			return true
		}
	}
	return false
}

// priority resolves the priority class of a pod to its number (upstream: Priority).
type priority struct{ mutatesOnly }

// systemPriorities are the classes that exist without an object.
func systemPriority(class string) (value int32, ok bool) {
	switch class {
	case scheduling.SystemNodeCritical:
		return scheduling.SystemCriticalPriority + 1000, true
	case scheduling.SystemClusterCritical:
		return scheduling.SystemCriticalPriority, true
	}
	return 0, class == ""
}

// Admit implements Plugin.
func (priority) Admit(_ context.Context, a admission.Attributes) error {
	pod := newPod(a)
	if pod == nil {
		return nil
	}
	value, ok := systemPriority(pod.Spec.PriorityClassName)
	if !ok {
		return admission.NewForbidden(a, fmt.Errorf("no PriorityClass with name %v was found", pod.Spec.PriorityClassName))
	}
	if pod.Spec.Priority != nil && *pod.Spec.Priority != value {
		return admission.NewForbidden(a, fmt.Errorf(
			"the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *pod.Spec.Priority, value))
	}
	pod.Spec.Priority = &value
	policy := api.PreemptLowerPriority
	if pod.Spec.PreemptionPolicy == nil {
		pod.Spec.PreemptionPolicy = &policy
	}
	return nil
}
