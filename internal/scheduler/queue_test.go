package scheduler

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// TestNoHerd: an event costs a search a template and a pod that is placed, not a search a pod that waits.
func TestNoHerd(t *testing.T) {
	const pods = 10000
	objs := []client.Object{newNode("a", "100m", "1Gi")}
	for i := range pods {
		objs = append(objs, newPod(fmt.Sprintf("p%05d", i), "600m", "", ownedBy("rs")))
	}
	inWorld(t, objs, func(w *world) {
		w.wait(10 * time.Second)
		before, writes := w.scheduler.Stats(), w.Writes()
		if before.Misfits < pods || before.Waiting != pods {
			t.Fatalf("not all were tried: %+v", before)
		}
		w.add(newNode("b", "1", "1Gi")) // has room for one
		w.wait(time.Minute)
		after := w.scheduler.Stats()
		if after.Bound != 1 || after.Searches-before.Searches > 3 || w.Writes()-writes > 5 {
			t.Errorf("one node: %d bound, %d searches, %d writes", after.Bound, after.Searches-before.Searches, w.Writes()-writes)
		}
		if w.pod("p00000").Spec.NodeName != "b" {
			t.Error("the room did not go to the pod that came first")
		}
	})
}

func TestLowPriorityIsNotHeldUp(t *testing.T) {
	objs := []client.Object{newNode("a", "4", "64Gi")}
	for i := range 50 {
		objs = append(objs, newPod(fmt.Sprint("huge", i), fmt.Sprint(5+i), "", priority(1000)))
	}
	inWorld(t, objs, func(w *world) {
		for i := range 20 { // each event lets the huge ones hope
			grown := newNode("a", "4", "64Gi")
			grown.Status.Allocatable[corev1.ResourceMemory] = resource.MustParse(fmt.Sprint(65+i, "Gi"))
			if err := w.Status().Update(context.Background(), grown); err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprint("low", i)
			w.add(newPod(name, "100m", "", priority(-1)))
			if w.pod(name).Spec.NodeName != "a" {
				t.Fatalf("%s is held up: %+v", name, w.pod(name).Status.Conditions)
			}
		}
	})
}

func TestEqualsTakeTurns(t *testing.T) {
	now := time.Unix(0, 0)
	q := newQueue(time.Second, 10*time.Second)
	s := NewState()
	for _, name := range []string{"a0", "b0", "a1", "b1"} {
		pod := newPod(name, map[byte]string{'a': "1", 'b': "2"}[name[0]], "")
		q.add(pod, s.ref(pod), 0, now)
	}
	var order []string
	for range 6 {
		w, _ := q.pop(now)
		if w == nil {
			for _, lines := range q.listening { // an event that helps them all
				for l := range lines {
					q.help(l, now)
				}
			}
			w, _ = q.pop(now)
		}
		order = append(order, w.pod.Name)
		q.misfit(w, false, 0, now)
	}
	if got := fmt.Sprint(order); got != "[a0 b0 a1 b1 a0 b0]" && got != "[a0 b0 a1 b1 b0 a0]" {
		t.Errorf("tried in the order %s", got)
	}
}

func TestBackoffHoldsWhileThereIsWork(t *testing.T) {
	now := time.Unix(0, 0)
	q := newQueue(time.Second, 10*time.Second)
	s := NewState()
	add := func(name, cpu string, value int32) {
		pod := newPod(name, cpu, "", priority(value))
		q.add(pod, s.ref(pod), 0, now)
	}
	add("large", "9", 100)
	w, _ := q.pop(now)
	l := q.misfit(w, false, PluginsOf(NodeResourcesFit), now)
	q.help(l, now)
	add("small", "1", 0)
	for i, want := range []string{"small", "large"} {
		if w, _ = q.pop(now); w == nil || w.pod.Name != want {
			t.Fatalf("pop %d = %+v, want %s", i, w, want)
		}
	}
	q.help(q.misfit(w, false, PluginsOf(NodeResourcesFit), now), now)
	add("small2", "1", 0)
	now = now.Add(3 * time.Second) // its back-off of 2s is over: it is the more important one
	if w, _ = q.pop(now); w.pod.Name != "large" {
		t.Errorf("pop = %s, want large", w.pod.Name)
	}
	for failures, want := range []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 10 * time.Second, 10 * time.Second} {
		if got := q.backoff(failures); got != want {
			t.Errorf("backoff(%d) = %v, want %v", failures, got, want)
		}
	}
}

func TestTriedPodsHearOfEventsWhileTheirKinIsNew(t *testing.T) {
	now := time.Unix(0, 0)
	q := newQueue(time.Second, 10*time.Second)
	s := NewState()
	add := func(name string) {
		pod := newPod(name, "1", "")
		q.add(pod, s.ref(pod), 0, now)
	}
	add("a0")
	w, _ := q.pop(now)
	l := q.misfit(w, false, PluginsOf(NodeResourcesFit), now)
	add("a1") // the line is active, for this one only
	if len(q.listening) != 1 || l.in != active {
		t.Fatalf("%d lines listen, the line is in %d", len(q.listening), l.in)
	}
	q.help(l, now)
	if len(q.listening) != 0 {
		t.Errorf("%d lines listen after the event", len(q.listening))
	}
	for i, want := range []string{"a0", "a1"} {
		if w, _ = q.pop(now); w == nil || w.pod.Name != want {
			t.Fatalf("pop %d = %+v, want %s", i, w, want)
		}
	}
}
