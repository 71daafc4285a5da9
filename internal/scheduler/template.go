package scheduler

import (
	"hash/maphash"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// What a container without a request counts for in scores, so that nodes full of such
// pods do not look empty (kube-scheduler, util/pod_resources.go).
const (
	defaultCPUMilli    = 100
	defaultMemoryBytes = 200 << 20
)

// hotTemplates is how many templates keep their caches at once.
const hotTemplates = 64

// demand is an amount of the resource at a place of the vectors.
type demand struct {
	place  int
	amount int64
}

// template is what pods of one kind ask of a node. Pods with equal templates are
// interchangeable for the scheduler.
type template struct {
	sum  uint64
	pod  *corev1.Pod // the first pod seen; the source of all below, read-only
	pods int         // placed or waiting pods that use it

	profile *Profile

	demands                 []demand
	scoredCPU, scoredMemory int64
	ports                   []hostPort
	images                  []string
	containers              int
	owner                   types.UID // of the controller, for spreading; may be empty

	toleratesCordon bool
	required        nodeaffinity.RequiredNodeAffinity
	hasRequired     bool
	onlyNodes       map[string]struct{} // nil unless a name is demanded
	preferred       *nodeaffinity.PreferredSchedulingTerms
	lenient         []corev1.Toleration // those that count against PreferNoSchedule

	cache *nodeCache // nil unless the template is hot

	failedAt [2]uint64 // State.freed and State.added when no node was found last
	failure  *FitError // what was found then
}

// nodeCache is what a template knows of each slot while the node's version stands.
type nodeCache struct {
	version  []uint32
	verdict  []verdict
	affinity []int32 // sum of the weights of preferred terms
	taints   []int32 // PreferNoSchedule taints that are not tolerated
	imageAt  []uint32
	image    []int32 // score of images that are there
}

// template returns the template of a pod, making it if no other pod has it.
func (s *State) template(pod *corev1.Pod) *template {
	sum := fingerprint(s.seed, pod)
	for _, t := range s.templates[sum] {
		if s.sameTemplate(t, pod) {
			return t
		}
	}
	t := s.newTemplate(pod)
	t.sum = sum
	s.templates[sum] = append(s.templates[sum], t)
	return t
}

// sameTemplate says whether a template is that of a pod.
func (s *State) sameTemplate(t *template, pod *corev1.Pod) bool {
	return sameDemands(t.pod, pod) && t.profile == s.profileOf(pod) && preempts(t.pod) == preempts(pod)
}

// preempts says whether a pod may evict others.
func preempts(pod *corev1.Pod) bool {
	return pod.Spec.PreemptionPolicy == nil || *pod.Spec.PreemptionPolicy != corev1.PreemptNever
}

// SetProfiles says what is configured, before anything else is known.
func (s *State) SetProfiles(profiles ...*Profile) {
	s.profiles = map[string]*Profile{}
	for _, p := range profiles {
		s.profiles[p.Name] = p
	}
}

func (s *State) profileOf(pod *corev1.Pod) *Profile {
	if p := s.profiles[pod.Spec.SchedulerName]; p != nil {
		return p
	}
	return s.fallback
}

// ref is template for a pod that waits; unref ends the use.
func (s *State) ref(pod *corev1.Pod) *template {
	t := s.template(pod)
	t.pods++
	return t
}

// unref drops one use of a template.
func (s *State) unref(t *template) {
	if t.pods--; t.pods > 0 {
		return
	}
	same := slices.DeleteFunc(s.templates[t.sum], func(other *template) bool { return other == t })
	if len(same) == 0 {
		delete(s.templates, t.sum)
	} else {
		s.templates[t.sum] = same
	}
	if at := slices.Index(s.hot, t); at >= 0 {
		s.hot = slices.Delete(s.hot, at, at+1)
	}
}

// fingerprint hashes what the scheduler reads of a pod. Parts that are rare or costly to
// hash are left to sameDemands.
func fingerprint(seed maphash.Seed, pod *corev1.Pod) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	write := func(text string) {
		_, _ = h.WriteString(text)
		_ = h.WriteByte(0)
	}
	if owner := metav1.GetControllerOfNoCopy(pod); owner != nil {
		write(string(owner.UID))
	}
	for _, containers := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range containers {
			c := &containers[i]
			write(c.Image)
			var sum uint64 // of an unordered map
			for name, quantity := range c.Resources.Requests {
				sum += maphash.String(seed, string(name)) * uint64(quantity.MilliValue()+1)
			}
			maphash.WriteComparable(&h, sum)
		}
	}
	var sum uint64
	for key, value := range pod.Spec.NodeSelector {
		sum += maphash.String(seed, key) * (maphash.String(seed, value) | 1)
	}
	maphash.WriteComparable(&h, sum)
	for i := range pod.Spec.Tolerations {
		write(pod.Spec.Tolerations[i].Key)
	}
	return h.Sum64()
}

// sameDemands says whether two pods are the same to the scheduler.
func sameDemands(a, b *corev1.Pod) bool {
	ownerA, ownerB := metav1.GetControllerOfNoCopy(a), metav1.GetControllerOfNoCopy(b)
	if (ownerA == nil) != (ownerB == nil) || (ownerA != nil && ownerA.UID != ownerB.UID) {
		return false
	}
	x, y := &a.Spec, &b.Spec
	return !resizing(a) && !resizing(b) && priorityOf(a) == priorityOf(b) &&
		slices.EqualFunc(x.Containers, y.Containers, sameContainer) &&
		slices.EqualFunc(x.InitContainers, y.InitContainers, sameContainer) &&
		sameResources(x.Overhead, y.Overhead) && mapsEqual(x.NodeSelector, y.NodeSelector) &&
		slices.EqualFunc(x.Tolerations, y.Tolerations, func(p, q corev1.Toleration) bool {
			return p.Key == q.Key && p.Operator == q.Operator && p.Value == q.Value && p.Effect == q.Effect
		}) &&
		(x.Affinity == y.Affinity || apiequality.Semantic.DeepEqual(x.Affinity, y.Affinity)) &&
		(x.Resources == y.Resources || apiequality.Semantic.DeepEqual(x.Resources, y.Resources))
}

func sameContainer(a, b corev1.Container) bool {
	always := func(c *corev1.Container) bool {
		return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	}
	return a.Image == b.Image && always(&a) == always(&b) && sameResources(a.Resources.Requests, b.Resources.Requests) &&
		slices.EqualFunc(a.Ports, b.Ports, func(p, q corev1.ContainerPort) bool {
			return p.HostPort == q.HostPort && p.HostIP == q.HostIP && p.Protocol == q.Protocol
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

// resizing says whether what a pod holds differs from what its spec asks for.
func resizing(pod *corev1.Pod) bool {
	for i := range pod.Status.Conditions {
		switch pod.Status.Conditions[i].Type {
		case corev1.PodResizePending, corev1.PodResizeInProgress:
			return true
		}
	}
	return false
}

func (s *State) newTemplate(pod *corev1.Pod) *template {
	t := &template{pod: pod, profile: s.profileOf(pod), containers: len(pod.Spec.Containers) + len(pod.Spec.InitContainers)}
	s.setDemands(t, pod)
	if owner := metav1.GetControllerOfNoCopy(pod); owner != nil {
		t.owner = owner.UID
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		t.images = append(t.images, normalImage(c.Image))
		// The ports of other init containers are free again before the pod runs.
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			t.addPorts(c.Ports)
		}
	}
	for i := range pod.Spec.Containers {
		t.images = append(t.images, normalImage(pod.Spec.Containers[i].Image))
		t.addPorts(pod.Spec.Containers[i].Ports)
	}
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
			t.onlyNodes = demandedNames(required)
		}
		if terms := affinity.PreferredDuringSchedulingIgnoredDuringExecution; len(terms) > 0 {
			// Validation lets no invalid term in; one that came in all the same has no weight.
			if preferred, err := nodeaffinity.NewPreferredSchedulingTerms(terms); err == nil {
				t.preferred = preferred
			}
		}
	}
	return t
}

func (s *State) setDemands(t *template, pod *corev1.Pod) {
	options := resourcehelper.PodResourcesOptions{UseStatusResources: resizing(pod)}
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
	options.NonMissingContainerRequests = corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewMilliQuantity(defaultCPUMilli, resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(defaultMemoryBytes, resource.BinarySI),
	}
	scored := resourcehelper.PodRequests(pod, options)
	t.scoredCPU, t.scoredMemory = scored.Cpu().MilliValue(), scored.Memory().Value()
}

func (t *template) addPorts(ports []corev1.ContainerPort) {
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

// tolerated says whether any toleration covers a taint. (The comparison operators Lt
// and Gt are off by default in 1.36.)
func tolerated(tolerations []corev1.Toleration, taint *corev1.Taint) bool {
	for i := range tolerations {
		t := &tolerations[i]
		if (t.Effect != "" && t.Effect != taint.Effect) || (t.Key != "" && t.Key != taint.Key) {
			continue
		}
		switch t.Operator {
		case corev1.TolerationOpExists:
			return true
		case "", corev1.TolerationOpEqual:
			if t.Value == taint.Value {
				return true
			}
		}
	}
	return false
}

// warm gives a template caches for all slots, taking those of the template that was not
// used for longest when there are many.
func (s *State) warm(t *template) *nodeCache {
	if t.cache == nil {
		t.cache = &nodeCache{}
		if len(s.hot) >= hotTemplates {
			coldest := s.hot[0]
			s.hot = slices.Delete(s.hot, 0, 1)
			t.cache, coldest.cache = coldest.cache, nil
			clear(t.cache.version)
			clear(t.cache.imageAt)
		}
		s.hot = append(s.hot, t)
	}
	t.cache.grow(len(s.nodes))
	return t.cache
}

func (c *nodeCache) grow(slots int) {
	if missing := slots - len(c.version); missing > 0 {
		c.version = append(c.version, make([]uint32, missing)...)
		c.verdict = append(c.verdict, make([]verdict, missing)...)
		c.affinity = append(c.affinity, make([]int32, missing)...)
		c.taints = append(c.taints, make([]int32, missing)...)
		c.imageAt = append(c.imageAt, make([]uint32, missing)...)
		c.image = append(c.image, make([]int32, missing)...)
	}
}
