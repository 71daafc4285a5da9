package resize

import (
	"encoding/json"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// Annotation is where a Record lies among the sandbox's annotations.
const Annotation = "gantry.dev/resources"

// Grant is what a node has given a pod: the resources of the pod as a whole and of each of its
// containers.
type Grant struct {
	Pod        *corev1.ResourceRequirements           `json:"pod,omitempty"`
	Containers map[string]corev1.ResourceRequirements `json:"containers"`
}

// Asked is what a pod's spec asks for. It shares its insides with the pod.
func Asked(pod *corev1.Pod) Grant {
	g := Grant{Pod: pod.Spec.Resources, Containers: make(map[string]corev1.ResourceRequirements, len(pod.Spec.Containers)+len(pod.Spec.InitContainers))}
	for i := range pod.Spec.InitContainers {
		g.Containers[pod.Spec.InitContainers[i].Name] = pod.Spec.InitContainers[i].Resources
	}
	for i := range pod.Spec.Containers {
		g.Containers[pod.Spec.Containers[i].Name] = pod.Spec.Containers[i].Resources
	}
	return g
}

// Apply returns the pod with the granted resources in its spec: the pod itself where that is
// what it asks for, else a copy.
func (g Grant) Apply(pod *corev1.Pod) *corev1.Pod {
	changed := pod
	edit := func() *corev1.Pod {
		if changed == pod {
			changed = pod.DeepCopy()
		}
		return changed
	}
	if !equality.Semantic.DeepEqual(pod.Spec.Resources, g.Pod) {
		edit().Spec.Resources = g.Pod.DeepCopy()
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if granted, ok := g.Containers[c.Name]; ok && !equality.Semantic.DeepEqual(c.Resources, granted) {
			edit().Spec.InitContainers[i].Resources = *granted.DeepCopy()
		}
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if granted, ok := g.Containers[c.Name]; ok && !equality.Semantic.DeepEqual(c.Resources, granted) {
			edit().Spec.Containers[i].Resources = *granted.DeepCopy()
		}
	}
	return changed
}

// Record is what a pod was granted and what its running containers have of it.
type Record struct {
	Granted Grant `json:"granted"`
	// Given holds, by container ID, what a container has where that is not what was granted: it
	// runs since before the last resize.
	Given map[string]corev1.ResourceRequirements `json:"given,omitempty"`
	// GivenPod is what the pod's own cgroup has where that is not what was granted.
	GivenPod *corev1.ResourceRequirements `json:"givenPod,omitempty"`
}

// Parse reads a Record from the sandbox's annotation.
func Parse(text string) (Record, error) {
	var r Record
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return Record{}, fmt.Errorf("reading what a pod was granted: %w", err)
	}
	return r, nil
}

// Text is the Record as Parse reads it.
func (r Record) Text() (string, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("writing what a pod was granted: %w", err)
	}
	return string(text), nil
}

// Accept returns the Record after a new grant. Containers that run keep what they have until
// they are told otherwise; running maps their IDs to names.
func (r Record) Accept(grant Grant, running map[string]string) Record {
	next := Record{Granted: grant, Given: map[string]corev1.ResourceRequirements{}, GivenPod: r.GivenPod}
	for id, name := range running {
		next.Given[id] = r.Has(id, name)
	}
	if next.GivenPod == nil && !SameRequirements(r.Granted.Pod, grant.Pod) {
		next.GivenPod = r.Granted.Pod
		if next.GivenPod == nil { // it had nothing of its own, which nil does not say
			next.GivenPod = &corev1.ResourceRequirements{}
		}
	}
	return next
}

// Has is what a running container has.
func (r Record) Has(id, name string) corev1.ResourceRequirements {
	if given, ok := r.Given[id]; ok {
		return given
	}
	return r.Granted.Containers[name]
}

// HasPod is what the pod's own cgroup has.
func (r Record) HasPod() *corev1.ResourceRequirements {
	if r.GivenPod != nil {
		return r.GivenPod
	}
	return r.Granted.Pod
}

// Clone copies the Record's maps.
func (r Record) Clone() Record {
	r.Given = maps.Clone(r.Given)
	return r
}

// Settled returns the Record without what says nothing any more: containers that have what was
// granted, and those that are gone. running maps IDs to names.
func (r Record) Settled(running map[string]string) Record {
	next := Record{Granted: r.Granted, GivenPod: r.GivenPod}
	for id, given := range r.Given {
		name, runs := running[id]
		granted := r.Granted.Containers[name]
		if !runs || SameRequirements(&given, &granted) {
			continue
		}
		if next.Given == nil {
			next.Given = map[string]corev1.ResourceRequirements{}
		}
		next.Given[id] = given
	}
	if next.GivenPod != nil && SameRequirements(next.GivenPod, r.Granted.Pod) {
		next.GivenPod = nil
	}
	return next
}

// InProgress reports whether something has not yet what was granted.
func (r Record) InProgress() bool { return len(r.Given) > 0 || r.GivenPod != nil }

// SameRequirements compares CPU and memory, the resources that can be changed in place.
func SameRequirements(a, b *corev1.ResourceRequirements) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		for _, lists := range [][2]corev1.ResourceList{{a.Requests, b.Requests}, {a.Limits, b.Limits}} {
			x, y := lists[0][name], lists[1][name]
			if x.Cmp(y) != 0 {
				return false
			}
		}
	}
	return true
}

// Increases reports whether a pod asks for more CPU or memory in all than it was granted.
func Increases(asked, granted corev1.ResourceList) bool {
	return asked.Cpu().Cmp(*granted.Cpu()) > 0 || asked.Memory().Cmp(*granted.Memory()) > 0
}
