package parity

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"

	"gantry.dev/gantry/internal/scheduler"
)

// quality is how well pods lie. Less is better in all.
type quality struct {
	unplaced  int
	nodesUsed int
	deviation float64 // of the nodes' shares of CPU that are asked for, in percent
	zoneSkew  float64 // mean over ReplicaSets of the largest difference between zones
	hostSkew  float64 // and between hosts
}

// mixed is a cluster of machines of three sizes, and pods of several ReplicaSets.
type mixed struct{ nodes, sets, pods int }

func (m mixed) objects() []any {
	var all []any
	for i := range m.sets {
		name := fmt.Sprint("rs", i)
		all = append(all, &appsv1.ReplicaSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns0", Name: name}, Spec: appsv1.ReplicaSetSpec{Selector: matching(map[string]string{"app": name})},
		})
	}
	for i := range m.nodes {
		name := fmt.Sprint("n", i)
		size := 8 << (i % 3)
		all = append(all, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name, corev1.LabelTopologyZone: fmt.Sprint("z", i%4)}},
			Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
				corev1.ResourceCPU: quantity("%d", size), corev1.ResourceMemory: quantity("%dGi", 4*size), corev1.ResourcePods: quantity("110"),
			}},
		})
	}
	return all
}

func (m mixed) list(r *rand.Rand) []*corev1.Pod {
	yes := true
	type size struct{ cpu, memory int }
	sizes := make([]size, m.sets)
	for i := range sizes {
		sizes[i] = size{100 * (1 + r.IntN(20)), 128 * (1 + r.IntN(40))}
	}
	var pods []*corev1.Pod
	for i := range m.pods {
		set := r.IntN(m.sets)
		name, of := fmt.Sprint("p", i), fmt.Sprint("rs", set)
		pods = append(pods, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "ns0", Name: name, UID: types.UID(name), Labels: map[string]string{"app": of},
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: of, UID: types.UID(of), Controller: &yes}},
			},
			Spec: corev1.PodSpec{SchedulerName: "default-scheduler", Containers: []corev1.Container{{
				Name: "c", Image: "app", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceCPU: quantity("%dm", sizes[set].cpu), corev1.ResourceMemory: quantity("%dMi", sizes[set].memory),
				}},
			}}},
		})
	}
	return pods
}

// rate looks at where pods lie.
func rate(objects []any, pods []*corev1.Pod) quality {
	var q quality
	capacity, zone, asked := map[string]float64{}, map[string]string{}, map[string]float64{}
	for _, obj := range objects {
		if n, ok := obj.(*corev1.Node); ok {
			capacity[n.Name], zone[n.Name] = n.Status.Allocatable.Cpu().AsApproximateFloat64(), n.Labels[corev1.LabelTopologyZone]
		}
	}
	byHost, byZone := map[string]map[string]int{}, map[string]map[string]int{}
	for _, pod := range pods {
		node := pod.Spec.NodeName
		if node == "" {
			q.unplaced++
			continue
		}
		asked[node] += pod.Spec.Containers[0].Resources.Requests.Cpu().AsApproximateFloat64()
		app := pod.Labels["app"]
		if byHost[app] == nil {
			byHost[app], byZone[app] = map[string]int{}, map[string]int{}
		}
		byHost[app][node]++
		byZone[app][zone[node]]++
	}
	q.nodesUsed = len(asked)
	var sum, squares float64
	for node, cpu := range capacity {
		share := 100 * asked[node] / cpu
		sum += share
		squares += share * share
	}
	mean := sum / float64(len(capacity))
	q.deviation = math.Sqrt(squares/float64(len(capacity)) - mean*mean)
	for app := range byHost {
		q.hostSkew += skew(byHost[app], len(capacity)) / float64(len(byHost))
		q.zoneSkew += skew(byZone[app], 4) / float64(len(byHost))
	}
	return q
}

func skew(counts map[string]int, domains int) float64 {
	high, low := 0, math.MaxInt
	for _, n := range counts {
		high, low = max(high, n), min(low, n)
	}
	if len(counts) < domains {
		low = 0
	}
	return float64(high - low)
}

// TestPlacementQuality fills clusters by kube-scheduler's decisions and by ours. Ours lie
// as well within 2 %, and what ties leave to chance.
func TestPlacementQuality(t *testing.T) {
	for name, most := range map[string]bool{"spread and balance": false, "bin packing": true} {
		t.Run(name, func(t *testing.T) {
			m := mixed{nodes: 120, sets: 12, pods: 900}
			objects := m.objects()
			theirs, ours := defaultProfile(t), scheduler.DefaultProfile("default-scheduler")
			if most {
				argsOf[config.NodeResourcesFitArgs](&theirs, "NodeResourcesFit").ScoringStrategy.Type = config.MostAllocated
				ours.Fit.Type = scheduler.MostAllocated
				// Spreading works against packing, so that it is left out, as one would.
				argsOf[config.PodTopologySpreadArgs](&theirs, "PodTopologySpread").DefaultingType = config.ListDefaulting
				ours.DefaultConstraints, ours.SystemDefaulted = nil, false
			}
			k, s := newKube(t, theirs), scheduler.NewState()
			if err := s.SetProfiles(ours); err != nil {
				t.Fatal(err)
			}
			k.add(t, objects...)
			fill(s, objects...)
			want, got := m.list(rand.New(rand.NewPCG(7, 7))), m.list(rand.New(rand.NewPCG(7, 7)))
			for i := range want {
				if node, _ := k.place(t, want[i]); node != "" {
					want[i].Spec.NodeName = node
					if err := k.scheduler.Cache.AssumePod(klog.Logger{}, want[i]); err != nil {
						t.Fatal(err)
					}
				}
				if node, failure := s.Place(got[i]); failure == nil {
					got[i].Spec.NodeName = node
					s.AddPod(got[i], node)
				}
			}
			a, b := rate(objects, got), rate(objects, want)
			t.Logf("gantry         %+v", a)
			t.Logf("kube-scheduler %+v", b)
			within := func(what string, ours, theirs, chance float64) {
				if ours > 1.02*theirs+chance {
					t.Errorf("%s: %.2f, kube-scheduler %.2f", what, ours, theirs)
				}
			}
			within("unplaced pods", float64(a.unplaced), float64(b.unplaced), 0)
			if most {
				within("nodes used", float64(a.nodesUsed), float64(b.nodesUsed), 1)
				return
			}
			within("deviation of CPU shares in percent", a.deviation, b.deviation, 0.5)
			within("skew between zones", a.zoneSkew, b.zoneSkew, 0.5)
			within("skew between hosts", a.hostSkew, b.hostSkew, 0.2)
		})
	}
}
