package resize

import (
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// Running is a container that has a process.
type Running struct{ ID, Name string }

// Change is a running container that has other resources than it was granted.
type Change struct {
	ID        string
	Container *corev1.Container // with what was granted
	Has       corev1.ResourceRequirements
	Restart   bool // its resize policy wants it restarted
}

// Changes lists what must change for the pod, whose spec has what was granted.
func Changes(pod *corev1.Pod, record Record, running []Running) []Change {
	var list []Change
	for _, r := range running {
		c := find(pod, r.Name)
		if c == nil {
			continue
		}
		has := record.Has(r.ID, r.Name)
		before, after := effective(record.HasPod(), has), effective(pod.Spec.Resources, c.Resources)
		if before == after {
			continue
		}
		change := Change{ID: r.ID, Container: c, Has: has}
		change.Restart = before.cpu != after.cpu && restarts(c, corev1.ResourceCPU) ||
			before.memory != after.memory && restarts(c, corev1.ResourceMemory)
		list = append(list, change)
	}
	return list
}

func restarts(c *corev1.Container, name corev1.ResourceName) bool {
	for _, policy := range c.ResizePolicy {
		if policy.ResourceName == name {
			return policy.RestartPolicy == corev1.RestartContainer
		}
	}
	return false
}

func find(pod *corev1.Pod, name string) *corev1.Container {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return &pod.Spec.InitContainers[i]
		}
	}
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return &pod.Spec.Containers[i]
		}
	}
	return nil
}

// pair is a request and a limit, of CPU in millicores or of memory in bytes.
type pair struct{ request, limit int64 }

type amounts struct{ cpu, memory pair }

// effective is what a container's cgroup is made from: where it has no limit, the pod's holds.
func effective(pod *corev1.ResourceRequirements, c corev1.ResourceRequirements) amounts {
	a := amounts{
		cpu:    pair{c.Requests.Cpu().MilliValue(), c.Limits.Cpu().MilliValue()},
		memory: pair{c.Requests.Memory().Value(), c.Limits.Memory().Value()},
	}
	if pod == nil {
		return a
	}
	if a.cpu.limit == 0 {
		a.cpu.limit = pod.Limits.Cpu().MilliValue()
	}
	if a.memory.limit == 0 {
		a.memory.limit = pod.Limits.Memory().Value()
	}
	return a
}

// Direction says how a change alters the limit of a resource, and where that stays its request:
// less than 0 shrinks, more than 0 grows, 0 leaves it.
func (c Change) Direction(podBefore, podAfter *corev1.ResourceRequirements, name corev1.ResourceName) int {
	before, after := effective(podBefore, c.Has), effective(podAfter, c.Container.Resources)
	x, y := before.cpu, after.cpu
	if name == corev1.ResourceMemory {
		x, y = before.memory, after.memory
	}
	switch {
	case x.limit != y.limit:
		// No limit is more than any limit.
		if y.limit == 0 || x.limit != 0 && y.limit > x.limit {
			return 1
		}
		return -1
	case y.request > x.request:
		return 1
	case y.request < x.request:
		return -1
	}
	return 0
}

// Take returns what a container has after one resource of a change was given.
func Take(has, granted corev1.ResourceRequirements, name corev1.ResourceName) corev1.ResourceRequirements {
	next := *has.DeepCopy()
	set := func(list *corev1.ResourceList, from corev1.ResourceList) {
		q, ok := from[name]
		if !ok {
			delete(*list, name)
			return
		}
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[name] = q
	}
	set(&next.Requests, granted.Requests)
	set(&next.Limits, granted.Limits)
	return next
}

// MemoryUse is what is used of memory when a limit is to shrink, in bytes.
type MemoryUse struct {
	Pod        int64
	Containers map[string]int64 // by name
}

// CheckMemory refuses limits of memory below what is used. podLimit and the containers' limits
// are those that shrink, in bytes; 0 is none.
func CheckMemory(podLimit int64, limits map[string]int64, order []string, use MemoryUse) error {
	var problems []string
	if podLimit > 0 && use.Pod >= podLimit {
		problems = append(problems, fmt.Sprintf("attempting to set pod memory limit (%d) below current usage (%d)", podLimit, use.Pod))
	}
	for _, name := range order {
		if limit := limits[name]; limit > 0 && use.Containers[name] >= limit {
			problems = append(problems, fmt.Sprintf("attempting to set container %q memory limit (%d) below current usage (%d)", name, limit, use.Containers[name]))
		}
	}
	switch len(problems) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("cannot decrease memory limits: %s", problems[0])
	}
	text := problems[0]
	for _, p := range problems[1:] {
		text += ", " + p
	}
	return fmt.Errorf("cannot decrease memory limits: [%s]", text)
}

// Message is the text of an event about a resize: what happened, then what is wanted, in JSON.
func Message(what string, pod *corev1.Pod, generation int64, problem string) string {
	type container struct {
		Name      string                      `json:"name"`
		Resources corev1.ResourceRequirements `json:"resources,omitempty"`
	}
	summary := struct {
		InitContainers []container `json:"initContainers,omitempty"`
		Containers     []container `json:"containers,omitempty"`
		Generation     int64       `json:"generation"`
		Error          string      `json:"error,omitempty"`
	}{Generation: generation, Error: problem}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		summary.InitContainers = append(summary.InitContainers, container{c.Name, c.Resources})
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		summary.Containers = append(summary.Containers, container{c.Name, c.Resources})
	}
	text, err := json.Marshal(summary)
	if err != nil {
		return what
	}
	return what + ": " + string(text)
}

// Status is what a running container's status shows: what was granted, with CPU and memory as
// the container has them.
func Status(granted, has corev1.ResourceRequirements) *corev1.ResourceRequirements {
	status := granted.DeepCopy()
	merge := func(list corev1.ResourceList, from corev1.ResourceList) {
		if list == nil {
			return
		}
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			if q, ok := from[name]; ok {
				list[name] = q
			} else {
				delete(list, name)
			}
		}
	}
	merge(status.Requests, has.Requests)
	merge(status.Limits, has.Limits)
	return status
}
