package resize

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func needs(cpu, cpuLimit, memory, memoryLimit string) corev1.ResourceRequirements {
	var r corev1.ResourceRequirements
	set := func(list *corev1.ResourceList, name corev1.ResourceName, text string) {
		if text == "" {
			return
		}
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[name] = resource.MustParse(text)
	}
	set(&r.Requests, corev1.ResourceCPU, cpu)
	set(&r.Limits, corev1.ResourceCPU, cpuLimit)
	set(&r.Requests, corev1.ResourceMemory, memory)
	set(&r.Limits, corev1.ResourceMemory, memoryLimit)
	return r
}

func podOf(r corev1.ResourceRequirements) *corev1.Pod {
	p := &corev1.Pod{}
	p.Spec.Containers = []corev1.Container{{Name: "main", Resources: r}}
	return p
}

// TestLifeOfARecord follows one resize through its steps, each as read back from its text.
func TestLifeOfARecord(t *testing.T) {
	small, large := needs("100m", "100m", "10Mi", "10Mi"), needs("200m", "200m", "20Mi", "20Mi")
	running := map[string]string{"id1": "main"}
	again := func(r Record) Record {
		text, err := r.Text()
		if err != nil {
			t.Fatal(err)
		}
		read, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return read
	}
	record := again(Record{Granted: Asked(podOf(small))})
	wanted := podOf(large)
	if got := record.Granted.Apply(wanted); got == wanted || !SameRequirements(&got.Spec.Containers[0].Resources, &small) {
		t.Errorf("a pod that asks for more runs with %v", got.Spec.Containers[0].Resources)
	}
	if len(Changes(podOf(small), record, []Running{{"id1", "main"}})) != 0 || record.InProgress() {
		t.Error("nothing was granted, and something is to change")
	}
	record = again(record.Accept(Asked(wanted), running))
	if got := record.Granted.Apply(wanted); got != wanted {
		t.Error("a pod that has what it asks for was copied")
	}
	if !record.InProgress() {
		t.Fatal("nothing is in progress after a grant")
	}
	changes := Changes(wanted, record, []Running{{"id1", "main"}})
	if len(changes) != 1 || changes[0].ID != "id1" || changes[0].Restart || changes[0].Direction(nil, nil, corev1.ResourceMemory) != 1 {
		t.Fatalf("Changes = %+v", changes)
	}
	half := record.Clone()
	half.Given["id1"] = Take(record.Has("id1", "main"), large, corev1.ResourceMemory)
	half = again(half.Settled(running))
	if diff := cmp.Diff(needs("100m", "100m", "20Mi", "20Mi"), half.Has("id1", "main")); diff != "" {
		t.Errorf("after its memory was given the container has (-want +got):\n%s", diff)
	}
	// A second resize before the first has ended: the container still has what it has.
	largest := needs("300m", "300m", "30Mi", "30Mi")
	twice := again(half.Accept(Asked(podOf(largest)), running))
	if diff := cmp.Diff(half.Has("id1", "main"), twice.Has("id1", "main")); diff != "" {
		t.Errorf("a second grant changed what the container has:\n%s", diff)
	}
	half.Given["id1"] = Take(half.Given["id1"], large, corev1.ResourceCPU)
	if settled := again(half.Settled(running)); settled.InProgress() {
		t.Errorf("it is still in progress: %+v", settled)
	}
	if settled := twice.Settled(map[string]string{"id2": "main"}); settled.InProgress() {
		t.Error("a container that is gone keeps a resize in progress")
	}
}

// TestPodLevel gives resources to a pod as a whole that had none: its containers stay as they are.
func TestPodLevel(t *testing.T) {
	before := podOf(needs("", "", "", ""))
	record := Record{Granted: Asked(before)}
	after := podOf(needs("", "", "", ""))
	whole := needs("1", "2", "", "")
	after.Spec.Resources = &whole
	record = record.Accept(Asked(after), map[string]string{"id": "main"}).Settled(map[string]string{"id": "main"})
	if !record.InProgress() {
		t.Fatal("the pod's own cgroup is not to change")
	}
	if changes := Changes(after, record, []Running{{"id", "main"}}); len(changes) != 1 || changes[0].Direction(record.HasPod(), after.Spec.Resources, corev1.ResourceCPU) != -1 {
		t.Errorf("a container without a limit takes the pod's: %+v", changes)
	}
	record.GivenPod = nil
	if record.InProgress() {
		t.Error("it is in progress after the pod's cgroup has changed")
	}
}

func TestChanges(t *testing.T) {
	for name, tc := range map[string]struct {
		has, granted corev1.ResourceRequirements
		pod          *corev1.ResourceRequirements
		policy       []corev1.ContainerResizePolicy
		changes      int
		restart      bool
		cpu, memory  int
	}{
		"same":              {has: needs("1", "1", "1Mi", "1Mi"), granted: needs("1000m", "1", "1024Ki", "1Mi")},
		"grows and shrinks": {has: needs("1", "1", "2Mi", "2Mi"), granted: needs("2", "2", "1Mi", "1Mi"), changes: 1, cpu: 1, memory: -1},
		"request alone":     {has: needs("2", "2", "", ""), granted: needs("1", "2", "", ""), changes: 1, cpu: -1},
		"limit added":       {has: needs("", "", "1Mi", ""), granted: needs("", "", "1Mi", "4Mi"), changes: 1, memory: -1},
		"restarts for CPU":  {has: needs("1", "1", "", ""), granted: needs("2", "2", "", ""), policy: []corev1.ContainerResizePolicy{{ResourceName: "cpu", RestartPolicy: corev1.RestartContainer}}, changes: 1, restart: true, cpu: 1},
		"not for the other": {has: needs("1", "1", "", ""), granted: needs("2", "2", "", ""), policy: []corev1.ContainerResizePolicy{{ResourceName: "memory", RestartPolicy: corev1.RestartContainer}}, changes: 1, cpu: 1},
		"the pod's limit":   {has: needs("", "", "", ""), granted: needs("", "", "", ""), pod: &corev1.ResourceRequirements{Limits: corev1.ResourceList{"cpu": resource.MustParse("3")}}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := podOf(tc.granted)
			pod.Spec.Resources = tc.pod
			pod.Spec.Containers[0].ResizePolicy = tc.policy
			record := Record{Granted: Asked(pod), Given: map[string]corev1.ResourceRequirements{"id": tc.has}}
			changes := Changes(pod, record, []Running{{"id", "main"}, {"other", "gone"}})
			if len(changes) != tc.changes {
				t.Fatalf("Changes = %+v, want %d", changes, tc.changes)
			}
			if len(changes) == 0 {
				return
			}
			c := changes[0]
			cpu, memory := c.Direction(nil, nil, corev1.ResourceCPU), c.Direction(nil, nil, corev1.ResourceMemory)
			if c.Restart != tc.restart || cpu != tc.cpu || memory != tc.memory {
				t.Errorf("restart %v, cpu %d, memory %d; want %v, %d, %d", c.Restart, cpu, memory, tc.restart, tc.cpu, tc.memory)
			}
		})
	}
}

func TestCheckMemory(t *testing.T) {
	use := MemoryUse{Pod: 100, Containers: map[string]int64{"a": 60, "b": 40}}
	if err := CheckMemory(101, map[string]int64{"a": 61, "b": 0}, []string{"a", "b"}, use); err != nil {
		t.Errorf("limits above the use are refused: %v", err)
	}
	err := CheckMemory(100, map[string]int64{"a": 10}, []string{"a", "b"}, use)
	want := `cannot decrease memory limits: [attempting to set pod memory limit (100) below current usage (100), attempting to set container "a" memory limit (10) below current usage (60)]`
	if err == nil || err.Error() != want {
		t.Errorf("CheckMemory = %v\nwant %s", err, want)
	}
}

func TestMessageAndStatus(t *testing.T) {
	got := Message("Pod resize started", podOf(needs("1", "", "", "")), 3, "")
	if want := `Pod resize started: {"containers":[{"name":"main","resources":{"requests":{"cpu":"1"}}}],"generation":3}`; got != want {
		t.Errorf("Message = %s\nwant %s", got, want)
	}
	if got := Message("Pod resize error", podOf(needs("", "", "", "")), 1, "why"); !strings.HasSuffix(got, `"generation":1,"error":"why"}`) {
		t.Errorf("Message = %s", got)
	}
	granted, has := needs("2", "2", "2Mi", "2Mi"), needs("1", "2", "2Mi", "4Mi")
	granted.Requests[corev1.ResourceEphemeralStorage] = resource.MustParse("1Gi")
	want := needs("1", "2", "2Mi", "4Mi")
	want.Requests[corev1.ResourceEphemeralStorage] = resource.MustParse("1Gi")
	if diff := cmp.Diff(&want, Status(granted, has)); diff != "" {
		t.Errorf("Status (-want +got):\n%s", diff)
	}
}
