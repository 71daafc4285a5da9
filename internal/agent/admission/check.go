package admission

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// Input is what a decision is made from.
type Input struct {
	Pod         *corev1.Pod
	Others      []*corev1.Pod // that count on the node, with what they were granted
	Node        *corev1.Node  // nil: only resources are checked
	Allocatable corev1.ResourceList
	NodeName    string
	OS          string // the node's, as in kubernetes.io/os
	Static      bool   // the pod comes from a file of the node
}

// Refusal is why a pod does not run here, in the words of its status.
type Refusal struct{ Reason, Message string }

// Failure is one check that a pod has not passed.
type Failure struct {
	Predicate, Why string    // which check; "" with a Shortage
	Shortage       *Shortage // nil unless a resource is short
}

// Shortage is a resource of which there is not enough: CPU in millicores, others in bytes or
// pieces.
type Shortage struct {
	Resource                  corev1.ResourceName
	Requested, Used, Capacity int64
}

// missing is how much must be freed.
func (s Shortage) missing() int64 { return s.Requested - (s.Capacity - s.Used) }

// Refusal turns a failure into words.
func (f Failure) Refusal() Refusal {
	if s := f.Shortage; s != nil {
		return Refusal{
			Reason:  "OutOf" + string(s.Resource),
			Message: fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", s.Resource, s.Requested, s.Used, s.Capacity),
		}
	}
	return Refusal{Reason: f.Predicate, Message: fmt.Sprintf("Predicate %s failed: %s", f.Predicate, f.Why)}
}

// Unfit says why a pod can never run on this node, whatever else runs; nil when it might.
func Unfit(in Input) *Refusal {
	labelled, ok := in.Pod.Labels[corev1.LabelOSStable]
	if ok && labelled != in.OS {
		return &Refusal{
			Reason:  "PodOSSelectorNodeLabelDoesNotMatch",
			Message: "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
		}
	}
	if in.Pod.Spec.OS != nil && string(in.Pod.Spec.OS.Name) != in.OS {
		return &Refusal{Reason: "PodOSNotSupported", Message: "Failed to admit pod as the OS field doesn't match node OS"}
	}
	return nil
}

// Check lists the checks that a pod does not pass; none lets it in.
func Check(in Input) []Failure {
	failures := shortages(in)
	add := func(predicate, why string) { failures = append(failures, Failure{Predicate: predicate, Why: why}) }
	if in.Node != nil {
		if ok, err := nodeaffinity.GetRequiredNodeAffinity(in.Pod).Match(in.Node); !ok || err != nil {
			add("NodeAffinity", "node(s) didn't match Pod's node affinity/selector")
		}
	}
	if in.Pod.Spec.NodeName != "" && in.NodeName != "" && in.Pod.Spec.NodeName != in.NodeName {
		add("NodeName", "node(s) didn't match the requested node name")
	}
	if portTaken(in.Pod, in.Others) {
		add("NodePorts", "node(s) didn't have free ports for the requested pod ports")
	}
	if in.Node != nil && !in.Static && untolerated(in.Pod, in.Node) {
		add("TaintToleration", "node(s) had taints that the pod didn't tolerate")
	}
	return failures
}

func untolerated(pod *corev1.Pod, node *corev1.Node) bool {
	return slices.ContainsFunc(node.Spec.Taints, func(taint corev1.Taint) bool {
		if taint.Effect != corev1.TaintEffectNoExecute {
			return false
		}
		return !slices.ContainsFunc(pod.Spec.Tolerations, func(t corev1.Toleration) bool {
			return t.ToleratesTaint(klog.Background(), &taint, true)
		})
	})
}

// Requests is what a pod asks for, itself included.
func Requests(pod *corev1.Pod) corev1.ResourceList {
	list := maps.Clone(resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{}))
	if list == nil {
		list = corev1.ResourceList{}
	}
	list[corev1.ResourcePods] = *resource.NewQuantity(1, resource.DecimalSI)
	return list
}

func amount(list corev1.ResourceList, name corev1.ResourceName) int64 {
	q := list[name]
	if name == corev1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

// shortages compares what the pod asks for with what the others leave. An extended resource
// that the node knows nothing of is the cluster's, not the node's.
func shortages(in Input) []Failure {
	wanted := Requests(in.Pod)
	used := map[corev1.ResourceName]int64{}
	for _, other := range in.Others {
		requests := Requests(other)
		for name := range requests {
			used[name] += amount(requests, name)
		}
	}
	first := []corev1.ResourceName{corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}
	names := slices.SortedFunc(maps.Keys(wanted), func(a, b corev1.ResourceName) int {
		rank := func(n corev1.ResourceName) int {
			if i := slices.Index(first, n); i >= 0 {
				return i
			}
			return len(first)
		}
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
	})
	var failures []Failure
	for _, name := range names {
		request, capacity := amount(wanted, name), amount(in.Allocatable, name)
		if _, known := in.Allocatable[name]; !known && (extended(name) || slices.Contains(first, name)) {
			continue
		}
		if request > 0 && used[name]+request > capacity {
			failures = append(failures, Failure{Shortage: &Shortage{Resource: name, Requested: request, Used: used[name], Capacity: capacity}})
		}
	}
	return failures
}

// extended reports whether a resource is neither Kubernetes' own nor huge pages.
func extended(name corev1.ResourceName) bool {
	domain, _, qualified := strings.Cut(string(name), "/")
	return qualified && !strings.HasSuffix(domain, "kubernetes.io")
}

type hostPort struct {
	protocol corev1.Protocol
	ip       string
	port     int32
}

func hostPorts(pod *corev1.Pod) []hostPort {
	var list []hostPort
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, p := range c.Ports {
			if p.HostPort > 0 {
				list = append(list, hostPort{cmp.Or(p.Protocol, corev1.ProtocolTCP), cmp.Or(p.HostIP, "0.0.0.0"), p.HostPort})
			}
		}
	}
	return list
}

func portTaken(pod *corev1.Pod, others []*corev1.Pod) bool {
	wanted := hostPorts(pod)
	if len(wanted) == 0 {
		return false
	}
	for _, other := range others {
		for _, taken := range hostPorts(other) {
			if slices.ContainsFunc(wanted, func(w hostPort) bool {
				return w.port == taken.port && w.protocol == taken.protocol &&
					(w.ip == taken.ip || w.ip == "0.0.0.0" || taken.ip == "0.0.0.0")
			}) {
				return true
			}
		}
	}
	return false
}
