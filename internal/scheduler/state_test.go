package scheduler

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func newNode(name, cpu, memory string, change ...func(*corev1.Node)) *corev1.Node {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory),
			corev1.ResourcePods: resource.MustParse("110"),
		}},
	}
	for _, f := range change {
		f(node)
	}
	return node
}

func newPod(name, cpu, memory string, change ...func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)},
		Spec:       corev1.PodSpec{SchedulerName: "default-scheduler", Containers: []corev1.Container{{Name: "c", Image: "app:1"}}},
	}
	requests := corev1.ResourceList{}
	if cpu != "" {
		requests[corev1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		requests[corev1.ResourceMemory] = resource.MustParse(memory)
	}
	pod.Spec.Containers[0].Resources.Requests = requests
	for _, f := range change {
		f(pod)
	}
	return pod
}

// ownedBy makes a pod one of a ReplicaSet, whose selector knowOwner tells a State.
func ownedBy(uid string) func(*corev1.Pod) {
	yes := true
	return func(pod *corev1.Pod) {
		pod.Labels = map[string]string{"app": uid}
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: uid, UID: types.UID(uid), Controller: &yes}}
	}
}

func knowOwner(s *State, uid string) {
	s.SetOwner("apps/v1", "ReplicaSet", "default", uid, &metav1.LabelSelector{MatchLabels: map[string]string{"app": uid}})
}

func taint(key, effect string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: corev1.TaintEffect(effect)})
	}
}

func label(key, value string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Labels[key] = value }
}

func requiredTerm(term corev1.NodeSelectorTerm) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{term}},
		}}
	}
}

func hostPortOf(port int32, ip string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: port, HostIP: ip, ContainerPort: port, Protocol: "TCP"}}
	}
}

func priority(value int32) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { pod.Spec.Priority = &value }
}

// tail is what follows the histogram when no preemption is possible.
func tail(total int, text string) string {
	return fmt.Sprintf(" no new claims to deallocate, preemption: 0/%d nodes are available: %s.", total, text)
}

type messageCase struct {
	nodes  []*corev1.Node
	placed map[*corev1.Pod]string
	pod    *corev1.Pod
	want   string
}

func messageCases() map[string]messageCase {
	never := corev1.PreemptNever
	return map[string]messageCase{
		"no nodes": {nil, nil, newPod("p", "", ""), "no nodes available to schedule pods"},
		"too large": {
			[]*corev1.Node{newNode("a", "1", "1Gi")}, nil, newPod("p", "2", "2Gi"),
			"0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory." + tail(1, "1 Preemption is not helpful for scheduling"),
		},
		"full": {
			[]*corev1.Node{newNode("a", "1", "1Gi")}, map[*corev1.Pod]string{newPod("q", "800m", ""): "a"}, newPod("p", "500m", ""),
			"0/1 nodes are available: 1 Insufficient cpu." + tail(1, "1 No preemption victims found for incoming pod"),
		},
		"the first filter that fails is told": {
			[]*corev1.Node{
				newNode("a", "1", "1Gi", taint("node-role.kubernetes.io/control-plane", "NoSchedule")),
				newNode("b", "100m", "1Gi"),
				newNode("c", "1", "1Gi", func(n *corev1.Node) { n.Spec.Unschedulable = true }, taint("node.kubernetes.io/unschedulable", "NoSchedule")),
				newNode("d", "1", "1Gi", taint("node.kubernetes.io/not-ready", "NoExecute")),
			},
			nil, newPod("p", "500m", ""),
			"0/4 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable, 2 node(s) had untolerated taint(s)." +
				tail(4, "4 Preemption is not helpful for scheduling"),
		},
		"selector": {
			[]*corev1.Node{newNode("a", "1", "1Gi"), newNode("b", "1", "1Gi", label("disk", "hdd"))}, nil,
			newPod("p", "", "", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }),
			"0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector." + tail(2, "2 Preemption is not helpful for scheduling"),
		},
		"one name demanded": {
			[]*corev1.Node{newNode("a", "1", "1Gi"), newNode("b", "1", "1Gi", taint("x", "NoSchedule"))}, nil,
			newPod("p", "", "", requiredTerm(corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: "In", Values: []string{"b"}}}})),
			"0/2 nodes are available: 1 node(s) didn't satisfy plugin(s) [NodeAffinity], 1 node(s) had untolerated taint(s)." +
				tail(2, "2 Preemption is not helpful for scheduling"),
		},
		"ports": {
			[]*corev1.Node{newNode("a", "1", "1Gi")}, map[*corev1.Pod]string{newPod("q", "", "", hostPortOf(80, "127.0.0.1")): "a"},
			newPod("p", "", "", hostPortOf(80, "")),
			"0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports." + tail(1, "1 No preemption victims found for incoming pod"),
		},
		"pods": {
			[]*corev1.Node{newNode("a", "1", "1Gi", func(n *corev1.Node) { n.Status.Allocatable[corev1.ResourcePods] = resource.MustParse("0") })}, nil,
			newPod("p", "", ""),
			"0/1 nodes are available: 1 Too many pods." + tail(1, "1 No preemption victims found for incoming pod"),
		},
		"extended": {
			[]*corev1.Node{newNode("a", "1", "1Gi")}, nil,
			newPod("p", "", "", func(p *corev1.Pod) {
				p.Spec.Containers[0].Resources.Requests["example.com/gpu"] = resource.MustParse("1")
			}),
			"0/1 nodes are available: 1 Insufficient example.com/gpu." + tail(1, "1 Preemption is not helpful for scheduling"),
		},
		"resource claims": {
			[]*corev1.Node{newNode("a", "1", "1Gi")}, nil,
			newPod("p", "", "", func(p *corev1.Pod) { p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu"}} }),
			"0/1 nodes are available: pod has resource claims, which are not allocated here. not found",
		},
		"never preempts": {
			[]*corev1.Node{newNode("a", "1", "1Gi")}, nil, newPod("p", "2", "", func(p *corev1.Pod) { p.Spec.PreemptionPolicy = &never }),
			"0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: not eligible due to preemptionPolicy=Never.",
		},
		"victims unknown": {
			[]*corev1.Node{newNode("a", "1", "1Gi")}, map[*corev1.Pod]string{newPod("q", "800m", ""): "a"}, newPod("p", "500m", "", priority(5)),
			"0/1 nodes are available: 1 Insufficient cpu.",
		},
	}
}

func TestMessages(t *testing.T) {
	for name, tc := range messageCases() {
		t.Run(name, func(t *testing.T) {
			s := NewState()
			for _, node := range tc.nodes {
				s.SetNode(node)
			}
			for pod, node := range tc.placed {
				s.AddPod(pod, node)
			}
			node, failure := s.Place(tc.pod)
			if failure == nil {
				t.Fatalf("placed on %s", node)
			}
			if failure.Message != tc.want {
				t.Errorf("message\n got %s\nwant %s", failure.Message, tc.want)
			}
			if got := s.Diagnose(tc.pod).Message; got != tc.want {
				t.Errorf("diagnosis\n got %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestPlaceChooses(t *testing.T) {
	image := func(n *corev1.Node) {
		n.Status.Images = []corev1.ContainerImage{{Names: []string{"app:1"}, SizeBytes: 900 << 20}}
	}
	prefers := func(pod *corev1.Pod) {
		pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{
			Weight: 50, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "disk", Operator: "In", Values: []string{"ssd"}}}},
		}}}}
	}
	for name, tc := range map[string]struct {
		nodes  []*corev1.Node
		placed map[*corev1.Pod]string
		pod    *corev1.Pod
		want   string
	}{
		"the emptier":            {[]*corev1.Node{newNode("a", "4", "4Gi"), newNode("b", "8", "8Gi")}, nil, newPod("p", "1", "1Gi"), "b"},
		"preferred affinity":     {[]*corev1.Node{newNode("a", "8", "8Gi"), newNode("b", "4", "4Gi", label("disk", "ssd"))}, nil, newPod("p", "1", "1Gi", prefers), "b"},
		"away from a soft taint": {[]*corev1.Node{newNode("a", "8", "8Gi", taint("old", "PreferNoSchedule")), newNode("b", "4", "4Gi")}, nil, newPod("p", "1", "1Gi"), "b"},
		"to the image":           {[]*corev1.Node{newNode("a", "4", "4Gi"), newNode("b", "4", "4Gi", image)}, nil, newPod("p", "1", "1Gi"), "b"},
		"away from its own kind": {
			[]*corev1.Node{newNode("a", "8", "8Gi"), newNode("b", "7", "7Gi")},
			map[*corev1.Pod]string{newPod("q", "1m", "1Mi", ownedBy("rs")): "a"}, newPod("p", "1m", "1Mi", ownedBy("rs")), "b",
		},
		"to the other zone": {
			[]*corev1.Node{
				newNode("a1", "8", "8Gi", label(corev1.LabelTopologyZone, "a")), newNode("a2", "8", "8Gi", label(corev1.LabelTopologyZone, "a")),
				newNode("b1", "8", "8Gi", label(corev1.LabelTopologyZone, "b")),
			},
			map[*corev1.Pod]string{newPod("q", "1m", "1Mi", ownedBy("rs")): "a1"}, newPod("p", "1m", "1Mi", ownedBy("rs")), "b1",
		},
		"tolerated taint": {
			[]*corev1.Node{newNode("a", "8", "8Gi", taint("gpu", "NoSchedule"))}, nil,
			newPod("p", "1", "", func(p *corev1.Pod) { p.Spec.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: "Exists"}} }), "a",
		},
		"other address, same port": {
			[]*corev1.Node{newNode("a", "8", "8Gi")}, map[*corev1.Pod]string{newPod("q", "", "", hostPortOf(80, "10.0.0.1")): "a"},
			newPod("p", "", "", hostPortOf(80, "10.0.0.2")), "a",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewState()
			knowOwner(s, "rs")
			for _, node := range tc.nodes {
				s.SetNode(node)
			}
			for pod, node := range tc.placed {
				s.AddPod(pod, node)
			}
			node, failure := s.Place(tc.pod)
			if failure != nil || node != tc.want {
				t.Errorf("Place = %q, %v; want %s", node, failure, tc.want)
			}
			if d := s.Diagnose(tc.pod); d.Chosen != tc.want {
				t.Errorf("Diagnose chooses %q, want %s", d.Chosen, tc.want)
			}
		})
	}
}

func TestInitContainersAndOverhead(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	list := func(cpu string) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse(cpu)}}
	}
	pod := newPod("p", "500m", "", func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{
			{Name: "sidecar", RestartPolicy: &always, Resources: list("300m")},
			{Name: "init", Resources: list("700m")},
		}
		p.Spec.Overhead = corev1.ResourceList{"cpu": resource.MustParse("100m")}
	})
	// max(500m+300m, 700m+300m) + 100m
	s := NewState()
	s.SetNode(newNode("a", "1099m", "1Gi"))
	if _, failure := s.Place(pod); failure == nil {
		t.Error("placed with 1099m free, needs 1100m")
	}
	s.SetNode(newNode("a", "1100m", "1Gi"))
	if _, failure := s.Place(pod); failure != nil {
		t.Errorf("not placed with 1100m free: %v", failure)
	}
}

func TestDiagnose(t *testing.T) {
	s := NewState()
	s.SetNode(newNode("a", "1", "1Gi"))
	s.SetNode(newNode("b", "1", "1Gi", taint("x", "NoSchedule")))
	got := s.Diagnose(newPod("p", "500m", "512Mi"))
	want := Diagnosis{Chosen: "a", Nodes: []NodeDiagnosis{
		{Node: "a", Total: 50 + 75 + 300, Scores: []Score{
			{"TaintToleration", 100, 3}, {"NodeAffinity", 0, 2}, {"NodeResourcesFit", 50, 1}, {"PodTopologySpread", 0, 2},
			{"InterPodAffinity", 0, 2}, {"NodeResourcesBalancedAllocation", 75, 1}, {"ImageLocality", 0, 1},
		}},
		{Node: "b", Filter: "TaintToleration", Reasons: []string{"node(s) had untolerated taint(s)"}},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Diagnose (-want +got):\n%s", diff)
	}
}

// FuzzState plays random changes: no node is ever overcommitted, a pod is refused only
// if no node has room, and what is counted is what a recount gives.
func FuzzState(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 1))
		s := NewState()
		nodes := map[string]*corev1.Node{}
		pods := map[types.UID]*corev1.Pod{}
		on := map[types.UID]string{}
		for step := range 300 {
			switch random.IntN(10) {
			case 0, 1:
				node := newNode(fmt.Sprintf("n%d", random.IntN(8)), fmt.Sprintf("%dm", 500+random.IntN(2000)), "4Gi")
				if random.IntN(2) == 0 {
					node.Labels[corev1.LabelTopologyZone] = fmt.Sprintf("z%d", random.IntN(3))
				}
				if random.IntN(4) == 0 {
					taint("x", "NoSchedule")(node)
				}
				if random.IntN(4) == 0 {
					node.Status.Allocatable["example.com/gpu"] = resource.MustParse("2")
				}
				nodes[node.Name] = node
				s.SetNode(node)
			case 2:
				name := fmt.Sprintf("n%d", random.IntN(8))
				delete(nodes, name)
				s.RemoveNode(name)
			case 3:
				for uid := range pods {
					s.RemovePod(uid)
					delete(pods, uid)
					delete(on, uid)
					break
				}
			default:
				pod := newPod(fmt.Sprintf("p%d", step), fmt.Sprintf("%dm", 100*random.IntN(6)), "64Mi", ownedBy(fmt.Sprintf("rs%d", random.IntN(3))))
				if random.IntN(6) == 0 {
					hostPortOf(80, "")(pod)
				}
				if random.IntN(6) == 0 {
					pod.Spec.Containers[0].Resources.Requests["example.com/gpu"] = resource.MustParse("1")
				}
				before := map[string]bool{}
				for name, node := range nodes {
					before[name] = roomFor(node, pod, pods, on)
				}
				node, failure := s.Place(pod)
				if failure == nil && !before[node] {
					t.Fatalf("step %d: %s placed on %s, which has no room", step, pod.Name, node)
				}
				for name, room := range before {
					if failure != nil && room {
						t.Fatalf("step %d: %s refused (%s) though %s has room", step, pod.Name, failure, name)
					}
				}
				if failure == nil {
					s.AddPod(pod, node)
					pods[pod.UID], on[pod.UID] = pod, node
				}
			}
		}
		checkEmpty(t, s, pods)
	})
}

// checkEmpty removes all pods and looks for anything that is still counted.
func checkEmpty(t *testing.T, s *State, pods map[types.UID]*corev1.Pod) {
	t.Helper()
	for uid := range pods {
		s.RemovePod(uid)
	}
	for i, used := range s.used {
		if used != 0 {
			t.Errorf("used[%d] is %d with no pods", i, used)
		}
	}
	if len(s.pods)+len(s.lost)+len(s.nominees) != 0 || len(s.templates) != 0 || len(s.shapes) != 0 || len(s.spaces) != 0 || len(s.holders) != 0 {
		t.Errorf("%d pods, %d templates, %d shapes left", len(s.pods), len(s.templates), len(s.shapes))
	}
	if len(s.views)+len(s.spaceViews)+len(s.wideViews)+len(s.heldViews)+len(s.planned)+len(s.hot) != 0 {
		t.Errorf("views %v, %d planned, %d hot left", s.views, len(s.planned), len(s.hot))
	}
}

// roomFor decides slowly and plainly what the filters decide fast.
func roomFor(node *corev1.Node, pod *corev1.Pod, pods map[types.UID]*corev1.Pod, on map[types.UID]string) bool {
	if len(node.Spec.Taints) > 0 {
		return false
	}
	left := map[corev1.ResourceName]int64{}
	for name, quantity := range node.Status.Allocatable {
		left[name] = quantity.MilliValue()
	}
	left[corev1.ResourcePods] -= 1000
	port := false
	take := func(p *corev1.Pod) {
		for name, quantity := range p.Spec.Containers[0].Resources.Requests {
			left[name] -= quantity.MilliValue()
		}
	}
	for uid, name := range on {
		if name != node.Name {
			continue
		}
		take(pods[uid])
		left[corev1.ResourcePods] -= 1000
		port = port || len(pods[uid].Spec.Containers[0].Ports) > 0
	}
	for name, quantity := range pod.Spec.Containers[0].Resources.Requests {
		if quantity.Sign() > 0 && left[name] < quantity.MilliValue() {
			return false
		}
	}
	return left[corev1.ResourcePods] >= 0 && !(port && len(pod.Spec.Containers[0].Ports) > 0)
}
