package job

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"

	"gantry.dev/gantry/internal/controller"
)

// jobKind is what owner references to a Job say.
func jobKind() schema.GroupVersionKind { return batchv1.SchemeGroupVersion.WithKind("Job") }

// maxPrefix is the longest start of a generated name (kubernetes, apiserver/pkg/storage/names).
const maxPrefix = 58

// newTemplate is the job's template with what all of its pods get.
func newTemplate(job *batchv1.Job) *corev1.PodTemplateSpec {
	template := job.Spec.Template.DeepCopy()
	if isIndexed(job) {
		for i := range template.Spec.InitContainers {
			addIndexVariable(&template.Spec.InitContainers[i])
		}
		for i := range template.Spec.Containers {
			addIndexVariable(&template.Spec.Containers[i])
		}
	}
	if !slices.Contains(template.Finalizers, batchv1.JobTrackingFinalizer) {
		template.Finalizers = append(template.Finalizers, batchv1.JobTrackingFinalizer)
	}
	return template
}

// addIndexVariable tells a container its completion index, unless the user has defined the variable.
func addIndexVariable(c *corev1.Container) {
	const name = "JOB_COMPLETION_INDEX"
	if slices.ContainsFunc(c.Env, func(v corev1.EnvVar) bool { return v.Name == name }) {
		return
	}
	path := fmt.Sprintf("metadata.labels['%s']", batchv1.JobCompletionIndexAnnotation)
	c.Env = append(c.Env, corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}})
}

// newPod is a pod of a job. index is unknownIndex unless the job is indexed; replaced is the failed
// pod whose count of failures it carries on, or nil.
func newPod(job *batchv1.Job, template *corev1.PodTemplateSpec, index int, replaced *corev1.Pod) *corev1.Pod {
	prefix := job.Name + "-"
	if len(validation.IsDNS1123Subdomain(job.Name+"a")) != 0 {
		prefix = job.Name
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: job.Namespace, GenerateName: prefix,
			Labels: maps.Clone(template.Labels), Annotations: maps.Clone(template.Annotations), Finalizers: slices.Clone(template.Finalizers),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(job, jobKind())},
		},
		Spec: *template.Spec.DeepCopy(),
	}
	if index == unknownIndex {
		return pod
	}
	text := strconv.Itoa(index)
	if suffix := "-" + text + "-"; len(job.Name)+len(suffix) > maxPrefix {
		pod.GenerateName = job.Name[:min(len(job.Name), maxPrefix-len(suffix))] + suffix
	} else {
		pod.GenerateName = job.Name + suffix
	}
	setKey(&pod.Labels, batchv1.JobCompletionIndexAnnotation, text)
	setKey(&pod.Annotations, batchv1.JobCompletionIndexAnnotation, text)
	pod.Spec.Hostname = job.Name + "-" + text
	if job.Spec.BackoffLimitPerIndex != nil {
		counted, ignored := nextFailures(job, replaced)
		setKey(&pod.Annotations, batchv1.JobIndexFailureCountAnnotation, strconv.Itoa(counted))
		if ignored > 0 {
			setKey(&pod.Annotations, batchv1.JobIndexIgnoredFailureCountAnnotation, strconv.Itoa(ignored))
		}
	}
	return pod
}

func setKey(to *map[string]string, key, value string) {
	if *to == nil {
		*to = map[string]string{}
	}
	(*to)[key] = value
}

// nextFailures is how often an index has failed after replaced did.
func nextFailures(job *batchv1.Job, replaced *corev1.Pod) (counted, ignored int) {
	if replaced == nil {
		return 0, 0
	}
	counted = failureCount(replaced, batchv1.JobIndexFailureCountAnnotation)
	ignored = failureCount(replaced, batchv1.JobIndexIgnoredFailureCountAnnotation)
	if judgeFailure(job.Spec.PodFailurePolicy, replaced).ignored {
		return counted, ignored + 1
	}
	return counted + 1, ignored
}

func isTracked(pod *corev1.Pod) bool {
	return slices.Contains(pod.Finalizers, batchv1.JobTrackingFinalizer)
}

// ended reports whether all of a pod's containers are over for good.
func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// planRemoval picks at least count of the active pods whose loss hurts least. Of an indexed job all
// go that have no valid index, and all but one of an index.
func planRemoval(job *batchv1.Job, active []*corev1.Pod, count int) []*corev1.Pod {
	var remove []*corev1.Pod
	left := slices.Clone(active)
	if isIndexed(job) {
		best := map[int]*corev1.Pod{}
		for _, pod := range active {
			index := indexOf(pod)
			if index == unknownIndex || index >= completionsOf(job) {
				remove = append(remove, pod)
				continue
			}
			other := best[index]
			if other != nil && compareForRemoval(pod, other) <= 0 {
				remove = append(remove, pod)
				continue
			}
			if other != nil {
				remove = append(remove, other)
			}
			best[index] = pod
		}
		left = left[:0]
		for _, pod := range best {
			left = append(left, pod)
		}
		byIndex(left)
	}
	if missing := count - len(remove); missing > 0 {
		slices.SortStableFunc(left, compareForRemoval)
		remove = append(remove, left[:missing]...)
	}
	return remove
}

func byIndex(pods []*corev1.Pod) {
	slices.SortStableFunc(pods, func(a, b *corev1.Pod) int { return indexOf(a) - indexOf(b) })
}

// compareForRemoval is negative if a should go before b: what is less far goes first (kubernetes,
// pkg/controller, ActivePods).
func compareForRemoval(a, b *corev1.Pod) int {
	rank := func(pod *corev1.Pod) int {
		switch pod.Status.Phase {
		case corev1.PodUnknown:
			return 1
		case corev1.PodRunning:
			return 2
		}
		return 0
	}
	if diff := falseFirst(a.Spec.NodeName != "", b.Spec.NodeName != ""); diff != 0 {
		return diff
	}
	if diff := rank(a) - rank(b); diff != 0 {
		return diff
	}
	if diff := falseFirst(controller.PodReady(a), controller.PodReady(b)); diff != 0 {
		return diff
	}
	if controller.PodReady(a) {
		at, bt := controller.PodCondition(a, corev1.PodReady).LastTransitionTime, controller.PodCondition(b, corev1.PodReady).LastTransitionTime
		if diff := youngestFirst(at.Time, bt.Time); diff != 0 {
			return diff
		}
	}
	aRegular, aSidecar := maxRestarts(a)
	bRegular, bSidecar := maxRestarts(b)
	if diff := cmp.Or(bRegular-aRegular, bSidecar-aSidecar); diff != 0 {
		return diff
	}
	return youngestFirst(a.CreationTimestamp.Time, b.CreationTimestamp.Time)
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// youngestFirst puts an unknown time before all others.
func youngestFirst(a, b time.Time) int {
	if a.IsZero() || b.IsZero() {
		return falseFirst(!a.IsZero(), !b.IsZero())
	}
	return b.Compare(a)
}

func maxRestarts(pod *corev1.Pod) (regular, sidecar int) {
	for i := range pod.Status.ContainerStatuses {
		regular = max(regular, int(pod.Status.ContainerStatuses[i].RestartCount))
	}
	for i := range pod.Status.InitContainerStatuses {
		if status := &pod.Status.InitContainerStatuses[i]; isSidecar(pod, status.Name) {
			sidecar = max(sidecar, int(status.RestartCount))
		}
	}
	return regular, sidecar
}

// restarts adds up the restarts of all containers of pods that may still run.
func restarts(pods []*corev1.Pod) int {
	sum := 0
	for _, pod := range pods {
		if pod.Status.Phase != corev1.PodRunning && pod.Status.Phase != corev1.PodPending {
			continue
		}
		for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
			for i := range list {
				sum += int(list[i].RestartCount)
			}
		}
	}
	return sum
}

func isIndexed(job *batchv1.Job) bool {
	return job.Spec.CompletionMode != nil && *job.Spec.CompletionMode == batchv1.IndexedCompletion
}

func isSuspended(job *batchv1.Job) bool { return job.Spec.Suspend != nil && *job.Spec.Suspend }

// foreignManager names who else looks after a job; empty if this controller does.
func foreignManager(job *batchv1.Job) string {
	if by := job.Spec.ManagedBy; by != nil && *by != batchv1.JobControllerName {
		return *by
	}
	return ""
}

// replacesOnlyFailed reports whether a pod that is being deleted is replaced only when it has ended.
func replacesOnlyFailed(job *batchv1.Job) bool {
	policy := job.Spec.PodReplacementPolicy
	return (policy != nil && *policy == batchv1.Failed) || job.Spec.PodFailurePolicy != nil
}

// hasFailed reports whether a pod counts as failed. One that is deleted may never get to say so.
func hasFailed(job *batchv1.Job, pod *corev1.Pod) bool {
	if pod.Status.Phase == corev1.PodFailed {
		return true
	}
	return !replacesOnlyFailed(job) && pod.DeletionTimestamp != nil && pod.Status.Phase != corev1.PodSucceeded
}

func completionsOf(job *batchv1.Job) int {
	if job.Spec.Completions == nil {
		return 0
	}
	return int(*job.Spec.Completions)
}

func parallelismOf(job *batchv1.Job) int { return orDefault(job.Spec.Parallelism, 1) }

func backoffLimitOf(job *batchv1.Job) int { return orDefault(job.Spec.BackoffLimit, 6) }

// orDefault is the API's default for what is not set.
func orDefault(value *int32, byDefault int) int {
	if value == nil {
		return byDefault
	}
	return int(*value)
}

// isJobRef reports whether a reference names a Job.
func isJobRef(ref *metav1.OwnerReference) bool {
	return ref.Kind == jobKind().Kind && strings.HasPrefix(ref.APIVersion, batchv1.GroupName+"/")
}
