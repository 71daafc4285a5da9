package scheduler

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// kinds of pods that are placed over and over.
func benchKinds() map[string]func(*corev1.Pod) {
	host := func(key string) corev1.PodAffinityTerm {
		return corev1.PodAffinityTerm{TopologyKey: key, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "rs0"}}}
	}
	return map[string]func(*corev1.Pod){
		"plain": func(*corev1.Pod) {},
		"anti-affinity": func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{host(corev1.LabelHostname)},
			}}
		},
		"affinity": func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{host(corev1.LabelTopologyZone)},
			}}
		},
		"preferred": func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
				PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 10, PodAffinityTerm: host(corev1.LabelHostname)}},
			}}
		},
		"spread": func(p *corev1.Pod) {
			for _, key := range []string{corev1.LabelHostname, corev1.LabelTopologyZone} {
				p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, corev1.TopologySpreadConstraint{
					TopologyKey: key, MaxSkew: 1, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: host(key).LabelSelector,
				})
			}
		},
	}
}

func benchState(nodes int) *State {
	s := NewState()
	for i := range nodes {
		s.SetNode(newNode(fmt.Sprintf("n%04d", i), "1000", "4Ti", label(corev1.LabelTopologyZone, fmt.Sprintf("z%d", i%3)),
			func(n *corev1.Node) { n.Status.Allocatable["pods"] = resource.MustParse("1000000") }))
	}
	return s
}

// BenchmarkPlace places pods of one kind, each in place of the one that came longest ago:
// the cluster is kept half full of those that keep each other away.
func BenchmarkPlace(b *testing.B) {
	for _, nodes := range []int{100, 1000, 5000} {
		for name, change := range benchKinds() {
			b.Run(fmt.Sprintf("nodes=%d/%s", nodes, name), func(b *testing.B) {
				s := benchState(nodes)
				knowOwner(s, "rs0")
				pods := make([]*corev1.Pod, nodes/2)
				for i := range pods {
					pods[i] = newPod(fmt.Sprint("p", i), "100m", "128Mi", ownedBy("rs0"), change)
				}
				place := func(pod *corev1.Pod) {
					s.RemovePod(pod.UID)
					node, failure := s.Place(pod)
					if failure != nil {
						b.Fatal(failure)
					}
					s.AddPod(pod, node)
				}
				for _, pod := range pods {
					place(pod)
				}
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					place(pods[i%len(pods)])
					i++
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pods/s")
			})
		}
	}
}

// BenchmarkPlaceManyKinds places pods of many controllers in turns.
func BenchmarkPlaceManyKinds(b *testing.B) {
	for _, kinds := range []int{10, 1000} {
		b.Run(fmt.Sprintf("nodes=1000/kinds=%d", kinds), func(b *testing.B) {
			s := benchState(1000)
			pods := make([]*corev1.Pod, 2*kinds)
			for i := range pods {
				name := fmt.Sprint("rs", i%kinds)
				knowOwner(s, name)
				pods[i] = newPod(fmt.Sprint("p", i), "100m", "128Mi", ownedBy(name))
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				pod := pods[i%len(pods)]
				i++
				s.RemovePod(pod.UID)
				node, failure := s.Place(pod)
				if failure != nil {
					b.Fatal(failure)
				}
				s.AddPod(pod, node)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pods/s")
		})
	}
}
