package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

// The simulation runs the scheduler in virtual time against an API in memory, while pods come and go, nodes
// are lost and come back, writes fail and the scheduler crashes. It decides itself in which order events arrive,
// pods are placed and writes are done, so that a seed repeats a run exactly; in those that are concurrent the
// scheduler runs as in production, and a seed repeats only what happens to it. GANTRY_TEST_SEED=N repeats a run,
// GANTRY_TEST_SIMULATION=NODESxSTEPS makes a larger one, a concurrent one with a "c" behind it, and with a "t" one
// where a budget covers every pod.
func TestSimulation(t *testing.T) {
	runs := []simulated{
		{nodes: 4, steps: 40}, {nodes: 25, steps: 40}, {nodes: 25, steps: 40, concurrent: true}, {nodes: 100, steps: 15},
		{nodes: 1000, steps: 2, concurrent: true}, {nodes: 2000, steps: 1},
	}
	if text := os.Getenv("GANTRY_TEST_SIMULATION"); text != "" {
		var one simulated
		text, one.tight = strings.CutSuffix(text, "t")
		text, one.concurrent = strings.CutSuffix(text, "c")
		if _, err := fmt.Sscanf(text, "%dx%d", &one.nodes, &one.steps); err != nil {
			t.Fatalf("GANTRY_TEST_SIMULATION is %q, want NODESxSTEPS", text)
		}
		runs = []simulated{one}
	}
	seed := rand.Uint64()
	if text := os.Getenv("GANTRY_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	for _, run := range runs {
		t.Run(run.String(), func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("again: GANTRY_TEST_SEED=%d GANTRY_TEST_SIMULATION=%v go test -count=1 -run 'TestSimulation$' ./internal/scheduler", seed, run)
				}
			}()
			simulate(t, seed, run)
		})
	}
}

// TestSimulationRepeats: a seed is a run, to the last write.
func TestSimulationRepeats(t *testing.T) {
	run := simulated{nodes: 12, steps: 20}
	first := simulate(t, 7, run)
	for range 2 {
		if again := simulate(t, 7, run); again != first {
			t.Fatal("the same seed led to other decisions")
		}
	}
	if simulate(t, 8, run) == first {
		t.Error("another seed led to the same decisions")
	}
}

// TestSimulationAgainstBudgets: where a budget covers every pod, some go against it, and only then.
func TestSimulationAgainstBudgets(t *testing.T) {
	forced := 0
	for seed := range uint64(3) {
		synctest.Test(t, func(t *testing.T) {
			s := newSimulation(t, seed, simulated{nodes: 3, steps: 25, tight: true})
			s.run(25)
			forced += s.forced
		})
	}
	if forced == 0 {
		t.Error("no pod was evicted against a budget: the check of those was not tried")
	}
}

// simulated is the size of a simulation.
type simulated struct {
	nodes, steps int
	concurrent   bool
	tight        bool // a budget covers every pod
}

// String is the size as GANTRY_TEST_SIMULATION has it.
func (s simulated) String() string {
	mode := ""
	if s.concurrent {
		mode = "c"
	}
	if s.tight {
		mode += "t"
	}
	return fmt.Sprintf("%dx%d%s", s.nodes, s.steps, mode)
}

// simulate returns a sum over all decisions in their order.
func simulate(t *testing.T, seed uint64, size simulated) (sum uint64) {
	synctest.Test(t, func(t *testing.T) {
		s := newSimulation(t, seed, size)
		s.run(size.steps)
		sum = s.sum.Sum64()
	})
	return sum
}

type simulation struct {
	*world
	size   simulated
	driver *driver // nil if the scheduler runs by itself
	rand   *rand.Rand
	nodes  []*corev1.Node // all there ever are
	lost   map[string]bool
	made   int
	flaws  atomic.Bool // writes may fail
	// priorities are those of all pods there ever were, by UID.
	priorities map[string]int32
	told       int // events checked
	forced     int // evictions against a budget for want of others
	sum        hash.Hash64
}

func newSimulation(t *testing.T, seed uint64, size simulated) *simulation {
	s := &simulation{size: size, rand: rand.New(rand.NewPCG(seed, uint64(size.nodes))), lost: map[string]bool{}, priorities: map[string]int32{}, sum: fnv.New64a()}
	s.world = &world{Cluster: controllertest.New(t), t: t, events: &notes{}}
	if !size.concurrent {
		s.driver = &driver{s: s, rand: rand.New(rand.NewPCG(seed, 1))}
	}
	for i := range size.nodes {
		s.nodes = append(s.nodes, s.machine(i))
		s.must(s.Create(context.Background(), s.nodes[i]))
	}
	for _, app := range []string{"web", "db"} {
		s.must(s.Create(context.Background(), newPDB(app, app, 0)))
	}
	var mu sync.Mutex
	asked := map[string]uint64{} // how often for a write, so that chance does not hang on the order of others
	s.SetBeforeWrite(func(w controllertest.Write) error {
		if !s.flaws.Load() || w.Sub != "binding" && w.Sub != "status" {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		what := w.Sub + w.Object.GetName()
		asked[what]++
		chance := fnv.New64a()
		fmt.Fprint(chance, seed, what, asked[what])
		if rand.New(rand.NewPCG(seed, chance.Sum64())).IntN(30) == 0 {
			return errors.New("the write is lost")
		}
		return nil
	})
	return s
}

// machine is one of two generations, some with devices, some tainted.
func (s *simulation) machine(i int) *corev1.Node {
	n := newNode(fmt.Sprintf("n%04d", i), fmt.Sprint(4+4*s.rand.IntN(4)), "32Gi", label("zone", fmt.Sprint(i%3)), label("gen", fmt.Sprint(1+s.rand.IntN(2))))
	n.Status.Allocatable[corev1.ResourcePods] = resource.MustParse(fmt.Sprint(5 + s.rand.IntN(25)))
	if s.rand.IntN(4) == 0 {
		n.Status.Allocatable["example.com/gpu"] = resource.MustParse(fmt.Sprint(1 + s.rand.IntN(4)))
	}
	if s.rand.IntN(6) == 0 {
		taint("dedicated", "NoSchedule")(n)
	}
	return n
}

// pod is a random one of a few kinds.
func (s *simulation) newPod() *corev1.Pod {
	s.made++
	kind := s.rand.IntN(12)
	apps := []string{"web", "db", "batch"}
	if s.size.tight {
		apps[2] = apps[0]
	}
	p := newPod(fmt.Sprintf("p%05d", s.made), fmt.Sprintf("%dm", 250*(1+kind%6)), fmt.Sprintf("%dGi", 1+kind%4),
		priority([]int32{0, 0, 0, 10, 100, 1000}[s.rand.IntN(6)]), ownedBy(fmt.Sprint("rs", kind)), labelled("app", apps[kind%3]))
	switch kind {
	case 1, 2:
		gpus(fmt.Sprint(kind))(p)
	case 3:
		hostPortOf(8080, "")(p)
	case 4, 5:
		p.Spec.NodeSelector = map[string]string{"gen": fmt.Sprint(kind - 3)}
	case 6:
		p.Spec.Tolerations = []corev1.Toleration{{Key: "dedicated", Operator: corev1.TolerationOpExists}}
	case 7:
		neverPreempts(p)
	case 8:
		p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "later"}}
	case 9:
		labelled("solo", "yes")(p)
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
				TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"solo": "yes"}},
			}},
		}}
	case 10:
		labelled("even", "yes")(p)
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
			TopologyKey: "zone", MaxSkew: 1, WhenUnsatisfiable: corev1.DoNotSchedule,
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"even": "yes"}},
		}}
	}
	return p
}

func (s *simulation) run(steps int) {
	s.launch()
	s.flaws.Store(true)
	for range steps {
		s.step()
		s.check()
	}
	s.flaws.Store(false)
	for _, n := range s.nodes {
		if s.lost[n.Name] {
			s.recover(n)
		}
	}
	for range 12 { // each round may end the grace of some that were evicted in the one before
		s.wait(3 * time.Minute)
		s.agents(1)
		s.disruption()
		s.check()
	}
	s.checkEnd()
	s.must(s.stop())
}

// launch starts a scheduler that never tries a pod without an event, which shows events that should have
// woken a pod. GANTRY_TEST_FLUSH leaves it the flush that production has.
func (s *simulation) launch() {
	if s.driver != nil {
		s.driver.launch()
	} else {
		s.start()
	}
	if os.Getenv("GANTRY_TEST_FLUSH") != "" {
		return
	}
	s.scheduler.mu.Lock()
	defer s.scheduler.mu.Unlock()
	s.scheduler.queue.patience = 1000 * time.Hour
}

// wait lets time pass.
func (s *simulation) wait(d time.Duration) {
	if s.driver != nil {
		s.driver.wait(d)
		return
	}
	s.world.wait(d)
}

func (s *simulation) step() {
	for range 1 + s.rand.IntN(2*len(s.nodes)) {
		p := s.newPod()
		s.must(s.Create(context.Background(), p))
		s.priorities[string(p.UID)] = priorityOf(p)
	}
	pods := s.pods()
	for range s.rand.IntN(len(s.nodes)) {
		if p := pods[s.rand.IntN(len(pods))]; p.DeletionTimestamp == nil {
			_ = s.Delete(context.Background(), p.DeepCopy()) // it may have gone
		}
	}
	for _, p := range pods {
		if len(p.Spec.SchedulingGates) > 0 && s.rand.IntN(3) == 0 {
			open := p.DeepCopy()
			open.Spec.SchedulingGates = nil
			_ = s.Update(context.Background(), open) // likewise
		}
	}
	n := s.nodes[s.rand.IntN(len(s.nodes))]
	switch {
	case s.lost[n.Name]:
		s.recover(n)
	case s.rand.IntN(4) == 0:
		s.lose(n)
	}
	s.agents(0.7)
	s.disruption()
	if s.rand.IntN(10) == 0 {
		s.must(s.stop())
		s.launch()
	}
	s.wait(time.Duration(s.rand.IntN(3000)) * time.Millisecond)
}

// lose removes a node and what was on it.
func (s *simulation) lose(n *corev1.Node) {
	s.lost[n.Name] = true
	s.must(s.Delete(context.Background(), n.DeepCopy()))
	none := int64(0)
	for _, p := range s.pods() {
		if p.Spec.NodeName == n.Name {
			s.must(client.IgnoreNotFound(s.Delete(context.Background(), p.DeepCopy(), &client.DeleteOptions{GracePeriodSeconds: &none})))
		}
	}
}

func (s *simulation) recover(n *corev1.Node) {
	delete(s.lost, n.Name)
	again := n.DeepCopy()
	again.UID, again.ResourceVersion = "", ""
	s.must(s.Create(context.Background(), again))
}

// agents end a share of the pods that terminate, start those that were bound, and lose those of nodes that are gone.
func (s *simulation) agents(share float64) {
	none := int64(0)
	for _, p := range s.pods() {
		switch {
		case p.Spec.NodeName == "":
		case p.DeletionTimestamp != nil && s.rand.Float64() < share, s.lost[p.Spec.NodeName]:
			s.must(client.IgnoreNotFound(s.Delete(context.Background(), p.DeepCopy(), &client.DeleteOptions{GracePeriodSeconds: &none})))
		case p.Status.StartTime == nil && p.DeletionTimestamp == nil:
			running := p.DeepCopy()
			now := metav1.Now()
			running.Status.StartTime, running.Status.Phase = &now, corev1.PodRunning
			_ = s.Status().Update(context.Background(), running) // a conflict waits for the next round
		}
	}
}

// disruption keeps the budgets' status: all but a fifth of the placed pods must stay, or all.
func (s *simulation) disruption() {
	var pdbs policyv1.PodDisruptionBudgetList
	s.must(s.List(context.Background(), &pdbs))
	for i := range pdbs.Items {
		pdb := pdbs.Items[i].DeepCopy()
		selector, _ := metav1.LabelSelectorAsSelector(pdb.Spec.Selector)
		healthy, leaving := 0, 0
		for _, p := range s.pods() {
			if p.Spec.NodeName != "" && selector.Matches(labels.Set(p.Labels)) {
				healthy++
				if p.DeletionTimestamp != nil {
					leaving++
				}
			}
		}
		pdb.Status.DisruptionsAllowed = int32(max(0, healthy/5-leaving))
		if s.rand.IntN(2) == 0 {
			pdb.Status.DisruptionsAllowed = 0
		}
		_ = s.Status().Update(context.Background(), pdb) // a conflict or a lost write waits for the next round
	}
}

func (s *simulation) pods() []*corev1.Pod {
	var list corev1.PodList
	s.must(s.List(context.Background(), &list))
	out := make([]*corev1.Pod, len(list.Items))
	for i := range list.Items {
		out[i] = &list.Items[i]
	}
	return out
}

// load is what the pods of a node ask for, by hand.
type load struct {
	node  *corev1.Node
	used  map[corev1.ResourceName]int64
	ports map[int32]int
	solo  int // pods that want to be the only one of theirs
	even  int // pods that are spread over zones, those that terminate left out
	pods  []*corev1.Pod
}

func newLoad(node *corev1.Node) *load {
	return &load{node: node, used: map[corev1.ResourceName]int64{}, ports: map[int32]int{}}
}

func (l *load) add(p *corev1.Pod, sign int64) {
	l.used[corev1.ResourcePods] += sign
	if p.Labels["solo"] != "" {
		l.solo += int(sign)
	}
	if p.Labels["even"] != "" && p.DeletionTimestamp == nil {
		l.even += int(sign)
	}
	for _, c := range p.Spec.Containers {
		for name, quantity := range c.Resources.Requests {
			l.used[name] += sign * quantity.MilliValue()
		}
		for _, port := range c.Ports {
			l.ports[port.HostPort] += int(sign)
		}
	}
}

// over says what a node has too much of, empty if nothing.
func (l *load) over() string {
	for name, used := range l.used {
		have := l.node.Status.Allocatable[name]
		limit := have.MilliValue()
		if name == corev1.ResourcePods {
			limit = have.Value()
		}
		if used > limit {
			return fmt.Sprintf("%s: %d of %d", name, used, limit)
		}
	}
	if l.solo > 1 {
		return fmt.Sprintf("solo: %d", l.solo)
	}
	for port, n := range l.ports {
		if n > 1 {
			return fmt.Sprintf("port %d: %d times", port, n)
		}
	}
	return ""
}

func (s *simulation) loads() map[string]*load {
	var nodes corev1.NodeList
	s.must(s.List(context.Background(), &nodes))
	loads := map[string]*load{}
	for i := range nodes.Items {
		loads[nodes.Items[i].Name] = newLoad(&nodes.Items[i])
	}
	for _, p := range s.pods() {
		if l := loads[p.Spec.NodeName]; l != nil {
			l.add(p, 1)
			l.pods = append(l.pods, p)
		}
	}
	return loads
}

// check is what must hold at any time.
func (s *simulation) check() {
	s.t.Helper()
	synctest.Wait()
	for name, l := range s.loads() {
		if over := l.over(); over != "" {
			s.t.Errorf("node %s has too much of %s", name, over)
		}
	}
	uids := map[string]*corev1.Pod{}
	for _, p := range s.pods() {
		uids[string(p.UID)] = p
		if len(p.Spec.SchedulingGates) > 0 && p.Spec.NodeName != "" {
			s.t.Errorf("%s was bound behind its gate", p.Name)
		}
	}
	s.events.mu.Lock()
	defer s.events.mu.Unlock()
	for _, note := range s.events.seen[s.told:] {
		if !strings.HasPrefix(note, "Normal Preempted ") {
			continue
		}
		var by, node string
		if _, err := fmt.Sscanf(note, "Normal Preempted Preempted by pod %s on node %s", &by, &node); err != nil {
			s.t.Errorf("event %q: %v", note, err)
		}
		if s.priorities[by] == 0 {
			s.t.Errorf("event %q: of a pod of the lowest priority", note)
		}
	}
	s.told = len(s.events.seen)
	if s.t.Failed() {
		s.t.FailNow()
	}
}

// checkEnd is the oracle: no pod waits that would fit on a node as it is, or after those of
// lower priority have made room.
func (s *simulation) checkEnd() {
	s.t.Helper()
	loads := s.loads()
	placed, waiting := 0, 0
	for _, p := range s.pods() {
		if p.Spec.NodeName != "" {
			placed++
			if p.DeletionTimestamp != nil {
				s.t.Errorf("%s still terminates", p.Name)
			}
			continue
		}
		if len(p.Spec.SchedulingGates) > 0 {
			continue
		}
		waiting++
		if c := conditionOf(p, corev1.PodScheduled); c.Status != corev1.ConditionFalse || c.Reason != corev1.PodReasonUnschedulable {
			s.t.Errorf("%s waits, and its condition is %+v", p.Name, c)
		}
		for _, l := range loads {
			if how := l.couldTake(p, loads); how != "" {
				s.t.Errorf("%s (priority %d) waits, and would fit on %s %s: nominated to %q: %+v", p.Name, priorityOf(p), l.node.Name, how, p.Status.NominatedNodeName, p.Status.Conditions)
				break
			}
		}
	}
	s.t.Logf("%d pods were made, %d are placed, %d wait, %d were evicted against budgets; %+v", s.made, placed, waiting, s.forced, s.scheduler.Stats())
	if stats := s.scheduler.Stats(); stats.Waiting != waiting {
		s.t.Errorf("the scheduler has %d pods waiting, the API %d", stats.Waiting, waiting)
	}
}

// allows says whether a node is one for the pod at all.
func (l *load) allows(p *corev1.Pod) bool {
	for key, value := range p.Spec.NodeSelector {
		if l.node.Labels[key] != value {
			return false
		}
	}
	return len(l.node.Spec.Taints) == 0 || len(p.Spec.Tolerations) > 0
}

// couldTake says how a pod would fit on a node, empty if it would not.
func (l *load) couldTake(p *corev1.Pod, all map[string]*load) string {
	if !l.allows(p) {
		return ""
	}
	l.add(p, 1)
	defer l.add(p, -1)
	if l.over() == "" && l.evenWith(p, all) {
		return "as it is"
	}
	if !preempts(p) {
		return ""
	}
	var lower []*corev1.Pod
	for _, other := range l.pods {
		if priorityOf(other) < priorityOf(p) {
			lower = append(lower, other)
			l.add(other, -1)
			defer l.add(other, 1)
		}
	}
	if l.over() != "" || !l.evenWith(p, all) {
		return ""
	}
	slices.SortFunc(lower, func(a, b *corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	names := make([]string, len(lower))
	for i, other := range lower {
		names[i] = fmt.Sprintf("%s (%d)", other.Name, priorityOf(other))
	}
	return fmt.Sprintf("without %v", names)
}

// evenWith says whether the zones are even enough if a pod, which is counted already, is on the node.
func (l *load) evenWith(p *corev1.Pod, all map[string]*load) bool {
	if p.Labels["even"] == "" {
		return true
	}
	zones := map[string]int{}
	for _, other := range all {
		zones[other.node.Labels["zone"]] += other.even
	}
	mine := zones[l.node.Labels["zone"]]
	least := mine - 1 // as it is without the pod
	for zone, n := range zones {
		if zone != l.node.Labels["zone"] {
			least = min(least, n)
		}
	}
	return mine-least <= 1
}
