package scheduler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/component-helpers/nodedeclaredfeatures"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// What a container without a request counts for in scores, so that nodes full of such
// pods do not look empty (kube-scheduler, util/pod_resources.go).
const (
	defaultCPUMilli    = 100
	defaultMemoryBytes = 200 << 20
)

// featureVersion is the release whose rules say which features of a node a pod needs.
const featureVersion = "1.36.3"

// demand is an amount of the resource at a place of the vectors.
type demand struct {
	place  int
	amount int64
}

// shape is what pods ask of a node itself, whatever their names and labels. Templates of
// one shape share what is known of each node.
type shape struct {
	id        uint64
	sum       uint64
	pod       *corev1.Pod // the first pod seen; the source of all below, read-only
	templates []*template
	profile   *Profile

	demands []demand // what a pod holds once it is placed
	wanted  []demand // of them what filters compare
	// With defaults for what is not set: what a placed pod counts, and what one counts
	// that is to be placed (they differ for pods with requests of their own).
	scoredCPU, scoredMemory int64
	askedCPU, askedMemory   int64
	cpu, memory             int64  // plain
	fitParts, balanceParts  []part // resources that scores look at; nil for CPU and memory
	ports                   []hostPort
	images                  []string
	containers              int

	toleratesCordon bool
	required        nodeaffinity.RequiredNodeAffinity
	hasRequired     bool
	onlyNodes       map[string]struct{} // nil unless a name is demanded
	preferred       *nodeaffinity.PreferredSchedulingTerms
	lenient         []corev1.Toleration // those that count against PreferNoSchedule
	features        *nodedeclaredfeatures.FeatureSet
	terms           *terms // nil without affinity to pods

	cache *nodeCache // nil unless the shape is hot
}

// nodeCache is what a shape knows of each slot while the node's version stands.
type nodeCache struct {
	version  []uint32
	verdict  []Plugin // the first filter that a node itself fails, 0 if it passes
	affinity []int32  // sum of the weights of preferred terms
	taints   []int32  // PreferNoSchedule taints that are not tolerated
	imageAt  []uint32
	image    []int32 // score of images that are there
}

func (s *State) newShape(pod *corev1.Pod, sum uint64) *shape {
	s.shaped++
	t := &shape{
		id: s.shaped, sum: sum, pod: pod, profile: s.profileOf(pod),
		containers: len(pod.Spec.Containers) + len(pod.Spec.InitContainers),
	}
	s.setDemands(t, pod)
	t.fitParts = s.parts(t, t.profile.Fit.Resources, t.askedCPU, t.askedMemory)
	t.balanceParts = s.parts(t, t.profile.Balanced, t.cpu, t.memory)
	t.setContainers(pod)
	cordon := corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}
	t.toleratesCordon = tolerated(pod.Spec.Tolerations, &cordon)
	for _, toleration := range pod.Spec.Tolerations {
		if toleration.Effect == "" || toleration.Effect == corev1.TaintEffectPreferNoSchedule {
			t.lenient = append(t.lenient, toleration)
		}
	}
	t.required = nodeaffinity.GetRequiredNodeAffinity(pod)
	t.hasRequired = len(pod.Spec.NodeSelector) > 0
	if pod.Spec.Affinity != nil && pod.Spec.Affinity.NodeAffinity != nil {
		affinity := pod.Spec.Affinity.NodeAffinity
		if required := affinity.RequiredDuringSchedulingIgnoredDuringExecution; required != nil {
			t.hasRequired = true
			if !t.profile.Off.Has(NodeAffinity) {
				t.onlyNodes = demandedNames(required)
			}
		}
		if terms := affinity.PreferredDuringSchedulingIgnoredDuringExecution; len(terms) > 0 {
			// Validation lets no invalid term in; one that came in all the same has no weight.
			if preferred, err := nodeaffinity.NewPreferredSchedulingTerms(terms); err == nil {
				t.preferred = preferred
			}
		}
	}
	t.features = neededFeatures(pod)
	t.terms = newTerms(pod)
	return t
}

func (t *shape) setContainers(pod *corev1.Pod) {
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		t.images = append(t.images, normalImage(c.Image))
		if sidecar(c) { // the ports of other init containers are free again before the pod runs
			t.addPorts(c.Ports)
		}
	}
	for i := range pod.Spec.Containers {
		t.images = append(t.images, normalImage(pod.Spec.Containers[i].Image))
		t.addPorts(pod.Spec.Containers[i].Ports)
	}
	for i := range pod.Spec.Volumes {
		if image := pod.Spec.Volumes[i].Image; image != nil {
			t.images = append(t.images, normalImage(image.Reference))
		}
	}
}

func sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// neededFeatures is what a node must declare to run a pod, nil for nothing. Hardly any pod needs a feature.
func neededFeatures(pod *corev1.Pod) *nodedeclaredfeatures.FeatureSet {
	needed, err := nodedeclaredfeatures.DefaultFramework.InferForPodScheduling(
		&nodedeclaredfeatures.PodInfo{Spec: &pod.Spec}, version.MustParse(featureVersion))
	if err != nil || needed.IsEmpty() {
		return nil
	}
	return &needed
}

func (s *State) setDemands(t *shape, pod *corev1.Pod) {
	options := resourcehelper.PodResourcesOptions{
		UseStatusResources: resizing(pod), InPlacePodLevelResourcesVerticalScalingEnabled: true,
	}
	requests := resourcehelper.PodRequests(pod, options)
	names := make([]corev1.ResourceName, 0, len(requests))
	for name := range requests {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		quantity := requests[name]
		amount := quantity.Value()
		if name == corev1.ResourceCPU {
			amount = quantity.MilliValue()
		}
		if amount > 0 && name != corev1.ResourcePods {
			t.demands = append(t.demands, demand{place: s.place(name), amount: amount})
		}
	}
	t.wanted = t.demands
	if len(t.profile.Ignored)+len(t.profile.IgnoredGroups) > 0 {
		t.wanted = slices.DeleteFunc(slices.Clone(t.demands), func(d demand) bool { return t.profile.ignores(s.names[d.place]) })
	}
	t.cpu, t.memory = requests.Cpu().MilliValue(), requests.Memory().Value()
	missing := corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewMilliQuantity(defaultCPUMilli, resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(defaultMemoryBytes, resource.BinarySI),
	}
	// kube-scheduler's NodeResourcesFit does not look at pod-level requests of the pod that it
	// scores (NewFit does not tell its scorer of the feature), but counts those of placed ones.
	asked := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{NonMissingContainerRequests: missing, SkipPodLevelResources: true})
	t.askedCPU, t.askedMemory = asked.Cpu().MilliValue(), asked.Memory().Value()
	if resourcehelper.IsPodLevelRequestsSet(pod) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			if _, ok := requests[name]; ok {
				delete(missing, name)
			}
		}
	}
	options.NonMissingContainerRequests = missing
	scored := resourcehelper.PodRequests(pod, options)
	t.scoredCPU, t.scoredMemory = scored.Cpu().MilliValue(), scored.Memory().Value()
}

func (t *shape) addPorts(ports []corev1.ContainerPort) {
	for _, p := range ports {
		if p.HostPort == 0 {
			continue
		}
		port := hostPort{ip: p.HostIP, protocol: p.Protocol, port: p.HostPort}
		if port.ip == "" {
			port.ip = "0.0.0.0"
		}
		if port.protocol == "" {
			port.protocol = corev1.ProtocolTCP
		}
		t.ports = append(t.ports, port)
	}
}

// demandedNames returns the nodes that an affinity demands by name, nil if any term
// leaves the name open. DaemonSets place their pods this way.
func demandedNames(selector *corev1.NodeSelector) map[string]struct{} {
	var all map[string]struct{}
	for _, term := range selector.NodeSelectorTerms {
		var names map[string]struct{}
		for _, field := range term.MatchFields {
			if field.Key != metav1.ObjectNameField || field.Operator != corev1.NodeSelectorOpIn {
				continue
			}
			wanted := map[string]struct{}{}
			for _, value := range field.Values {
				if _, ok := names[value]; ok || names == nil {
					wanted[value] = struct{}{}
				}
			}
			names = wanted
		}
		if names == nil {
			return nil
		}
		if all == nil {
			all = map[string]struct{}{}
		}
		for name := range names {
			all[name] = struct{}{}
		}
	}
	return all
}

// sameShape says whether two pods ask the same of a node itself.
func sameShape(a, b *corev1.Pod) bool {
	x, y := &a.Spec, &b.Spec
	return !resizing(a) && !resizing(b) && priorityOf(a) == priorityOf(b) &&
		slices.EqualFunc(x.Containers, y.Containers, sameContainer) &&
		slices.EqualFunc(x.InitContainers, y.InitContainers, sameContainer) &&
		sameResources(x.Overhead, y.Overhead) && mapsEqual(x.NodeSelector, y.NodeSelector) &&
		slices.EqualFunc(x.Tolerations, y.Tolerations, func(p, q corev1.Toleration) bool {
			return p.Key == q.Key && p.Operator == q.Operator && p.Value == q.Value && p.Effect == q.Effect
		}) &&
		sameAffinity(a, b) && sameUsers(x, y) && sameImages(x.Volumes, y.Volumes) &&
		(x.Resources == y.Resources || apiequality.Semantic.DeepEqual(x.Resources, y.Resources))
}

// sameAffinity compares affinities; terms about pods mean the pod's own namespace if they name none.
func sameAffinity(a, b *corev1.Pod) bool {
	x, y := a.Spec.Affinity, b.Spec.Affinity
	if x == nil && y == nil {
		return true
	}
	if x == nil || y == nil {
		return false
	}
	if (x.PodAffinity != nil || x.PodAntiAffinity != nil) && a.Namespace != b.Namespace {
		return false
	}
	return x == y || sameNodeAffinity(x.NodeAffinity, y.NodeAffinity) &&
		samePodAffinity(x.PodAffinity, y.PodAffinity) && samePodAntiAffinity(x.PodAntiAffinity, y.PodAntiAffinity)
}

// sameUsers compares what decides about features that nodes declare.
func sameUsers(x, y *corev1.PodSpec) bool {
	return x.HostNetwork == y.HostNetwork && (x.HostUsers == nil) == (y.HostUsers == nil) &&
		(x.HostUsers == nil || *x.HostUsers == *y.HostUsers)
}

func sameImages(a, b []corev1.Volume) bool {
	i, j := 0, 0
	for {
		for i < len(a) && a[i].Image == nil {
			i++
		}
		for j < len(b) && b[j].Image == nil {
			j++
		}
		if i == len(a) || j == len(b) {
			return i == len(a) && j == len(b)
		}
		if a[i].Image.Reference != b[j].Image.Reference {
			return false
		}
		i, j = i+1, j+1
	}
}

func sameContainer(a, b corev1.Container) bool {
	return a.Image == b.Image && sidecar(&a) == sidecar(&b) && sameResources(a.Resources.Requests, b.Resources.Requests) &&
		slices.EqualFunc(a.Ports, b.Ports, func(p, q corev1.ContainerPort) bool {
			return p.HostPort == q.HostPort && p.HostIP == q.HostIP && p.Protocol == q.Protocol
		}) &&
		slices.EqualFunc(a.RestartPolicyRules, b.RestartPolicyRules, func(p, q corev1.ContainerRestartRule) bool {
			return p.Action == q.Action
		})
}

func sameResources(a, b corev1.ResourceList) bool {
	if len(a) != len(b) {
		return false
	}
	for name, quantity := range a {
		if other, ok := b[name]; !ok || quantity.Cmp(other) != 0 {
			return false
		}
	}
	return true
}

// resizing says whether what a pod holds differs from what its spec asks for: its
// containers still have more, or the larger size was refused.
func resizing(pod *corev1.Pod) bool {
	if resourcehelper.IsPodResizeInfeasible(pod) {
		return true
	}
	if of := pod.Spec.Resources; of != nil && pod.Status.Resources != nil &&
		(exceeds(pod.Status.Resources.Requests, of.Requests) || exceeds(pod.Status.AllocatedResources, of.Requests)) {
		return true
	}
	return holdsMore(pod.Spec.Containers, pod.Status.ContainerStatuses) ||
		holdsMore(pod.Spec.InitContainers, pod.Status.InitContainerStatuses)
}

func holdsMore(containers []corev1.Container, statuses []corev1.ContainerStatus) bool {
	for i := range statuses {
		status := &statuses[i]
		if status.Resources == nil {
			continue
		}
		for j := range containers {
			if c := &containers[j]; c.Name == status.Name &&
				(exceeds(status.Resources.Requests, c.Resources.Requests) || exceeds(status.AllocatedResources, c.Resources.Requests)) {
				return true
			}
		}
	}
	return false
}

// exceeds says whether any of a is more than in b.
func exceeds(a, b corev1.ResourceList) bool {
	for name, quantity := range a {
		if other := b[name]; quantity.Cmp(other) > 0 {
			return true
		}
	}
	return false
}
