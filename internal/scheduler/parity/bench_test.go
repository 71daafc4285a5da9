package parity

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	appsv1 "k8s.io/api/apps/v1"

	"gantry.dev/gantry/internal/scheduler"
)

// load is a cluster and the pods of one ReplicaSet that it is to take.
type load struct{ nodes, pods int }

func (l load) cluster() []any {
	all := []any{&appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns0", Name: "rs"}, Spec: appsv1.ReplicaSetSpec{Selector: matching(map[string]string{"app": "a"})},
	}}
	for i := range l.nodes {
		name := fmt.Sprint("n", i)
		all = append(all, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
				corev1.LabelHostname: name, corev1.LabelTopologyZone: fmt.Sprint("z", i%3),
			}},
			Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
				corev1.ResourceCPU: quantity("32"), corev1.ResourceMemory: quantity("128Gi"), corev1.ResourcePods: quantity("110"),
			}},
		})
	}
	return all
}

func (l load) pod(i int, change func(*corev1.Pod)) *corev1.Pod {
	name, yes := fmt.Sprint("p", i), true
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns0", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "a"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "rs", UID: "rs", Controller: &yes}},
		},
		Spec: corev1.PodSpec{SchedulerName: "default-scheduler", Containers: []corev1.Container{{
			Name: "c", Image: "app", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: quantity("100m"), corev1.ResourceMemory: quantity("128Mi"),
			}},
		}}},
	}
	change(pod)
	return pod
}

func kinds() map[string]func(*corev1.Pod) {
	term := corev1.PodAffinityTerm{TopologyKey: corev1.LabelHostname, LabelSelector: matching(map[string]string{"app": "a"})}
	return map[string]func(*corev1.Pod){
		"plain": func(*corev1.Pod) {},
		"anti-affinity": func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term},
			}}
		},
		"preferred": func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
				PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 10, PodAffinityTerm: term}},
			}}
		},
		"spread": func(p *corev1.Pod) {
			p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
				TopologyKey: corev1.LabelTopologyZone, MaxSkew: 1, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: term.LabelSelector,
			}}
		},
	}
}

// BenchmarkDecide fills a cluster by kube-scheduler's decisions and by ours, each from the
// pod to the assumed place; queue, binding and API are left out of both.
func BenchmarkDecide(b *testing.B) {
	for _, l := range []load{{100, 1000}, {1000, 10000}, {5000, 30000}} {
		for name, change := range kinds() {
			pods := l.pods
			if name == "anti-affinity" {
				pods = l.nodes / 2
			}
			b.Run(fmt.Sprintf("nodes=%d/pods=%d/%s/gantry", l.nodes, pods, name), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					s := scheduler.NewState()
					fill(s, l.cluster()...)
					list := l.list(pods, change)
					b.StartTimer()
					for _, pod := range list {
						node, failure := s.Place(pod)
						if failure != nil {
							b.Fatal(failure)
						}
						s.AddPod(pod, node)
					}
				}
				report(b, pods)
			})
			b.Run(fmt.Sprintf("nodes=%d/pods=%d/%s/kube-scheduler", l.nodes, pods, name), func(b *testing.B) {
				pods := min(pods, 2000) // it does not speed up as the cluster fills
				for b.Loop() {
					b.StopTimer()
					k := newKube(b)
					k.add(b, l.cluster()...)
					list := l.list(pods, change)
					b.StartTimer()
					for _, pod := range list {
						node, message := k.place(b, pod)
						if message != "" {
							b.Fatal(message)
						}
						pod.Spec.NodeName = node
						if err := k.scheduler.Cache.AssumePod(klog.Logger{}, pod); err != nil {
							b.Fatal(err)
						}
					}
				}
				report(b, pods)
			})
		}
	}
}

func (l load) list(pods int, change func(*corev1.Pod)) []*corev1.Pod {
	list := make([]*corev1.Pod, pods)
	for i := range list {
		list[i] = l.pod(i, change)
	}
	return list
}

func report(b *testing.B, pods int) {
	b.ReportMetric(float64(pods)*float64(b.N)/max(b.Elapsed(), time.Nanosecond).Seconds(), "pods/s")
}
