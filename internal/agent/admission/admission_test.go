package admission

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func list(cpu, memory string) corev1.ResourceList {
	l := corev1.ResourceList{}
	if cpu != "" {
		l[corev1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		l[corev1.ResourceMemory] = resource.MustParse(memory)
	}
	return l
}

func pod(name string, edit func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}
	p.Spec.NodeName = "n"
	p.Spec.Containers = []corev1.Container{{Name: "main"}}
	if edit != nil {
		edit(p)
	}
	return p
}

func asks(cpu, memory string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = list(cpu, memory) }
}

func port(n int32, ip string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: n, HostIP: ip}}
	}
}

func TestCheck(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"zone": "a"}}}
	tainted := node.DeepCopy()
	tainted.Spec.Taints = []corev1.Taint{{Key: "down", Effect: corev1.TaintEffectNoExecute}, {Key: "new", Effect: corev1.TaintEffectNoSchedule}}
	allocatable := list("2", "1Gi")
	allocatable[corev1.ResourcePods] = resource.MustParse("3")
	allocatable["example.com/gpu"] = resource.MustParse("1")
	extended := func(name corev1.ResourceName) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{name: resource.MustParse("2")}
		}
	}
	for name, tc := range map[string]struct {
		pod    *corev1.Pod
		others []*corev1.Pod
		node   *corev1.Node
		want   []string
	}{
		"fits": {pod: pod("a", asks("1", "1Gi")), others: []*corev1.Pod{pod("b", asks("1", ""))}, node: node},
		"cpu and memory": {pod: pod("a", asks("1500m", "1Gi")), others: []*corev1.Pod{pod("b", asks("1", "1"))}, node: node, want: []string{
			"OutOfcpu: Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000",
			"OutOfmemory: Node didn't have enough resource: memory, requested: 1073741824, used: 1, capacity: 1073741824",
		}},
		"pods": {pod: pod("a", nil), others: []*corev1.Pod{pod("b", nil), pod("c", nil), pod("d", nil)}, node: node, want: []string{
			"OutOfpods: Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3"}},
		"extended":            {pod: pod("a", extended("example.com/gpu")), node: node, want: []string{"OutOfexample.com/gpu: Node didn't have enough resource: example.com/gpu, requested: 2, used: 0, capacity: 1"}},
		"the cluster's":       {pod: pod("a", extended("example.com/license")), node: node},
		"huge pages":          {pod: pod("a", extended("hugepages-2Mi")), node: node, want: []string{"OutOfhugepages-2Mi: Node didn't have enough resource: hugepages-2Mi, requested: 2, used: 0, capacity: 0"}},
		"selector":            {pod: pod("a", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "b"} }), node: node, want: []string{"NodeAffinity: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"}},
		"another node's":      {pod: pod("a", func(p *corev1.Pod) { p.Spec.NodeName = "m" }), node: node, want: []string{"NodeName: Predicate NodeName failed: node(s) didn't match the requested node name"}},
		"taint":               {pod: pod("a", nil), node: tainted, want: []string{"TaintToleration: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"}},
		"tolerated":           {pod: pod("a", func(p *corev1.Pod) { p.Spec.Tolerations = []corev1.Toleration{{Key: "down", Operator: "Exists"}} }), node: tainted},
		"port":                {pod: pod("a", port(80, "")), others: []*corev1.Pod{pod("b", port(80, "10.0.0.1"))}, node: node, want: []string{"NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"}},
		"port, other address": {pod: pod("a", port(80, "10.0.0.2")), others: []*corev1.Pod{pod("b", port(80, "10.0.0.1"))}, node: node},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, f := range Check(Input{Pod: tc.pod, Others: tc.others, Node: tc.node, Allocatable: allocatable, NodeName: "n", OS: "linux"}) {
				r := f.Refusal()
				got = append(got, r.Reason+": "+r.Message)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("Check = %q\nwant %q", got, tc.want)
			}
		})
	}
	windows := pod("a", func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} })
	if r := Unfit(Input{Pod: windows, OS: "linux"}); r == nil || r.Reason != "PodOSNotSupported" {
		t.Errorf("Unfit of a Windows pod = %v", r)
	}
}

func TestMakeRoom(t *testing.T) {
	critical := pod("critical", func(p *corev1.Pod) {
		asks("1", "100")(p)
		n := int32(2000000000)
		p.Spec.Priority = &n
	})
	guaranteed := func(name, cpu, memory string) *corev1.Pod {
		return pod(name, func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: list(cpu, memory), Limits: list(cpu, memory)}
		})
	}
	lacks := func(cpu int64) []Failure {
		return []Failure{{Shortage: &Shortage{Resource: corev1.ResourceCPU, Requested: cpu, Used: 1000, Capacity: 1000}}}
	}
	for name, tc := range map[string]struct {
		pod      *corev1.Pod
		running  []*corev1.Pod
		failures []Failure
		victims  string
		standing int
		err      string
	}{
		"not critical":             {pod: pod("a", nil), failures: lacks(1), standing: 1},
		"another failure stands":   {pod: critical, failures: append(lacks(1), Failure{Predicate: "NodeAffinity"}), standing: 1},
		"burstable before more":    {pod: critical, running: []*corev1.Pod{guaranteed("g", "1", "1"), pod("b", asks("1", ""))}, failures: lacks(500), victims: "b"},
		"guaranteed if it must be": {pod: critical, running: []*corev1.Pod{guaranteed("g", "1", "1"), pod("b", asks("200m", ""))}, failures: lacks(500), victims: "g"},
		"the smaller of enough":    {pod: critical, running: []*corev1.Pod{pod("big", asks("1", "9")), pod("small", asks("600m", "1"))}, failures: lacks(500), victims: "small"},
		"one in place of two":      {pod: critical, running: []*corev1.Pod{pod("x", asks("300m", "")), pod("y", asks("300m", "")), pod("z", asks("600m", ""))}, failures: lacks(500), victims: "z"},
		"not other critical ones":  {pod: critical, running: []*corev1.Pod{critical}, failures: lacks(500), err: "no set of running pods found"},
		"pods are a resource": {pod: critical, running: []*corev1.Pod{pod("b", nil)}, victims: "b",
			failures: []Failure{{Shortage: &Shortage{Resource: corev1.ResourcePods, Requested: 1, Used: 1, Capacity: 1}}}},
	} {
		t.Run(name, func(t *testing.T) {
			victims, standing, err := MakeRoom(tc.pod, tc.running, tc.failures)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("MakeRoom: %v, want %q", err, tc.err)
				}
				return
			}
			var names []string
			for _, v := range victims {
				names = append(names, v.Name)
			}
			if got := strings.Join(names, " "); err != nil || got != tc.victims || len(standing) != tc.standing {
				t.Errorf("MakeRoom = %q, %v, %v; want %q, %d", got, standing, err, tc.victims, tc.standing)
			}
		})
	}
}
