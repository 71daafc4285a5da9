package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller/controllertest"
)

type notes struct {
	mu   sync.Mutex
	seen []string
}

func (n *notes) Event(obj runtime.Object, kind, reason, note string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = append(n.seen, fmt.Sprintf("%s %s %s", kind, reason, note))
}

func (n *notes) has(text string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.seen, func(s string) bool { return strings.HasPrefix(s, text) })
}

type world struct {
	*controllertest.Cluster
	t         *testing.T
	opts      Options
	scheduler *Scheduler
	stop      func() error
	events    *notes
}

func inWorld(t *testing.T, objs []client.Object, f func(w *world)) {
	t.Helper()
	inWorldOf(t, Options{}, objs, f)
}

func inWorldOf(t *testing.T, opts Options, objs []client.Object, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{Cluster: controllertest.New(t, objs...), t: t, opts: opts, events: &notes{}}
		w.start()
		f(w)
		if err := w.stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// start runs a new scheduler until stop.
func (w *world) start() {
	w.t.Helper()
	var err error
	if w.scheduler, err = New(w, w, w.events, w.opts); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.scheduler.Run(ctx) }()
	w.stop = func() error {
		cancel()
		return <-done
	}
	w.wait(time.Second)
}

func (w *world) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) pod(name string) *corev1.Pod {
	w.t.Helper()
	var pod corev1.Pod
	if err := w.Get(context.Background(), types.NamespacedName{Namespace: "default", Name: name}, &pod); err != nil {
		w.t.Fatal(err)
	}
	return pod.DeepCopy()
}

func TestBinds(t *testing.T) {
	other := newPod("other", "", "", func(p *corev1.Pod) { p.Spec.SchedulerName = "mine" })
	gated := newPod("gated", "", "", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "g"}} })
	inWorld(t, []client.Object{newNode("a", "1", "1Gi"), newPod("p", "500m", ""), other, gated}, func(w *world) {
		if node := w.pod("p").Spec.NodeName; node != "a" {
			t.Errorf("p is on %q", node)
		}
		if !w.events.has("Normal Scheduled Successfully assigned default/p to a") {
			t.Errorf("events %q", w.events.seen)
		}
		if w.pod("other").Spec.NodeName != "" || w.pod("gated").Spec.NodeName != "" {
			t.Error("a pod of another scheduler or a gated one was bound")
		}
		free := w.pod("gated")
		free.Spec.SchedulingGates = nil
		if err := w.Update(context.Background(), free); err != nil {
			t.Fatal(err)
		}
		w.wait(time.Second)
		if w.pod("gated").Spec.NodeName != "a" {
			t.Error("not bound after its gate was removed")
		}
	})
}

func TestUnschedulableThenRoom(t *testing.T) {
	inWorld(t, []client.Object{newNode("a", "1", "1Gi"), newPod("p", "700m", "")}, func(w *world) {
		if err := w.Create(context.Background(), newPod("q", "700m", "")); err != nil {
			t.Fatal(err)
		}
		w.wait(time.Second)
		want := "0/1 nodes are available: 1 Insufficient cpu." + tail(1, "1 No preemption victims found for incoming pod")
		c := w.pod("q").Status.Conditions
		if len(c) != 1 || c[0].Type != corev1.PodScheduled || c[0].Status != corev1.ConditionFalse || c[0].Reason != "Unschedulable" || c[0].Message != want {
			t.Errorf("conditions %+v", c)
		}
		if !w.events.has("Warning FailedScheduling " + want) {
			t.Errorf("events %q", w.events.seen)
		}
		writes := w.Writes()
		w.wait(time.Hour)
		if n := w.Writes() - writes; n != 0 {
			t.Errorf("%d writes while nothing happened", n)
		}
		none := int64(0)
		if err := w.Delete(context.Background(), w.pod("p"), &client.DeleteOptions{GracePeriodSeconds: &none}); err != nil {
			t.Fatal(err)
		}
		w.wait(10 * time.Millisecond)
		if w.pod("q").Spec.NodeName != "a" {
			t.Error("q not bound when p was gone")
		}
	})
}

func TestNodeEventsHelp(t *testing.T) {
	for name, help := range map[string]func(w *world){
		"a new node": func(w *world) { _ = w.Create(context.Background(), newNode("b", "4", "1Gi")) },
		"a taint goes": func(w *world) {
			_ = w.Update(context.Background(), newNode("a", "4", "1Gi"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, []client.Object{newNode("a", "4", "1Gi", taint("x", "NoSchedule")), newPod("p", "1", "")}, func(w *world) {
				if w.pod("p").Spec.NodeName != "" {
					t.Fatal("bound at once")
				}
				help(w)
				w.wait(10 * time.Millisecond)
				if w.pod("p").Spec.NodeName == "" {
					t.Errorf("not bound: %+v", w.pod("p").Status.Conditions)
				}
			})
		})
	}
}

func TestPriorityFirst(t *testing.T) {
	objs := []client.Object{newPod("low", "700m", ""), newPod("high", "700m", "", priority(10))}
	inWorld(t, objs, func(w *world) {
		if err := w.Create(context.Background(), newNode("a", "1", "1Gi")); err != nil {
			t.Fatal(err)
		}
		w.wait(time.Second)
		if w.pod("high").Spec.NodeName != "a" || w.pod("low").Spec.NodeName != "" {
			t.Errorf("high on %q, low on %q", w.pod("high").Spec.NodeName, w.pod("low").Spec.NodeName)
		}
	})
}

func TestBindFailureBacksOff(t *testing.T) {
	inWorld(t, []client.Object{newNode("a", "1", "1Gi")}, func(w *world) {
		tries := 0
		w.SetBeforeWrite(func(write controllertest.Write) error {
			if write.Sub == "binding" && tries < 3 {
				tries++
				return errors.New("not now")
			}
			return nil
		})
		if err := w.Create(context.Background(), newPod("p", "700m", "")); err != nil {
			t.Fatal(err)
		}
		w.wait(500 * time.Millisecond)
		if tries != 1 || w.pod("p").Status.Conditions[0].Reason != "SchedulerError" {
			t.Errorf("%d tries in 500ms, conditions %+v", tries, w.pod("p").Status.Conditions)
		}
		w.wait(10 * time.Second)
		if w.pod("p").Spec.NodeName != "a" {
			t.Errorf("not bound after %d tries", tries)
		}
	})
}

func TestThousandPods(t *testing.T) {
	var objs []client.Object
	for i := range 20 {
		objs = append(objs, newNode(fmt.Sprintf("n%02d", i), "100", "100Gi"))
	}
	for i := range 1000 {
		objs = append(objs, newPod(fmt.Sprintf("p%03d", i), "1", "1Gi", ownedBy("rs")))
	}
	inWorld(t, objs, func(w *world) {
		w.wait(time.Second)
		count := map[string]int{}
		for i := range 1000 {
			count[w.pod(fmt.Sprintf("p%03d", i)).Spec.NodeName]++
		}
		for node, n := range count {
			if n != 50 {
				t.Errorf("%d pods on %q, want 50 on each of 20", n, node)
			}
		}
		if s := w.scheduler.Stats(); s.Bound != 1000 || s.Waiting != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestWhyOfPlacedPod(t *testing.T) {
	inWorld(t, []client.Object{newNode("a", "1", "1Gi"), newPod("p", "700m", "")}, func(w *world) {
		if d := w.scheduler.Why(w.pod("p")); d.Chosen != "a" {
			t.Errorf("Why = %+v, want a chosen: the pod's own room counts as free", d)
		}
	})
}

func TestResizeIsCharged(t *testing.T) {
	inWorld(t, []client.Object{newNode("a", "1", "1Gi"), newPod("p", "200m", "")}, func(w *world) {
		grown := w.pod("p")
		grown.Spec.Containers[0].Resources.Requests["cpu"] = resource.MustParse("900m")
		if err := w.Update(context.Background(), grown); err != nil {
			t.Fatal(err)
		}
		if err := w.Create(context.Background(), newPod("q", "200m", "")); err != nil {
			t.Fatal(err)
		}
		w.wait(time.Second)
		if w.pod("q").Spec.NodeName != "" {
			t.Error("q was placed though p had grown")
		}
	})
}
