package scheduler

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkPreempt looks for whom to evict in a cluster that is full of pods of lower priority, ten a node.
func BenchmarkPreempt(b *testing.B) {
	for _, nodes := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			s := NewState()
			for i := range nodes {
				node := fmt.Sprintf("n%04d", i)
				s.SetNode(newNode(node, "4", "64Gi"))
				for j := range 10 {
					s.AddPod(newPod(fmt.Sprintf("%s-%d", node, j), "400m", "1Gi", ownedBy(fmt.Sprint("rs", j)), started(j)), node)
				}
			}
			pod := newPod("p", "1", "1Gi", priority(10))
			t := s.ref(pod)
			_, failure := s.find(t, pod)
			if failure == nil || !failure.evictable {
				b.Fatal("it fits")
			}
			b.ReportAllocs()
			now, from := time.Unix(0, 0).Add(time.Hour), 0
			for b.Loop() {
				from++
				if e, _, _ := s.preempt(t, pod, failure, nil, from, now); e == nil {
					b.Fatal("nobody is evicted")
				}
			}
		})
	}
}
