package disruption

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/controller/controllertest"
)

// start is a moment of no importance.
func start() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

func newPod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	yes := true
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": "web"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-1", UID: "rs", Controller: &yes}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	for _, f := range change {
		f(pod)
	}
	return pod
}

func newBudget(spec policyv1.PodDisruptionBudgetSpec) *policyv1.PodDisruptionBudget {
	spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	return &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b", Generation: 3}, Spec: spec}
}

func sick(pod *corev1.Pod)    { pod.Status.Conditions[0].Status = corev1.ConditionFalse }
func leaving(pod *corev1.Pod) { pod.DeletionTimestamp = &metav1.Time{Time: start()} }
func stray(pod *corev1.Pod)   { pod.OwnerReferences = nil }

func number(n int) *intstr.IntOrString      { v := intstr.FromInt32(int32(n)); return &v }
func share(text string) *intstr.IntOrString { v := intstr.FromString(text); return &v }

func TestPlanDesired(t *testing.T) {
	for name, tc := range map[string]struct {
		spec     policyv1.PodDisruptionBudgetSpec
		expected int32
		want     int32
		wantErr  bool
	}{
		"nothing asked":               {policyv1.PodDisruptionBudgetSpec{}, 5, 0, false},
		"a number":                    {policyv1.PodDisruptionBudgetSpec{MinAvailable: number(3)}, 5, 3, false},
		"more than there are":         {policyv1.PodDisruptionBudgetSpec{MinAvailable: number(9)}, 5, 9, false},
		"a share is rounded up":       {policyv1.PodDisruptionBudgetSpec{MinAvailable: share("50%")}, 5, 3, false},
		"most unavailable":            {policyv1.PodDisruptionBudgetSpec{MaxUnavailable: number(2)}, 5, 3, false},
		"more unavailable than there": {policyv1.PodDisruptionBudgetSpec{MaxUnavailable: number(9)}, 5, 0, false},
		"share of unavailable":        {policyv1.PodDisruptionBudgetSpec{MaxUnavailable: share("50%")}, 5, 2, false},
		"no share":                    {policyv1.PodDisruptionBudgetSpec{MaxUnavailable: share("half")}, 5, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := planDesired(newBudget(tc.spec), tc.expected)
			if got != tc.want || (err != nil) != tc.wantErr {
				t.Errorf("planDesired = %d, %v; want %d, error %v", got, err, tc.want, tc.wantErr)
			}
		})
	}
}

func TestPlanStatus(t *testing.T) {
	at := func(age time.Duration) metav1.Time { return metav1.NewTime(start().Add(-age)) }
	for name, tc := range map[string]struct {
		disrupted map[string]metav1.Time
		pods      []*corev1.Pod
		expected  int32
		desired   int32
		want      policyv1.PodDisruptionBudgetStatus
		recheck   time.Duration
		overdue   string
	}{
		"all healthy": {
			pods: []*corev1.Pod{newPod("a"), newPod("b"), newPod("c")}, expected: 3, desired: 1,
			want: policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 3, DesiredHealthy: 1, ExpectedPods: 3, DisruptionsAllowed: 2},
		},
		"too few healthy": {
			pods: []*corev1.Pod{newPod("a", sick), newPod("b", leaving), newPod("c")}, expected: 3, desired: 2,
			want: policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 1, DesiredHealthy: 2, ExpectedPods: 3},
		},
		"nothing expected yet": {
			pods: []*corev1.Pod{newPod("a")}, expected: 0, desired: 0,
			want: policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 1},
		},
		"an eviction on its way": {
			disrupted: map[string]metav1.Time{"a": at(30 * time.Second), "gone": at(0), "b": at(time.Second)},
			pods:      []*corev1.Pod{newPod("a"), newPod("b", leaving), newPod("c")}, expected: 3, desired: 1,
			want: policyv1.PodDisruptionBudgetStatus{
				CurrentHealthy: 1, DesiredHealthy: 1, ExpectedPods: 3, DisruptedPods: map[string]metav1.Time{"a": at(30 * time.Second)},
			},
			recheck: 90 * time.Second,
		},
		"an eviction that never came": {
			disrupted: map[string]metav1.Time{"a": at(121 * time.Second)},
			pods:      []*corev1.Pod{newPod("a"), newPod("c")}, expected: 2, desired: 1,
			want:    policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 2, DesiredHealthy: 1, ExpectedPods: 2, DisruptionsAllowed: 1},
			overdue: "a",
		},
	} {
		t.Run(name, func(t *testing.T) {
			pdb := newBudget(policyv1.PodDisruptionBudgetSpec{})
			pdb.Status.DisruptedPods = tc.disrupted
			p := planStatus(pdb, tc.pods, tc.expected, tc.desired, start())
			reason, status := policyv1.InsufficientPodsReason, metav1.ConditionFalse
			if tc.want.DisruptionsAllowed > 0 {
				reason, status = policyv1.SufficientPodsReason, metav1.ConditionTrue
			}
			tc.want.ObservedGeneration = 3
			tc.want.Conditions = []metav1.Condition{{Type: "DisruptionAllowed", Status: status, Reason: reason, ObservedGeneration: 3}}
			if tc.want.DisruptedPods == nil {
				tc.want.DisruptedPods = map[string]metav1.Time{}
			}
			p.status.Conditions[0].LastTransitionTime = metav1.Time{}
			if diff := cmp.Diff(tc.want, p.status); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
			var overdue []string
			for _, pod := range p.overdue {
				overdue = append(overdue, pod.Name)
			}
			if p.recheck != tc.recheck || strings.Join(overdue, " ") != tc.overdue || !p.changed {
				t.Errorf("recheck %v, overdue %v, changed %v; want %v, %q, true", p.recheck, overdue, p.changed, tc.recheck, tc.overdue)
			}
			pdb.Status = p.status
			if again := planStatus(pdb, tc.pods, tc.expected, tc.desired, start()); again.changed {
				t.Error("a second look changes the status again")
			}
		})
	}
}

// notes collects events.
type notes struct {
	mu  sync.Mutex
	all []string
}

func (n *notes) Event(obj runtime.Object, kind, reason, note string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, kind+" "+reason+" "+note)
}

func (n *notes) has(prefix string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, text := range n.all {
		if strings.HasPrefix(text, prefix) {
			return true
		}
	}
	return false
}

type world struct {
	*controllertest.Cluster
	t      *testing.T
	events *notes
}

// inWorld runs f beside the running controller in a bubble of virtual time.
func inWorld(t *testing.T, objs []client.Object, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{Cluster: controllertest.New(t, objs...), t: t, events: &notes{}}
		c, err := New(w, w, w.events, Options{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := c.Run(ctx); err != nil {
				t.Errorf("Run = %v", err)
			}
		})
		f(w)
		cancel()
		running.Wait()
	})
}

func (w *world) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) status(name string) policyv1.PodDisruptionBudgetStatus {
	w.t.Helper()
	var pdb policyv1.PodDisruptionBudget
	if err := w.Get(context.Background(), types.NamespacedName{Namespace: "default", Name: name}, &pdb); err != nil {
		w.t.Fatal(err)
	}
	return pdb.Status
}

func (w *world) want(name, want string) {
	w.t.Helper()
	s := w.status(name)
	got := fmt.Sprintf("expected %d, healthy %d of %d, allowed %d, observed %d", s.ExpectedPods, s.CurrentHealthy, s.DesiredHealthy, s.DisruptionsAllowed, s.ObservedGeneration)
	if got != want {
		w.t.Errorf("%s: %s; want %s", name, got, want)
	}
}

func owned(replicas int32) []client.Object {
	yes := true
	return []client.Object{
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "d"}, Spec: appsv1.DeploymentSpec{Replicas: &replicas}},
		&appsv1.ReplicaSet{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "default", Name: "web-1", UID: "rs",
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "Deployment", Name: "web", UID: "d", Controller: &yes}},
			},
			Spec: appsv1.ReplicaSetSpec{Replicas: new(int32)},
		},
	}
}

func TestBudgetFollowsItsPods(t *testing.T) {
	objs := append(owned(4), newPod("a"), newPod("b"), newPod("c", sick))
	budget := newBudget(policyv1.PodDisruptionBudgetSpec{MaxUnavailable: share("25%")})
	inWorld(t, append(objs, budget), func(w *world) {
		w.wait(time.Second)
		w.want("b", "expected 4, healthy 2 of 3, allowed 0, observed 3")
		cured := newPod("c")
		if err := w.Status().Update(t.Context(), cured); err != nil {
			t.Fatal(err)
		}
		if err := w.Create(t.Context(), newPod("d")); err != nil {
			t.Fatal(err)
		}
		w.wait(time.Second)
		w.want("b", "expected 4, healthy 4 of 3, allowed 1, observed 3")
		other := newPod("d", func(p *corev1.Pod) { p.UID = "" })
		other.Labels = map[string]string{"app": "other"}
		if err := w.Update(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		w.wait(time.Second)
		w.want("b", "expected 4, healthy 3 of 3, allowed 0, observed 3")
	})
}

func TestBudgetsOfOnePod(t *testing.T) {
	second := newBudget(policyv1.PodDisruptionBudgetSpec{MinAvailable: number(0)})
	second.Name = "c"
	inWorld(t, []client.Object{newPod("a"), newBudget(policyv1.PodDisruptionBudgetSpec{MinAvailable: number(1)}), second}, func(w *world) {
		w.wait(time.Second)
		if err := w.Create(t.Context(), newPod("b")); err != nil {
			t.Fatal(err)
		}
		w.wait(time.Second)
		w.want("b", "expected 2, healthy 2 of 1, allowed 1, observed 3")
		w.want("c", "expected 2, healthy 2 of 0, allowed 2, observed 3")
		if !w.events.has(`Warning MultiplePodDisruptionBudgets Pod "default"/"b" matches multiple PodDisruptionBudgets.  Chose "b" arbitrarily.`) {
			t.Errorf("events %q", w.events.all)
		}
	})
}

func TestPodsWithoutAnOwner(t *testing.T) {
	inWorld(t, []client.Object{newPod("a", stray), newBudget(policyv1.PodDisruptionBudgetSpec{MaxUnavailable: number(1)})}, func(w *world) {
		w.wait(time.Second)
		w.want("b", "expected 0, healthy 1 of 0, allowed 0, observed 3")
		if !w.events.has("Warning UnmanagedPods Pods selected by this PodDisruptionBudget (selector: &LabelSelector{MatchLabels:map[string]string{app: web,}") {
			t.Errorf("events %q", w.events.all)
		}
	})
}

func TestOwnersThatCannotBeFound(t *testing.T) {
	budget := newBudget(policyv1.PodDisruptionBudgetSpec{MinAvailable: share("50%")})
	budget.Status.DisruptionsAllowed = 1
	inWorld(t, []client.Object{newPod("a"), budget}, func(w *world) {
		w.wait(time.Second)
		s := w.status("b")
		if s.DisruptionsAllowed != 0 || len(s.Conditions) != 1 || s.Conditions[0].Reason != "SyncFailed" || s.Conditions[0].Status != metav1.ConditionFalse {
			t.Errorf("status %+v, want SyncFailed", s)
		}
		if !w.events.has("Warning CalculateExpectedPodCountFailed Failed to calculate the number of expected pods: ") {
			t.Errorf("events %q", w.events.all)
		}
		for _, obj := range owned(1) {
			if err := w.Create(t.Context(), obj); err != nil {
				t.Fatal(err)
			}
		}
		// The fake gives owners UIDs of its own.
		var rs appsv1.ReplicaSet
		if err := w.Get(t.Context(), types.NamespacedName{Namespace: "default", Name: "web-1"}, &rs); err != nil {
			t.Fatal(err)
		}
		pod, set := newPod("a"), rs.DeepCopy()
		pod.OwnerReferences[0].UID, set.OwnerReferences = rs.UID, nil
		*set.Spec.Replicas = 1
		if err := errors.Join(w.Update(t.Context(), set), w.Update(t.Context(), pod)); err != nil {
			t.Fatal(err)
		}
		w.wait(2 * time.Minute)
		w.want("b", "expected 1, healthy 1 of 1, allowed 0, observed 3")
		if got := w.status("b").Conditions[0].Reason; got != "InsufficientPods" {
			t.Errorf("condition %s after the cure", got)
		}
	})
}

func TestEvictionThatNeverComes(t *testing.T) {
	inWorld(t, []client.Object{newPod("a"), newBudget(policyv1.PodDisruptionBudgetSpec{MinAvailable: number(0)})}, func(w *world) {
		w.wait(time.Second)
		var pdb policyv1.PodDisruptionBudget
		if err := w.Get(t.Context(), types.NamespacedName{Namespace: "default", Name: "b"}, &pdb); err != nil {
			t.Fatal(err)
		}
		next := pdb.DeepCopy() // as the eviction API does
		next.Status.DisruptionsAllowed--
		next.Status.DisruptedPods = map[string]metav1.Time{"a": metav1.Now()}
		if err := w.Status().Update(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		w.wait(time.Second)
		w.want("b", "expected 1, healthy 0 of 0, allowed 0, observed 3")
		w.wait(2 * time.Minute)
		w.want("b", "expected 1, healthy 1 of 0, allowed 1, observed 3")
		if !w.events.has("Warning NotDeleted Pod was expected by PDB default/b to be deleted but it wasn't") {
			t.Errorf("events %q", w.events.all)
		}
	})
}

func TestStaleDisruptionTarget(t *testing.T) {
	target := func(reason string) func(*corev1.Pod) {
		return func(pod *corev1.Pod) {
			pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{
				Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: reason, LastTransitionTime: metav1.Now(),
			})
		}
	}
	synctestPods := func() []client.Object {
		return []client.Object{newPod("evicted", target("EvictionByEvictionAPI")), newPod("agent", target(corev1.PodReasonTerminationByKubelet))}
	}
	inWorld(t, nil, func(w *world) {
		for _, pod := range synctestPods() {
			if err := w.Create(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
		}
		get := func(name string) *corev1.PodCondition {
			var pod corev1.Pod
			if err := w.Get(t.Context(), types.NamespacedName{Namespace: "default", Name: name}, &pod); err != nil {
				t.Fatal(err)
			}
			return controller.PodCondition(&pod, corev1.DisruptionTarget)
		}
		w.wait(119 * time.Second)
		if c := get("evicted"); c.Status != corev1.ConditionTrue {
			t.Errorf("after 119s: %+v", c)
		}
		w.wait(2 * time.Second)
		if c := get("evicted"); c.Status != corev1.ConditionFalse || c.Reason != "" {
			t.Errorf("after 121s: %+v", c)
		}
		if c := get("agent"); c.Status != corev1.ConditionTrue {
			t.Errorf("of the agent: %+v", c)
		}
	})
}

// TestCrashes ends the controller at each of its writes; the next one comes to the same end.
func TestCrashes(t *testing.T) {
	run := func(t *testing.T, crashAt int) (string, int) {
		var end string
		writes := 0
		synctest.Test(t, func(t *testing.T) {
			cluster := controllertest.New(t, append(owned(3), newPod("a"), newPod("b"), newPod("c"),
				newBudget(policyv1.PodDisruptionBudgetSpec{MaxUnavailable: number(1)}))...)
			for {
				crashed := false
				ctx, cancel := context.WithCancel(t.Context())
				cluster.SetBeforeWrite(func(controllertest.Write) error {
					writes++
					if writes == crashAt || crashed {
						crashed = true
						cancel()
						return context.Canceled
					}
					return nil
				})
				c, err := New(cluster, cluster, &notes{}, Options{})
				if err != nil {
					t.Fatal(err)
				}
				var running sync.WaitGroup
				running.Go(func() { _ = c.Run(ctx) })
				time.Sleep(5 * time.Second)
				synctest.Wait()
				cancel()
				running.Wait()
				if !crashed {
					break
				}
			}
			w := &world{Cluster: cluster, t: t}
			s := w.status("b")
			end = fmt.Sprintf("%d %d %d %d %s", s.ExpectedPods, s.CurrentHealthy, s.DesiredHealthy, s.DisruptionsAllowed, s.Conditions[0].Reason)
		})
		return end, writes
	}
	want, writes := run(t, 0)
	for at := 1; at <= writes; at++ {
		if got, _ := run(t, at); got != want {
			t.Errorf("crash at write %d: %s; want %s", at, got, want)
		}
	}
}

func BenchmarkCount(b *testing.B) {
	objs := append(owned(1000), newBudget(policyv1.PodDisruptionBudgetSpec{MaxUnavailable: number(1)}))
	for i := range 1000 {
		objs = append(objs, newPod(fmt.Sprint("p", i)))
	}
	cluster := controllertest.New(b, objs...)
	c, err := New(cluster, cluster, &notes{}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.reconcile(b.Context(), types.NamespacedName{Namespace: "default", Name: "b"}); err != nil {
			b.Fatal(err)
		}
	}
}
