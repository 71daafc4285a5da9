package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

func started(minutes int) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		at := metav1.NewTime(time.Unix(0, 0).Add(time.Duration(minutes) * time.Minute))
		p.Status.StartTime = &at
	}
}

func on(node string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.NodeName = node } }

func labelled(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		if p.Labels == nil {
			p.Labels = map[string]string{}
		}
		p.Labels[key] = value
	}
}

func neverPreempts(p *corev1.Pod) {
	never := corev1.PreemptNever
	p.Spec.PreemptionPolicy = &never
}

func newPDB(name, app string, allowed int32) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}},
		Status:     policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: allowed},
	}
}

type evictionCase struct {
	nodes   []*corev1.Node
	placed  []*corev1.Pod
	pdbs    []*policyv1.PodDisruptionBudget
	pod     *corev1.Pod
	node    string
	victims []string
	message string
}

// evictionCases are those of kube-scheduler's criteria, one by one.
func evictionCases() map[string]evictionCase {
	one := []*corev1.Node{newNode("a", "1", "1Gi")}
	two := []*corev1.Node{newNode("a", "1", "1Gi"), newNode("b", "1", "1Gi")}
	pod := newPod("p", "600m", "", priority(100))
	return map[string]evictionCase{
		"as few as possible, the less important first": {
			nodes: one, pod: pod, node: "a", victims: []string{"low"},
			placed: []*corev1.Pod{newPod("mid", "400m", "", priority(10), on("a")), newPod("low", "400m", "", priority(1), on("a"))},
		},
		"of equals the one that started last goes": {
			nodes: one, pod: pod, node: "a", victims: []string{"new"},
			placed: []*corev1.Pod{newPod("new", "400m", "", started(9), on("a")), newPod("old", "400m", "", started(1), on("a"))},
		},
		"equal priority is safe": {
			nodes: one, pod: pod, placed: []*corev1.Pod{newPod("q", "800m", "", priority(100), on("a"))},
			message: "0/1 nodes are available: 1 Insufficient cpu." + tail(1, "1 No preemption victims found for incoming pod"),
		},
		"in vain where the rest is too large": {
			nodes: two, pod: pod,
			placed: []*corev1.Pod{
				newPod("q", "800m", "", priority(100), on("a")), newPod("r", "100m", "", on("a")),
				newPod("s", "800m", "", priority(100), on("b")),
			},
			message: "0/2 nodes are available: 2 Insufficient cpu." + tail(2, "1 Insufficient cpu, 1 No preemption victims found for incoming pod"),
		},
		"not helpful on a tainted node": {
			nodes:   []*corev1.Node{newNode("a", "1", "1Gi", taint("k", "NoSchedule")), newNode("b", "100m", "1Gi")},
			pod:     pod,
			placed:  []*corev1.Pod{newPod("q", "800m", "", on("a"))},
			message: "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s)." + tail(2, "2 Preemption is not helpful for scheduling"),
		},
		"fewest violated budgets": {
			nodes: two, pod: pod, node: "b", victims: []string{"q"},
			pdbs:   []*policyv1.PodDisruptionBudget{newPDB("x", "x", 0)},
			placed: []*corev1.Pod{newPod("r", "800m", "", labelled("app", "x"), on("a")), newPod("q", "800m", "", priority(50), on("b"))},
		},
		"a budget saves the less important": {
			nodes: one, pod: pod, node: "a", victims: []string{"mid"},
			pdbs:   []*policyv1.PodDisruptionBudget{newPDB("x", "x", 0)},
			placed: []*corev1.Pod{newPod("mid", "400m", "", priority(10), on("a")), newPod("low", "400m", "", labelled("app", "x"), on("a"))},
		},
		"a violated budget is no obstacle": {
			nodes: one, pod: pod, node: "a", victims: []string{"q"},
			pdbs:   []*policyv1.PodDisruptionBudget{newPDB("x", "x", 0)},
			placed: []*corev1.Pod{newPod("q", "800m", "", labelled("app", "x"), on("a"))},
		},
		"lowest of the highest victims": {
			nodes: two, pod: pod, node: "b", victims: []string{"q", "s"},
			placed: []*corev1.Pod{
				newPod("r", "800m", "", priority(20), on("a")),
				newPod("q", "450m", "", priority(10), on("b")), newPod("s", "450m", "", priority(9), on("b")),
			},
		},
		"lowest sum of priorities": {
			nodes: two, pod: newPod("p", "1", "", priority(100)), node: "b", victims: []string{"q", "s"},
			placed: []*corev1.Pod{
				newPod("r", "450m", "", priority(10), on("a")), newPod("t", "450m", "", priority(9), on("a")),
				newPod("q", "450m", "", priority(10), on("b")), newPod("s", "450m", "", priority(8), on("b")),
			},
		},
		"fewest victims, also of negative priority": {
			nodes: two, pod: newPod("p", "1", "", priority(100)), node: "b", victims: []string{"q"},
			placed: []*corev1.Pod{
				newPod("r", "450m", "", priority(-10), on("a")), newPod("t", "450m", "", priority(-10), on("a")),
				newPod("q", "450m", "", priority(-10), on("b")),
			},
		},
		"the latest start": {
			nodes: two, pod: pod, node: "b", victims: []string{"q"},
			placed: []*corev1.Pod{newPod("r", "800m", "", started(1), on("a")), newPod("q", "800m", "", started(5), on("b"))},
		},
		"ports": {
			nodes: one, pod: newPod("p", "", "", priority(1), hostPortOf(80, "")), node: "a", victims: []string{"q"},
			placed: []*corev1.Pod{newPod("q", "", "", hostPortOf(80, ""), on("a")), newPod("r", "", "", on("a"))},
		},
		"never": {
			nodes: one, pod: newPod("p", "600m", "", priority(100), neverPreempts), placed: []*corev1.Pod{newPod("q", "800m", "", on("a"))},
			message: "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: not eligible due to preemptionPolicy=Never.",
		},
		"an extended resource": {
			nodes: []*corev1.Node{newNode("a", "4", "1Gi", func(n *corev1.Node) {
				n.Status.Allocatable["example.com/gpu"] = resource.MustParse("2")
			})},
			pod: newPod("p", "", "", priority(1), gpus("2")), node: "a", victims: []string{"q"},
			placed: []*corev1.Pod{newPod("q", "", "", gpus("1"), on("a")), newPod("r", "1", "", on("a"))},
		},
	}
}

func gpus(n string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		c := &p.Spec.Containers[0].Resources
		c.Requests["example.com/gpu"] = resource.MustParse(n)
		c.Limits = corev1.ResourceList{"example.com/gpu": resource.MustParse(n)}
	}
}

func TestEvictionOf(t *testing.T) {
	for name, tc := range evictionCases() {
		t.Run(name, func(t *testing.T) {
			s := NewState()
			if err := s.SetProfiles(DefaultProfile("default-scheduler")); err != nil {
				t.Fatal(err)
			}
			for _, n := range tc.nodes {
				s.SetNode(n)
			}
			for _, p := range tc.placed {
				s.AddPod(p, p.Spec.NodeName)
			}
			var budgets []budget
			for _, pdb := range tc.pdbs {
				budgets = append(budgets, newBudget(pdb))
			}
			template := s.ref(tc.pod)
			before := fmt.Sprint(s.used, s.scored)
			_, failure := s.find(template, tc.pod)
			if failure == nil {
				t.Fatal("it fits as things are")
			}
			message := failure.Message
			for from := range 2 {
				var e *eviction
				if failure.evictable {
					var tail string
					if e, tail, _ = s.preempt(template, tc.pod, failure, budgets, from, time.Unix(0, 0).Add(time.Hour)); e == nil {
						message = withTail(failure.Message, tail)
					}
				}
				var node string
				var victims []string
				if e != nil {
					node = s.nodes[e.slot].node.Name
					for _, v := range e.victims {
						victims = append(victims, v.Name)
					}
				}
				if node != tc.node || !slices.Equal(victims, tc.victims) || tc.message != "" && message != tc.message {
					t.Errorf("from %d: evicts %v from %q, want %v from %q; message %q, want %q", from, victims, node, tc.victims, tc.node, message, tc.message)
				}
			}
			if diff := cmp.Diff(before, fmt.Sprint(s.used, s.scored)); diff != "" {
				t.Errorf("the question changed the state: %s", diff)
			}
		})
	}
}

// gone ends a pod's grace, as its agent does.
func (w *world) gone(name string) {
	w.t.Helper()
	none := int64(0)
	if err := w.Delete(context.Background(), w.pod(name), &client.DeleteOptions{GracePeriodSeconds: &none}); err != nil {
		w.t.Fatal(err)
	}
	w.wait(10 * time.Millisecond)
}

func (w *world) add(objs ...client.Object) {
	w.t.Helper()
	for _, obj := range objs {
		if err := w.Create(context.Background(), obj); err != nil {
			w.t.Fatal(err)
		}
	}
	w.wait(time.Second)
}

func (w *world) there(name string) bool {
	err := w.Get(context.Background(), types.NamespacedName{Namespace: "default", Name: name}, &corev1.Pod{})
	return !apierrors.IsNotFound(err)
}

func conditionOf(pod *corev1.Pod, kind corev1.PodConditionType) corev1.PodCondition {
	for _, c := range pod.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.PodCondition{}
}

func TestPreemptsAndWaits(t *testing.T) {
	inWorld(t, []client.Object{newNode("a", "1", "1Gi"), newPod("low", "700m", "", on("a"))}, func(w *world) {
		w.add(newPod("high", "700m", "", priority(10)))
		low, high := w.pod("low"), w.pod("high")
		want := corev1.PodCondition{Type: "DisruptionTarget", Status: "True", ObservedGeneration: 1, Reason: "PreemptionByScheduler",
			Message: "default-scheduler: preempting to accommodate a higher priority pod"}
		got := conditionOf(low, "DisruptionTarget")
		got.LastTransitionTime = metav1.Time{}
		if got != want || low.DeletionTimestamp == nil {
			t.Errorf("victim: %+v, deleted %v", got, low.DeletionTimestamp)
		}
		if !w.events.has(fmt.Sprintf("Normal Preempted Preempted by pod %s on node a", high.UID)) {
			t.Errorf("events %q", w.events.seen)
		}
		if high.Status.NominatedNodeName != "a" || conditionOf(high, "PodScheduled").Message != "0/1 nodes are available: 1 Insufficient cpu." {
			t.Errorf("preemptor: %+v", high.Status)
		}
		// What is kept for it is not given to its equals, nor to lower ones.
		w.add(newNode("b", "100m", "1Gi"), newPod("same", "200m", "", priority(10)), newPod("lower", "200m", "", neverPreempts))
		if same, lower := w.pod("same").Spec.NodeName, w.pod("lower").Spec.NodeName; same != "" || lower != "" {
			t.Errorf("same is on %q, lower on %q", same, lower)
		}
		w.gone("low")
		if n := w.pod("high").Spec.NodeName; n != "a" {
			t.Errorf("high is on %q after its victim has gone", n)
		}
		if same, lower := w.pod("same").Spec.NodeName, w.pod("lower").Spec.NodeName; same != "a" || lower != "" {
			t.Errorf("then same is on %q, lower on %q", same, lower)
		}
	})
}

func TestOneVictimOnce(t *testing.T) {
	inWorld(t, []client.Object{newNode("a", "1", "1Gi"), newPod("low", "700m", "", on("a")), newPod("lower", "200m", "", priority(-1), on("a"))}, func(w *world) {
		w.add(newPod("high", "700m", "", priority(10)))
		w.add(newNode("b", "100m", "1Gi")) // an event while the victim terminates
		w.wait(20 * time.Minute)           // and the flush
		if w.pod("lower").DeletionTimestamp != nil {
			t.Error("a second pod was evicted while the first terminates")
		}
		message := conditionOf(w.pod("high"), "PodScheduled").Message
		if want := "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate, preemption: not eligible due to a terminating pod on the nominated node."; message != want {
			t.Errorf("message %q\n   want %q", message, want)
		}
		w.gone("low")
		if w.pod("high").Spec.NodeName != "a" {
			t.Error("high is not placed")
		}
	})
}

func TestLowerNomineeGivesWay(t *testing.T) {
	inWorld(t, []client.Object{newNode("a", "1", "1Gi"), newPod("low", "900m", "", on("a"))}, func(w *world) {
		w.add(newPod("mid", "700m", "", priority(5)))
		w.add(newPod("high", "700m", "", priority(10)))
		if mid, high := w.pod("mid").Status.NominatedNodeName, w.pod("high").Status.NominatedNodeName; mid != "" || high != "a" {
			t.Errorf("mid is nominated to %q, high to %q", mid, high)
		}
		w.gone("low")
		if w.pod("high").Spec.NodeName != "a" || w.pod("mid").Spec.NodeName != "" {
			t.Errorf("high is on %q, mid on %q", w.pod("high").Spec.NodeName, w.pod("mid").Spec.NodeName)
		}
	})
}

func TestNomineeGoes(t *testing.T) {
	inWorld(t, []client.Object{newNode("a", "1", "1Gi"), newPod("low", "900m", "", on("a"))}, func(w *world) {
		w.add(newPod("high", "700m", "", priority(10)), newPod("same", "700m", "", priority(10)))
		w.gone("high")
		w.gone("low")
		w.wait(time.Minute)
		if w.pod("same").Spec.NodeName != "a" {
			t.Errorf("the room of a deleted nominee is not used: %+v", w.pod("same").Status)
		}
	})
}

func TestNominatedNodeGoes(t *testing.T) {
	inWorld(t, []client.Object{newNode("a", "1", "1Gi"), newPod("low", "900m", "", on("a"))}, func(w *world) {
		w.add(newPod("high", "700m", "", priority(10)))
		if err := w.Delete(context.Background(), newNode("a", "1", "1Gi")); err != nil {
			t.Fatal(err)
		}
		w.add(newNode("b", "1", "1Gi"))
		if w.pod("high").Spec.NodeName != "b" {
			t.Errorf("high: %+v", w.pod("high").Status)
		}
	})
}

func TestManyPreemptors(t *testing.T) {
	var objs []client.Object
	for i := range 10 {
		objs = append(objs, newNode(fmt.Sprintf("n%d", i), "1", "1Gi"), newPod(fmt.Sprintf("low%d", i), "900m", "", on(fmt.Sprintf("n%d", i))))
	}
	inWorld(t, objs, func(w *world) {
		for i := range 10 {
			w.add(newPod(fmt.Sprintf("high%d", i), "900m", "", priority(10), ownedBy("rs")))
		}
		nodes := map[string]bool{}
		for i := range 10 {
			nodes[w.pod(fmt.Sprintf("high%d", i)).Status.NominatedNodeName] = true
		}
		if len(nodes) != 10 || nodes[""] {
			t.Errorf("nominated to %v, want ten nodes", nodes)
		}
		for i := range 10 {
			w.gone(fmt.Sprintf("low%d", i))
		}
		w.wait(time.Minute)
		for i := range 10 {
			if w.pod(fmt.Sprintf("high%d", i)).Spec.NodeName == "" {
				t.Errorf("high%d is not placed: %+v", i, w.pod(fmt.Sprintf("high%d", i)).Status)
			}
		}
	})
}

// TestCrashes stops the scheduler before each of its writes in turn and starts another one. The end must be
// that of an undisturbed run, and nobody may be evicted in vain.
func TestCrashes(t *testing.T) {
	for at := range 12 {
		t.Run(fmt.Sprintf("before write %d", at), func(t *testing.T) {
			objs := []client.Object{
				newNode("a", "1", "1Gi"), newNode("b", "1", "1Gi"),
				newPod("a1", "500m", "", on("a")), newPod("a2", "500m", "", on("a"), started(3)), newPod("b1", "900m", "", priority(5), on("b")),
			}
			inWorld(t, objs, func(w *world) {
				var writes atomic.Int64
				var crashed atomic.Bool
				w.SetBeforeWrite(func(write controllertest.Write) error {
					if writes.Add(1) > int64(at) && !crashed.Load() {
						return errors.New("crashed")
					}
					return nil
				})
				if err := w.restart(func() {
					_ = w.Create(context.Background(), newPod("high", "900m", "", priority(10)))
					_ = w.Create(context.Background(), newPod("small", "50m", ""))
					w.wait(500 * time.Millisecond)
				}, func() { crashed.Store(true) }); err != nil {
					t.Fatal(err)
				}
				for _, name := range []string{"high", "small"} { // made again if the crash kept them out
					if !w.there(name) {
						w.add(map[string]*corev1.Pod{"high": newPod("high", "900m", "", priority(10)), "small": newPod("small", "50m", "")}[name])
					}
				}
				w.wait(time.Minute)
				for range 2 { // a victim may be found only when another has gone
					for _, name := range []string{"a1", "a2", "b1"} {
						if w.there(name) && w.pod(name).DeletionTimestamp != nil {
							w.gone(name)
						}
					}
					w.wait(time.Minute)
				}
				if w.pod("high").Spec.NodeName != "a" || w.pod("small").Spec.NodeName == "" {
					t.Errorf("high %q %+v, small %q", w.pod("high").Spec.NodeName, w.pod("high").Status, w.pod("small").Spec.NodeName)
				}
				if !w.there("b1") || w.there("a1") || w.there("a2") {
					t.Errorf("a1 there: %v, a2 %v, b1 %v", w.there("a1"), w.there("a2"), w.there("b1"))
				}
			})
		})
	}
}

// restart runs before under the scheduler there is, ends that one, and starts another.
func (w *world) restart(before, between func()) error {
	before()
	if err := w.stop(); err != nil {
		return err
	}
	between()
	w.start()
	return nil
}

func TestPreemptionOffByProfile(t *testing.T) {
	config, err := ParseConfig([]byte(`apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: default-scheduler
- schedulerName: meek
  plugins: {postFilter: {disabled: [{name: DefaultPreemption}]}}
`))
	if err != nil {
		t.Fatal(err)
	}
	meek := func(p *corev1.Pod) { p.Spec.SchedulerName = "meek" }
	objs := []client.Object{newNode("a", "1", "1Gi"), newPod("low", "900m", "", on("a"))}
	inWorldOf(t, Options{Config: config}, objs, func(w *world) {
		w.add(newPod("high", "700m", "", priority(10), meek))
		if w.pod("low").DeletionTimestamp != nil {
			t.Error("evicted by a profile without preemption")
		}
		if m := conditionOf(w.pod("high"), "PodScheduled").Message; strings.Contains(m, "preemption") {
			t.Errorf("message %q", m)
		}
		w.add(newPod("bold", "700m", "", priority(10)))
		if w.pod("low").DeletionTimestamp == nil {
			t.Error("not evicted by the default profile")
		}
	})
}
