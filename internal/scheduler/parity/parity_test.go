package parity

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/scheduler"
)

// rounds says how many random clusters are compared, and seed where they begin: a failure
// prints the flags that repeat it.
type parameters struct {
	rounds int
	seed   uint64
}

func flags() parameters {
	var p parameters
	get := func(name string) string {
		if f := flag.Lookup(name); f != nil {
			return f.Value.String()
		}
		return ""
	}
	_, _ = fmt.Sscan(get("parity.rounds"), &p.rounds)
	_, _ = fmt.Sscan(get("parity.seed"), &p.seed)
	return p
}

func TestMain(m *testing.M) {
	flag.Int("parity.rounds", 150, "random clusters to compare")
	flag.Uint64("parity.seed", 1, "seed of the first of them")
	flag.Parse()
	m.Run()
}

// TestSameDecisions compares, for random pods on random clusters, which nodes pass, who rejects
// the others and why, every score, the node chosen, and the message.
func TestSameDecisions(t *testing.T) {
	p := flags()
	for i := range p.rounds {
		seed := p.seed + uint64(i)
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			r := &source{Rand: rand.New(rand.NewPCG(seed, 0))}
			nodes := 1 + r.IntN(30)
			objects := r.cluster(nodes, r.IntN(3*nodes))
			k, s := newKube(t), scheduler.NewState()
			k.add(t, objects...)
			fill(s, objects...)
			for range r.IntN(4) {
				r.nominated = true
				pod, node := r.pod(), fmt.Sprint("n", r.IntN(nodes))
				k.nominate(t, pod, node)
				s.Nominate(pod, node)
			}
			for range 20 {
				pod := r.pod()
				compare(t, k, s, pod)
				if t.Failed() {
					t.Fatalf("repeat with -parity.rounds=1 -parity.seed=%d", seed)
				}
				if node, failure := s.Place(pod); failure == nil {
					placed := pod.DeepCopy()
					placed.Spec.NodeName = node
					k.add(t, placed)
					fill(s, placed)
				}
			}
		})
	}
}

// tail begins what is said of preemption. It is missing where there are pods of lower
// priority: then Scheduler, not State, says what came of it.
const tail = " no new claims to deallocate"

func compare(t *testing.T, k *kube, s *scheduler.State, pod *corev1.Pod) {
	t.Helper()
	want := k.judge(t, pod)
	got := s.Diagnose(pod)
	high := int64(-1)
	for _, n := range got.Nodes {
		v := want[n.Node]
		if n.Filter != v.plugin {
			t.Errorf("%s on %s: rejected by %q %q, kube-scheduler %q %q", pod.Name, n.Node, n.Filter, n.Reasons, v.plugin, v.reasons)
			continue
		}
		slices.Sort(v.reasons)
		slices.Sort(n.Reasons)
		if v.reasons != nil && (!slices.Equal(n.Reasons, v.reasons) || n.Resolvable != v.resolvable) {
			t.Errorf("%s on %s: reasons %q (resolvable %v), kube-scheduler %q (%v)", pod.Name, n.Node, n.Reasons, n.Resolvable, v.reasons, v.resolvable)
		}
		for _, score := range n.Scores {
			if weighted := score.Value * score.Weight; weighted != v.scores[score.Plugin] {
				t.Errorf("%s on %s: %s scores %d, kube-scheduler %d", pod.Name, n.Node, score.Plugin, weighted, v.scores[score.Plugin])
			}
		}
		if n.Filter == "" && n.Total != v.total {
			t.Errorf("%s on %s: total %d, kube-scheduler %d", pod.Name, n.Node, n.Total, v.total)
		}
		high = max(high, v.total)
	}
	node, failure := s.Place(pod)
	if failure == nil {
		if v := want[node]; v.plugin != "" || v.total != high {
			t.Errorf("%s goes to %s with %+v, kube-scheduler's best has %d", pod.Name, node, *v, high)
		}
		return
	}
	_, message := k.place(t, pod)
	ours, _, complete := strings.Cut(failure.Message, tail)
	theirs, _, _ := strings.Cut(message, tail)
	if complete {
		ours, theirs = failure.Message, message
	}
	if ours != theirs {
		t.Errorf("%s fails with\n %s\nkube-scheduler with\n %s", pod.Name, ours, theirs)
	}
}
