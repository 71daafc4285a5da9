package scheduler

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// randomTerm is a term about pods of some app, now and then in other namespaces.
func randomTerm(random *rand.Rand) corev1.PodAffinityTerm {
	keys := []string{corev1.LabelHostname, corev1.LabelTopologyZone, "rack"}
	term := corev1.PodAffinityTerm{
		TopologyKey:   keys[random.IntN(len(keys))],
		LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint("a", random.IntN(3))}},
	}
	switch random.IntN(4) {
	case 0:
		term.Namespaces = []string{"other"}
	case 1:
		term.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "x"}}
	}
	return term
}

func randomAffinity(random *rand.Rand) *corev1.Affinity {
	a := &corev1.Affinity{}
	weighted := func() []corev1.WeightedPodAffinityTerm {
		return []corev1.WeightedPodAffinityTerm{{Weight: int32(1 + random.IntN(100)), PodAffinityTerm: randomTerm(random)}}
	}
	switch random.IntN(5) {
	case 0:
		a.PodAffinity = &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{randomTerm(random)}}
	case 1:
		a.PodAntiAffinity = &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{randomTerm(random)}}
	case 2:
		a.PodAffinity = &corev1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: weighted()}
	case 3:
		a.PodAntiAffinity = &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: weighted()}
	default:
		return nil
	}
	return a
}

func randomSpread(random *rand.Rand) corev1.TopologySpreadConstraint {
	keys := []string{corev1.LabelHostname, corev1.LabelTopologyZone, "rack"}
	c := corev1.TopologySpreadConstraint{
		TopologyKey: keys[random.IntN(len(keys))], MaxSkew: int32(1 + random.IntN(2)), WhenUnsatisfiable: corev1.DoNotSchedule,
		LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint("a", random.IntN(3))}},
	}
	if random.IntN(2) == 0 {
		c.WhenUnsatisfiable = corev1.ScheduleAnyway
	}
	honor := corev1.NodeInclusionPolicyHonor
	if random.IntN(3) == 0 {
		c.NodeTaintsPolicy = &honor
	}
	return c
}

func randomNode(random *rand.Rand, name string) *corev1.Node {
	node := newNode(name, fmt.Sprintf("%dm", 500+random.IntN(4000)), "4Gi")
	if random.IntN(4) > 0 {
		node.Labels[corev1.LabelTopologyZone] = fmt.Sprint("z", random.IntN(3))
	}
	if random.IntN(4) > 0 {
		node.Labels["rack"] = fmt.Sprint("r", random.IntN(4))
	}
	if random.IntN(5) == 0 {
		taint("x", "NoSchedule")(node)
	}
	return node
}

func randomPod(random *rand.Rand, name string) *corev1.Pod {
	pod := newPod(name, fmt.Sprintf("%dm", 100*random.IntN(4)), "64Mi")
	app := fmt.Sprint("a", random.IntN(3))
	if random.IntN(4) == 0 {
		pod.Namespace = "other"
	} else if random.IntN(2) == 0 {
		ownedBy(app)(pod)
	}
	pod.Labels = map[string]string{"app": app}
	if random.IntN(8) == 0 {
		pod.Labels["unique"] = name
	}
	pod.Spec.Affinity = randomAffinity(random)
	if random.IntN(4) == 0 {
		pod.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{randomSpread(random)}
	}
	if random.IntN(4) == 0 {
		pod.Spec.NodeSelector = map[string]string{"rack": fmt.Sprint("r", random.IntN(4))}
	}
	if random.IntN(8) == 0 {
		hostPortOf(80, "")(pod)
	}
	return pod
}

// FuzzIndexes plays random changes: after each, what is kept up equals what a count from
// nothing gives.
func FuzzIndexes(f *testing.F) {
	for seed := range uint64(30) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 2))
		s := NewState()
		s.SetNamespace("default", map[string]string{"team": "x"})
		s.SetNamespace("other", nil)
		var pods []*corev1.Pod
		for step := range 250 {
			pods = randomStep(random, s, pods, step)
			if step%5 == 0 {
				checkIndexes(t, s)
			}
			if t.Failed() {
				t.Fatalf("at step %d of seed %d", step, seed)
			}
		}
		for _, pod := range pods {
			s.RemovePod(pod.UID)
			s.Unnominate(pod.UID)
		}
		checkEmpty(t, s, nil)
	})
}

func randomStep(random *rand.Rand, s *State, pods []*corev1.Pod, step int) []*corev1.Pod {
	name := fmt.Sprint("n", random.IntN(10))
	switch random.IntN(14) {
	case 0, 1:
		s.SetNode(randomNode(random, name))
	case 2:
		s.RemoveNode(name)
	case 3:
		if len(pods) > 0 {
			i := random.IntN(len(pods))
			s.RemovePod(pods[i].UID)
			s.Unnominate(pods[i].UID)
			return slices.Delete(pods, i, i+1)
		}
	case 4:
		if len(pods) > 0 { // it is being deleted
			pod := pods[random.IntN(len(pods))]
			if p := s.pods[pod.UID]; p != nil {
				going := pod.DeepCopy()
				now := metav1.Now()
				going.DeletionTimestamp = &now
				s.AddPod(going, p.node)
			}
		}
	case 5:
		if len(pods) > 0 { // its labels change
			pod := pods[random.IntN(len(pods))]
			if p := s.pods[pod.UID]; p != nil {
				changed := p.pod.DeepCopy()
				changed.Labels["app"] = fmt.Sprint("a", random.IntN(3))
				s.AddPod(changed, p.node)
			}
		}
	case 6:
		s.SetNamespace("other", map[string]string{"team": []string{"x", "y"}[random.IntN(2)]})
	case 7:
		s.SetService("default", "s", map[string]string{"app": fmt.Sprint("a", random.IntN(3))})
	case 8:
		knowOwner(s, fmt.Sprint("a", random.IntN(3)))
	case 9:
		pod := randomPod(random, fmt.Sprint("w", step))
		s.Nominate(pod, name)
		return append(pods, pod)
	default:
		pod := randomPod(random, fmt.Sprint("p", step))
		if node, failure := s.Place(pod); failure == nil {
			s.AddPod(pod, node)
		} else {
			s.AddPod(pod, name) // by hand
		}
		return append(pods, pod)
	}
	return pods
}

// checkIndexes counts everything anew.
func checkIndexes(t *testing.T, s *State) {
	t.Helper()
	used, scored := make([]int64, len(s.used)), make([]int64, len(s.scored))
	spotted := map[*template]map[int32]spot{}
	for uid, p := range s.pods {
		slot, there := s.slots[p.node]
		if !there {
			slot = none
		}
		if slot != p.slot {
			t.Errorf("%s is in slot %d, want %d", uid, p.slot, slot)
		}
		if slot == none {
			continue
		}
		for _, d := range p.template.demands {
			used[int(slot)*s.width+d.place] += d.amount
		}
		used[int(slot)*s.width+resPods]++
		scored[2*slot] += p.template.scoredCPU
		scored[2*slot+1] += p.template.scoredMemory
		if spotted[p.template] == nil {
			spotted[p.template] = map[int32]spot{}
		}
		at := spotted[p.template][slot]
		at.slot = slot
		at.all++
		if p.leaving {
			at.leaving++
		}
		spotted[p.template][slot] = at
	}
	if !slices.Equal(used, s.used) || !slices.Equal(scored, s.scored) {
		t.Errorf("used %v, counted %v; scored %v, counted %v", s.used, used, s.scored, scored)
	}
	for _, space := range s.spaces {
		for tt := range space {
			got := map[int32]spot{}
			tt.spots.each(func(at spot) { got[at.slot] = at })
			if !maps.Equal(got, spotted[tt]) {
				t.Errorf("spots of %s: %v, counted %v", tt.pod.Name, got, spotted[tt])
			}
		}
	}
	for _, tt := range s.planned {
		tt.plan.views(func(v *view) { checkView(t, s, v) })
	}
}

func checkView(t *testing.T, s *State, v *view) {
	t.Helper()
	s.fresh(v)
	sum, present := map[string]int32{}, map[string]bool{}
	domainOf := func(slot int32) (string, bool) {
		node := s.nodes[slot].node
		if v.scope != nil && !v.scope.includes(slot, node) {
			return "", false
		}
		if v.topology.key == "" {
			return node.Name, true
		}
		value, ok := node.Labels[v.topology.key]
		return value, ok
	}
	var total int64
	for _, p := range s.pods {
		if p.slot == none || (p.leaving && v.live()) {
			continue
		}
		if domain, ok := domainOf(p.slot); ok {
			sum[domain] += s.weigh(v, p.template)
			total += int64(s.weigh(v, p.template))
		}
	}
	least := int32(1 << 30)
	for _, slot := range s.slots {
		domain, ok := domainOf(slot)
		if !ok {
			continue
		}
		present[domain] = true
		least = min(least, sum[domain])
		if got := v.at(slot); got != sum[domain] {
			t.Errorf("view %q kind %d: %d in %s, counted %d", v.key, v.kind, got, domain, sum[domain])
		}
	}
	if len(present) == 0 {
		least = 0
	}
	if v.total != total || (v.levelled && (v.domains != len(present) || v.least != least)) {
		t.Errorf("view %q: total %d of %d, %d domains of %d, least %d of %d", v.key, v.total, total, v.domains, len(present), v.least, least)
	}
}

func TestLiftedPodsDoNotCount(t *testing.T) {
	s := NewState()
	s.SetNode(newNode("a", "1", "1Gi"))
	keep := randomTerm(rand.New(rand.NewPCG(1, 1)))
	keep.TopologyKey, keep.Namespaces, keep.NamespaceSelector = corev1.LabelHostname, nil, nil
	keep.LabelSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}
	apart := func(p *corev1.Pod) {
		p.Labels = map[string]string{"app": "x"}
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{keep}}}
	}
	q := newPod("q", "800m", "", apart)
	s.AddPod(q, "a")
	p := newPod("p", "500m", "", apart, priority(5))
	tt := s.ref(p)
	slot := s.slots["a"]
	if s.fitsOn(tt, p, slot) {
		t.Error("p fits beside q")
	}
	s.lift(s.podsOn(slot)[0])
	if !s.fitsOn(tt, p, slot) {
		t.Errorf("p does not fit without q: %+v", s.reject(tt, nil, slot))
	}
	s.letDown(s.podsOn(slot)[0])
	if s.fitsOn(tt, p, slot) {
		t.Error("p fits beside q that is back")
	}
	checkIndexes(t, s)
}

func TestNominatedRoomIsKept(t *testing.T) {
	s := NewState()
	s.SetNode(newNode("a", "1", "1Gi"))
	s.Nominate(newPod("high", "800m", "", priority(10)), "a")
	if _, failure := s.Place(newPod("low", "500m", "")); failure == nil {
		t.Error("a pod of lower priority took the room")
	}
	if _, failure := s.Place(newPod("higher", "500m", "", priority(11))); failure != nil {
		t.Errorf("a pod of higher priority was held back: %v", failure)
	}
	if node, failure := s.Place(newPod("high", "800m", "", priority(10))); failure != nil {
		t.Errorf("the nominated pod itself: %q, %v", node, failure)
	}
	s.Unnominate("high")
	if _, failure := s.Place(newPod("low", "500m", "")); failure != nil {
		t.Errorf("room is still kept: %v", failure)
	}
}

func TestMoreIsHeldWhileResizing(t *testing.T) {
	s := NewState()
	s.SetNode(newNode("a", "1", "1Gi"))
	pod := newPod("p", "200m", "")
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", Resources: &corev1.ResourceRequirements{
		Requests: corev1.ResourceList{"cpu": resource.MustParse("900m")},
	}}}
	s.AddPod(pod, "a")
	if _, failure := s.Place(newPod("q", "300m", "")); failure == nil {
		t.Error("placed in room that is still held")
	}
	done := pod.DeepCopy()
	done.Status.ContainerStatuses[0].Resources.Requests["cpu"] = resource.MustParse("200m")
	s.AddPod(done, "a")
	if _, failure := s.Place(newPod("q", "300m", "")); failure != nil {
		t.Errorf("room was not given back: %v", failure)
	}
	if s.RemovePod(types.UID("p")); len(s.templates) != 0 {
		t.Errorf("%d templates left", len(s.templates))
	}
}
