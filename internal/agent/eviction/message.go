package eviction

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/klog/v2"
	"k8s.io/kubectl/pkg/util/qos"
)

// Reason is the reason in the status of a pod that was ended, and of one that was turned away.
const Reason = "Evicted"

// Annotations of the event about a pod that is ended for its node's sake.
const (
	annotationContainers = "offending_containers"
	annotationUsages     = "offending_containers_usage"
	annotationPod        = "offending_pod"
	annotationPodUsage   = "offending_pod_usage"
	annotationResource   = "starved_resource"
)

// systemCritical is the least priority of a pod that is never ended for lack of something.
// Source: Kubernetes API, class system-cluster-critical.
const systemCritical = 2000000000

// Critical reports whether the system needs the pod: it is static, a static one's mirror, or of
// a system priority.
func Critical(pod *corev1.Pod) bool {
	if source, ok := pod.Annotations["kubernetes.io/config.source"]; ok && source != "api" {
		return true
	}
	if _, mirror := pod.Annotations["kubernetes.io/config.mirror"]; mirror {
		return true
	}
	return priority(pod) >= systemCritical
}

// Message says why a pod is ended: what was short, and which of its containers used more than
// they asked for.
func Message(starved []Threshold, observed Observations, pod *corev1.Pod, usages Usages) (message string, annotations map[string]string) {
	annotations = map[string]string{}
	short := starved[0].Signal.Resource()
	message = fmt.Sprintf("The node was low on resource: %v. ", short)
	for _, t := range starved {
		if t.Signal.Resource() != short {
			continue
		}
		if o, ok := observed[t.Signal]; ok {
			message += fmt.Sprintf("Threshold quantity: %v, available: %v. ",
				t.Value.quantity(o.Capacity), resource.NewQuantity(o.Available, t.Signal.format()))
		}
		break
	}
	usage, ok := usages.of(pod)
	if !ok {
		return message, annotations
	}
	if short == corev1.ResourceMemory && resourcehelper.IsPodLevelResourcesSet(pod) {
		if asked, ok := pod.Spec.Resources.Requests[short]; ok {
			used := resource.NewQuantity(usage.MemoryBytes, resource.BinarySI).String()
			message += fmt.Sprintf("Pod %s was using %s, request is %s, has larger consumption of %v. ", pod.Name, used, asked.String(), short)
			annotations[annotationPod], annotations[annotationPodUsage] = pod.Name, used
		}
	}
	var names, amounts []string
	specs := slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers)
	for _, c := range usage.Containers {
		i := slices.IndexFunc(specs, func(s corev1.Container) bool { return s.Name == c.Name })
		if i < 0 {
			continue
		}
		asked := specs[i].Resources.Requests[short]
		var used *resource.Quantity
		switch short {
		case corev1.ResourceEphemeralStorage:
			used = resource.NewQuantity(c.RootFS.Bytes+c.Logs.Bytes, resource.BinarySI)
		case corev1.ResourceMemory:
			used = resource.NewQuantity(c.MemoryBytes, resource.BinarySI)
		}
		if used == nil || used.Cmp(asked) <= 0 {
			continue
		}
		message += fmt.Sprintf("Container %s was using %s, request is %s, has larger consumption of %v. ", c.Name, used.String(), asked.String(), short)
		names, amounts = append(names, c.Name), append(amounts, used.String())
	}
	annotations[annotationContainers] = strings.Join(names, ",")
	annotations[annotationUsages] = strings.Join(amounts, ",")
	annotations[annotationResource] = string(short)
	return message, annotations
}

// Limited reports whether a pod has a limit that OverLimit looks at.
func Limited(pod *corev1.Pod) bool {
	for i := range pod.Spec.Volumes {
		if e := pod.Spec.Volumes[i].EmptyDir; e != nil && e.SizeLimit != nil && e.SizeLimit.Sign() > 0 {
			return true
		}
	}
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	_, limited := limits[corev1.ResourceEphemeralStorage]
	return limited
}

// OverLimit says which of its limits of local storage a pod has exceeded: of an emptyDir
// volume, of the pod, or of a container. The message is empty when it is within all.
func OverLimit(pod *corev1.Pod, usage Usage, split bool) string {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.Sign() <= 0 {
			continue
		}
		if used, ok := usage.Volumes[v.Name]; ok && used.Bytes > v.EmptyDir.SizeLimit.Value() {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String())
		}
	}
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	if limit, ok := limits[corev1.ResourceEphemeralStorage]; ok && usage.ephemeral(pod) > limit.Value() {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())
	}
	for _, c := range usage.Containers {
		i := slices.IndexFunc(pod.Spec.Containers, func(s corev1.Container) bool { return s.Name == c.Name })
		if i < 0 {
			continue
		}
		limit := pod.Spec.Containers[i].Resources.Limits.StorageEphemeral()
		used := c.Logs.Bytes
		if !split {
			used += c.RootFS.Bytes
		}
		if limit.Value() != 0 && used > limit.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String())
		}
	}
	return ""
}

// Refusal says why a node under pressure turns a new pod away; empty lets it in. Under memory
// pressure only best-effort pods are, unless they tolerate the condition's taint.
func Refusal(conditions []corev1.NodeConditionType, pod *corev1.Pod) string {
	if len(conditions) == 0 || Critical(pod) {
		return ""
	}
	if len(conditions) == 1 && conditions[0] == corev1.NodeMemoryPressure {
		if qos.GetPodQOS(pod) != corev1.PodQOSBestEffort {
			return ""
		}
		taint := corev1.Taint{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule}
		for i := range pod.Spec.Tolerations {
			if pod.Spec.Tolerations[i].ToleratesTaint(klog.Background(), &taint, true) {
				return ""
			}
		}
	}
	return fmt.Sprintf("The node had condition: %v. ", conditions)
}
