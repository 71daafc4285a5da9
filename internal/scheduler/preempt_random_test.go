package scheduler

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// plainPod is a pod as the plain model of preemption below has it.
type plainPod struct {
	name     string
	cpu      int64
	priority int32
	start    int
	app      string
}

// plainEviction is kube-scheduler's DefaultPreemption on one node in plain arithmetic: whom a pod of
// that size and priority evicts, the most important first.
func plainEviction(room int64, pods []plainPod, cpu int64, priority int32, allowed map[string]int) (victims []plainPod, violations int, ok bool) {
	var lower []plainPod
	free := room
	for _, p := range pods {
		free -= p.cpu
		if p.priority < priority {
			lower = append(lower, p)
		}
	}
	for _, p := range lower {
		free += p.cpu
	}
	if len(lower) == 0 || free < cpu {
		return nil, 0, false
	}
	important := func(a, b plainPod) int {
		if a.priority != b.priority {
			return int(b.priority - a.priority)
		}
		return a.start - b.start
	}
	slices.SortFunc(lower, important)
	left := map[string]int{}
	for app, n := range allowed {
		left[app] = n
	}
	var order, rest []plainPod
	for _, p := range lower {
		if _, guarded := left[p.app]; guarded {
			if left[p.app]--; left[p.app] < 0 {
				order = append(order, p)
				continue
			}
		}
		rest = append(rest, p)
	}
	guarded := len(order)
	for i, p := range append(order, rest...) {
		if free-p.cpu >= cpu {
			free -= p.cpu
			continue
		}
		victims = append(victims, p)
		if i < guarded {
			violations++
		}
	}
	slices.SortFunc(victims, important)
	return victims, violations, true
}

// TestEvictionAgainstPlainModel compares random evictions with the model, on every node, and the node that is
// chosen. So a budget is violated only where no node can do without.
func TestEvictionAgainstPlainModel(t *testing.T) {
	seed := rand.Uint64()
	if text := os.Getenv("GANTRY_TEST_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	random := rand.New(rand.NewPCG(seed, 0))
	now := time.Unix(0, 0).Add(24 * time.Hour)
	evictions := 0
	for round := range 2000 {
		s := NewState()
		allowed := map[string]int{"web": random.IntN(3), "db": random.IntN(2)}
		budgets := []budget{newBudget(newPDB("web", "web", int32(allowed["web"]))), newBudget(newPDB("db", "db", int32(allowed["db"])))}
		cpu, priority := int64(500+500*random.IntN(6)), int32(random.IntN(4))
		best := ""
		want := map[string][]string{}
		var cost [5]int64
		for n := range 1 + random.IntN(5) {
			node := fmt.Sprint("n", n)
			s.SetNode(newNode(node, "4", "64Gi"))
			var pods []plainPod
			for room := int64(4000); ; {
				p := plainPod{fmt.Sprintf("%s-%d", node, len(pods)), int64(250 * (1 + random.IntN(6))), int32(random.IntN(4)), 60*n + len(pods), []string{"web", "db", "batch"}[random.IntN(3)]}
				if room -= p.cpu; room < 0 {
					break
				}
				pods = append(pods, p)
			}
			random.Shuffle(len(pods), func(i, j int) { pods[i], pods[j] = pods[j], pods[i] })
			for _, p := range pods {
				s.AddPod(newPod(p.name, fmt.Sprintf("%dm", p.cpu), "", rank(p.priority), started(p.start), labelled("app", p.app)), node)
			}
			victims, violations, ok := plainEviction(4000, pods, cpu, priority, allowed)
			if !ok {
				continue
			}
			e := &eviction{violations: violations}
			for _, v := range victims {
				want[node] = append(want[node], v.name)
				e.victims = append(e.victims, newPod(v.name, "", "", rank(v.priority), started(v.start)))
			}
			if len(victims) == 0 {
				continue
			}
			if c := e.cost(now); best == "" || slices.Compare(c[:], cost[:]) < 0 {
				best, cost = node, c
			}
		}
		pod := newPod("p", fmt.Sprintf("%dm", cpu), "", rank(priority))
		template := s.ref(pod)
		_, failure := s.find(template, pod)
		if failure == nil {
			continue // it fits as things are
		}
		var got *eviction
		if failure.evictable {
			got, _, _ = s.preempt(template, pod, failure, budgets, round, now)
		}
		if (got != nil) != (best != "") {
			t.Fatalf("round %d, GANTRY_TEST_SEED=%d: evicts %+v, the model does on %q %v", round, seed, got, best, want[best])
		}
		if got == nil {
			continue
		}
		evictions++
		node := s.nodes[got.slot].node.Name
		var names []string
		for _, v := range got.victims {
			names = append(names, v.Name)
		}
		if c := got.cost(now); c != cost || !slices.Equal(names, want[node]) {
			t.Fatalf("round %d, GANTRY_TEST_SEED=%d: evicts %v from %s at %v; the model %v from it, and at best %v from %s at %v",
				round, seed, names, node, c, want[node], want[best], best, cost)
		}
	}
	if evictions == 0 {
		t.Error("nobody was ever evicted")
	}
}

// rank is priority where that name is taken.
func rank(value int32) func(*corev1.Pod) { return priority(value) }
