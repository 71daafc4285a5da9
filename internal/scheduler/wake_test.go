package scheduler

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func evenly(p *corev1.Pod) {
	labelled("even", "yes")(p)
	p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
		TopologyKey: "zone", MaxSkew: 1, WhenUnsatisfiable: corev1.DoNotSchedule,
		LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"even": "yes"}},
	}}
}

// What keeps a pod from a node may change while it waits, and then other events help it.
func TestWakesForWhatKeepsAPodAwayNow(t *testing.T) {
	zones := func() []client.Object {
		return []client.Object{
			newNode("a", "1", "8Gi", label("zone", "a")), newNode("b", "1", "8Gi", label("zone", "b")),
			newPod("even", "500m", "", evenly, on("a"), priority(100)), newPod("full", "1", "", on("b"), priority(100)),
		}
	}
	for name, tc := range map[string]struct {
		objs []client.Object
		then []func(w *world)
	}{
		"room first, then spread": {
			append(zones(), newPod("filler", "500m", "", on("a"), priority(100)), newPod("p", "500m", "", evenly, priority(50))),
			[]func(w *world){
				func(w *world) { w.must(w.Delete(context.Background(), w.pod("filler"), client.GracePeriodSeconds(0))) },
				func(w *world) { w.must(w.Create(context.Background(), newPod("other", "", "", evenly, on("b")))) },
			},
		},
		"room by eviction, then spread": {
			append(zones(), newPod("filler", "500m", "", on("a")), newPod("p", "500m", "", evenly, priority(50))),
			[]func(w *world){
				func(w *world) { w.must(w.Create(context.Background(), newPod("other", "", "", evenly, on("b")))) },
				func(w *world) {
					w.must(client.IgnoreNotFound(w.Delete(context.Background(), newPod("filler", "", ""), client.GracePeriodSeconds(0))))
				},
			},
		},
		"a label that kept others away goes": {
			[]client.Object{newNode("a", "1", "8Gi"), newPod("loud", "", "", on("a"), labelled("noise", "yes")), newPod("p", "", "", func(p *corev1.Pod) {
				p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
					RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
						TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"noise": "yes"}},
					}},
				}}
			})},
			[]func(w *world){func(w *world) {
				quiet := w.pod("loud")
				delete(quiet.Labels, "noise")
				w.must(w.Update(context.Background(), quiet))
			}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, tc.objs, func(w *world) {
				for i, act := range tc.then {
					if node := w.pod("p").Spec.NodeName; node != "" {
						t.Fatalf("on %q before step %d", node, i)
					}
					act(w)
					w.wait(20 * time.Second)
				}
				if p := w.pod("p"); p.Spec.NodeName != "a" {
					t.Errorf("not on the node: %+v", p.Status)
				}
			})
		})
	}
}

// What an event tells of a pod's nominated node is old while a newer one is to be written.
func TestOldNominationsAreNotFollowed(t *testing.T) {
	objs := []client.Object{newNode("a", "1", "8Gi"), newPod("p", "2", "")}
	inWorld(t, objs, func(w *world) {
		s := w.scheduler
		before := w.pod("p")
		old := before.DeepCopy()
		old.Status.NominatedNodeName = "a"
		empty := ""
		j := &job{pod: before, nominate: &empty}
		s.mu.Lock()
		s.owe(j)
		s.mu.Unlock()
		s.onPod(before, old)
		if n := w.nominated("p"); n != "" {
			t.Errorf("nominated to %q by what was written before", n)
		}
		s.pay(j)
		s.onPod(before, old)
		if n := w.nominated("p"); n != "a" {
			t.Errorf("nominated to %q, want what the API says", n)
		}
		s.onPod(old, before)
		if n := w.nominated("p"); n != "" || len(s.owed) != 0 {
			t.Errorf("nominated to %q, %d writes owed", n, len(s.owed))
		}
	})
}

// A binding that the API took, though its answer was lost, frees what was taken in its stead.
func TestBindingThatWasTakenForLost(t *testing.T) {
	objs := []client.Object{newNode("a", "1", "8Gi"), newPod("p", "1", ""), newPod("q", "1", "")}
	inWorld(t, objs, func(w *world) {
		first, second := "p", "q"
		if w.pod(first).Spec.NodeName == "" {
			first, second = second, first
		}
		elsewhere := w.pod(first)
		moved := elsewhere.DeepCopy()
		moved.Spec.NodeName = "b"
		w.scheduler.onPod(elsewhere, moved)
		w.wait(20 * time.Second)
		if p := w.pod(second); p.Spec.NodeName != "a" {
			t.Errorf("%s is not on the node: %+v", second, p.Status)
		}
	})
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) nominated(name string) string {
	uid := w.pod(name).UID
	w.scheduler.mu.Lock()
	defer w.scheduler.mu.Unlock()
	return w.scheduler.state.nominatedTo(uid)
}
