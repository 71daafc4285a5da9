package admission

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubectl/pkg/util/qos"

	"gantry.dev/gantry/internal/agent/eviction"
)

// Words of the status of a pod that had to make room. Source: the kubelet.
const (
	PreemptReason    = "Preempting"
	PreemptMessage   = "Preempted in order to admit critical pod"
	PreemptCondition = "Pod was preempted by Kubelet to accommodate a critical pod."
)

// MakeRoom decides what to do for a pod that has failed checks. For one that the system needs,
// and that only lacks resources, it names the pods that must end: as few as possible, and of
// the lowest class of service. Otherwise it returns the failures that stand.
func MakeRoom(pod *corev1.Pod, running []*corev1.Pod, failures []Failure) (victims []*corev1.Pod, standing []Failure, err error) {
	if !eviction.Critical(pod) {
		return nil, failures, nil
	}
	var lacks []lack
	for _, f := range failures {
		if f.Shortage == nil {
			standing = append(standing, f)
			continue
		}
		lacks = append(lacks, lack{f.Shortage.Resource, f.Shortage.missing()})
	}
	if len(standing) > 0 {
		return nil, standing, nil
	}
	victims, err = choose(pod, running, lacks)
	if err != nil {
		return nil, nil, err
	}
	return victims, nil, nil
}

// lack is how much of a resource is still to be freed.
type lack struct {
	name   corev1.ResourceName
	amount int64
}

func frees(pod *corev1.Pod, name corev1.ResourceName) int64 { return amount(Requests(pod), name) }

// without is what is still lacking when pods are gone.
func without(lacks []lack, pods ...*corev1.Pod) []lack {
	var left []lack
	for _, l := range lacks {
		for _, pod := range pods {
			l.amount -= frees(pod, l.name)
		}
		if l.amount > 0 {
			left = append(left, l)
		}
	}
	return left
}

// choose takes from each class what the classes below it cannot give, then drops from the lower
// classes what that made needless, as the kubelet does.
func choose(pod *corev1.Pod, running []*corev1.Pod, lacks []lack) ([]*corev1.Pod, error) {
	var best, burst, guaranteed []*corev1.Pod
	for _, other := range running {
		if !preemptable(pod, other) {
			continue
		}
		switch qos.GetPodQOS(other) {
		case corev1.PodQOSBestEffort:
			best = append(best, other)
		case corev1.PodQOSBurstable:
			burst = append(burst, other)
		default:
			guaranteed = append(guaranteed, other)
		}
	}
	if left := without(lacks, slices.Concat(best, burst, guaranteed)...); len(left) > 0 {
		return nil, noneFound(left)
	}
	top, err := nearest(guaranteed, without(lacks, slices.Concat(best, burst)...))
	if err != nil {
		return nil, err
	}
	middle, err := nearest(burst, without(lacks, slices.Concat(best, top)...))
	if err != nil {
		return nil, err
	}
	bottom, err := nearest(best, without(lacks, slices.Concat(middle, top)...))
	if err != nil {
		return nil, err
	}
	return slices.Concat(bottom, middle, top), nil
}

func noneFound(lacks []lack) error {
	var text strings.Builder
	for _, l := range lacks {
		fmt.Fprintf(&text, "(res: %v, q: %d), ", l.name, l.amount)
	}
	return fmt.Errorf("preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: [%s]", text.String())
}

// nearest takes pods until nothing lacks: each time the one that leaves the least, and of equal
// ones that with the smaller request.
func nearest(pods []*corev1.Pod, lacks []lack) ([]*corev1.Pod, error) {
	pods = slices.Clone(pods)
	var taken []*corev1.Pod
	for len(lacks) > 0 {
		if len(pods) == 0 {
			return nil, noneFound(lacks)
		}
		best, bestDistance := 0, float64(len(lacks)+1)
		for i, pod := range pods {
			d := distance(lacks, pod)
			if d < bestDistance || d == bestDistance && smaller(pod, pods[best]) {
				best, bestDistance = i, d
			}
		}
		lacks = without(lacks, pods[best])
		taken = append(taken, pods[best])
		pods = slices.Delete(pods, best, best+1)
	}
	return taken, nil
}

// distance is the sum of the squared shares of each lack that stay when the pod is gone.
func distance(lacks []lack, pod *corev1.Pod) float64 {
	sum := 0.0
	for _, l := range lacks {
		if left := float64(l.amount - frees(pod, l.name)); left > 0 {
			share := left / float64(l.amount)
			sum += share * share
		}
	}
	return sum
}

func smaller(a, b *corev1.Pod) bool {
	for _, name := range []corev1.ResourceName{corev1.ResourceMemory, corev1.ResourceCPU} {
		if x, y := frees(a, name), frees(b, name); x != y {
			return x < y
		}
	}
	return true
}

func preemptable(pod, other *corev1.Pod) bool {
	if eviction.Critical(pod) && !eviction.Critical(other) {
		return true
	}
	return pod.Spec.Priority != nil && other.Spec.Priority != nil && *pod.Spec.Priority > *other.Spec.Priority
}
